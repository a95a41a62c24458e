"""The committed pages are what the definitions say."""

import dataclasses
import re
from pathlib import Path

import pytest

from bounds import STATEMENTS, pages

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def texts():
    return pages.pages(DOCS / "proofs")


def test_committed_pages_are_up_to_date(texts):
    committed = {path.name: path.read_text(encoding="utf-8") for path in (DOCS / "statements").glob("*.md")}
    stale = [name for name in texts if committed.get(name) != texts[name]]
    assert not stale, f"run `python -m bounds.pages docs/statements`: {stale}"
    assert set(committed) == set(texts)


def test_every_statement_has_a_page_with_all_its_parts(texts):
    for key, statement in STATEMENTS.items():
        text = texts[f"{key}.md"]
        assert statement.latex() in text
        assert all(f"`{name}`" in text for name in statement.names)
        assert all(hypothesis.words in text for hypothesis in statement.hypotheses)
        assert statement.reason in text
        assert "prove(" in text
        assert f"{key}.md" in texts["README.md"]


def test_an_edited_formula_changes_the_page(texts):
    statement = STATEMENTS["lemma-5"]
    edited = dataclasses.replace(statement, expression=statement.expression + 1)
    assert pages.page(edited, "proof") != pages.page(statement, "proof")


def test_linked_files_exist(texts):
    for name, text in texts.items():
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert (DOCS / "statements" / link).exists(), f"{link} in {name}"


def test_tables_keep_their_columns(texts):
    """A vertical bar inside a cell is escaped, or the table would gain a column."""
    for name, text in texts.items():
        rows = [line for line in text.splitlines() if line.startswith("| ")]
        if name != "definitions.md":
            assert len({line.replace(r"\|", "").count("|") for line in rows}) == 1, name


def test_writing_removes_pages_of_statements_that_are_gone(tmp_path):
    (tmp_path / "theorem-9.md").write_text("old")
    pages.write(tmp_path, {"lemma-5.md": "new"})
    assert [path.name for path in tmp_path.iterdir()] == ["lemma-5.md"]


def test_command_line(tmp_path, texts):
    (tmp_path / "proofs").symlink_to(DOCS / "proofs")
    assert pages.main([str(tmp_path / "statements")]) == 0
    assert (tmp_path / "statements" / "lemma-5.md").read_text(encoding="utf-8") == texts["lemma-5.md"]


def test_a_missing_proof_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        pages.pages(tmp_path)
