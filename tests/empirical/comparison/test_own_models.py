"""A user's own modules: the lines of the README, and nothing of theirs is touched."""

import pytest
import torch
from torch import nn

import empirical
from empirical.comparison.results import load_results, save_results


def pair():
    torch.manual_seed(0)
    x = torch.randn(40, 3)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 1).long()
    f, g = (nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)) for _ in range(2))
    return f, g, x, y


@pytest.fixture(scope="module")
def compared():
    f, g, x, y = pair()
    f.train()
    g.eval()
    comparison = empirical.compare_models([f, g], x, y, eps=[0.1, 0.05], linf_eps=[0.05])
    return f, g, comparison


def test_the_lines_of_the_readme_print_a_verdict_and_tables(compared):
    text = str(compared[2])
    assert text.startswith("No guaranteed bound is contradicted")
    assert "Theorem 4 as printed" in text
    assert "R2" in text
    assert "linf 0.05" in text


def test_the_models_are_left_as_they_were(compared):
    f, g, _ = compared
    assert f.training
    assert not g.training
    for model in (f, g):
        assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())


def test_the_result_is_saved_and_read_back(compared, tmp_path):
    comparison = compared[2]
    save_results(tmp_path / "results.json", comparison)
    assert load_results(tmp_path / "results.json") == comparison
    assert comparison.settings.eps == (0.05, 0.1)
    assert {row.verdict for row in comparison.joint()} <= {"consistent", "vacuous"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": []}, "two or more models, got 0"),
        ({"models": 1}, "two or more models, got 1"),
        ({"eps": []}, "positive radii"),
        ({"target_label": 3}, "0..2"),
        ({"attacks": ["magic"]}, "attacks among"),
        ({"attacks": ["joint"]}, "single members"),
        ({"y": torch.full((40,), 7)}, "0..2"),
        ({"support": "everything"}, "support"),
        ({"confidence": 1.5}, "confidence"),
    ],
)
def test_bad_input_is_refused(changes, words):
    f, g, x, y = pair()
    given = {"models": [f, g], "x": x, "y": y, "eps": [0.1]} | changes
    if given["models"] == 1:
        given["models"] = [f]
    with pytest.raises(ValueError, match=words):
        empirical.compare_models(given.pop("models"), given.pop("x"), given.pop("y"), **given)


def test_no_other_name_is_made_up():
    with pytest.raises(AttributeError, match="no attribute"):
        _ = empirical.magic


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match="expected torch modules, got str"):
        empirical.compare_models([nn.Linear(2, 2), "g"], torch.rand(3, 2), torch.zeros(3).long(), eps=[0.1])
