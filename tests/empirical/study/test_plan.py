"""The design: as many ensembles as promised, each once, blocks complete."""

from collections import Counter

from empirical.reproduce.cells import TrainingCell
from empirical.study.plan import PLANS, SIMILARITY_WEIGHTS, SIZE_WEIGHTS, block, penalties


def test_the_study_has_more_than_a_hundred_different_ensembles():
    cells = [TrainingCell(config).key for config in PLANS["digits"].configs]
    assert len(set(cells)) == len(cells) >= 100


def test_it_varies_method_activation_depth_members_and_seed():
    configs = PLANS["digits"].configs
    assert len({config.objective.name for config in configs}) >= 10
    assert {config.model.activation for config in configs} == {"softplus(5)", "gelu", "tanh"}
    assert {len(config.model.hidden) for config in configs} == {1, 2, 3}
    assert {config.members for config in configs} == {2, 3}


def test_every_block_has_every_pair_of_weights_once():
    crossed = [config for config in PLANS["digits"].configs if penalties(config.objective) is not None]
    blocks: dict[tuple, Counter] = {}
    for config in crossed:
        blocks.setdefault(block(config), Counter())[penalties(config.objective)] += 1
    expected = {(a, b): 1 for a in SIMILARITY_WEIGHTS for b in SIZE_WEIGHTS}
    assert len(blocks) >= 12
    assert all(dict(counts) == expected for counts in blocks.values())


def test_the_smoke_scale_is_small():
    assert len(PLANS["smoke"].configs) <= 9
