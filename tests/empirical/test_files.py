import os

import pytest

from empirical.files import ResultsError, parse_json, read_results, write_bytes, write_json, write_text


def test_write_creates_folders_and_leaves_nothing_else(tmp_path):
    """A new file lies alone in its new folder."""
    path = tmp_path / "new" / "folder" / "note.txt"
    write_text(path, "é\n")
    assert path.read_bytes() == b"\xc3\xa9\n"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_crash_keeps_the_previous_file(tmp_path, monkeypatch, step):
    """A failure before the last step leaves the old content and no temporary file."""
    path = tmp_path / "note.txt"
    write_bytes(path, b"old")

    def crash(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, crash)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_written_before_it_is_named(tmp_path, monkeypatch):
    """The content is complete and flushed at the moment it takes the name over."""
    path, events = tmp_path / "note.txt", []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), fsync(fd)))

    def watched(source, destination):
        events.append((source.read_bytes(), source.parent))
        replace(source, destination)

    monkeypatch.setattr(os, "replace", watched)
    write_bytes(path, b"content")
    assert events[:2] == ["fsync", (b"content", tmp_path)]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_is_strict(tmp_path, number):
    """NaN and infinities are neither written, replacing a good file, nor read."""
    path = tmp_path / "result.json"
    write_json(path, {"a": [1, 2.5, None]})
    with pytest.raises(ValueError, match="expected finite numbers for strict JSON"):
        write_json(path, {"a": number})
    assert parse_json(path.read_text()) == {"a": [1, 2.5, None]}
    with pytest.raises(ValueError, match="strict JSON"):
        parse_json(f'{{"a": {str(number).replace("nan", "NaN").replace("inf", "Infinity")}}}')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "found nothing there"),
        ("{", "expected JSON"),
        ('{"schema": "a/1", "value": NaN}', "NaN"),
        ("[]", "got None"),
        ('{"schema": "a/3"}', "expected schema 'a/1' or 'a/2' .*got 'a/3'"),
    ],
)
def test_results_say_what_they_hold(tmp_path, text, message):
    path = tmp_path / "results.json"
    write_text(path, '{"schema": "a/2", "value": 1}')
    assert read_results(path, "a/1", "a/2") == {"schema": "a/2", "value": 1}
    path.unlink()
    if text is not None:
        write_text(path, text)
    with pytest.raises(ResultsError, match=message):
        read_results(path, "a/1", "a/2")
