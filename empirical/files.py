"""Files that are either the old ones or the new ones, never half of each."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any


class ResultsError(ValueError):
    """A file of results that cannot be used; the message is one line."""


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file atomically, creating its folder where that is missing.

    The bytes go to a temporary file in the same folder, reach the disk, and take the name over in one step.
    A crash before that step leaves the previous file as it was.

    Args:
        path: File to create or to replace.
        data: Its whole content.

    Raises:
        OSError: If the folder cannot be written to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # The new name itself is on the disk only once the folder is; only POSIX can open a folder to say so.
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file atomically (see `write_bytes`).

    Raises:
        OSError: If the folder cannot be written to.
    """
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write strict JSON atomically (see `write_bytes`).

    Raises:
        ValueError: If the value holds NaN or an infinity, which JSON has no way to write.
        TypeError: If the value holds something that JSON has no type for.
        OSError: If the folder cannot be written to.
    """
    write_text(path, json_text(value) + "\n")


def json_text(value: Any) -> str:
    """Strict JSON, indented.

    Raises:
        ValueError: If the value holds NaN or an infinity, which JSON has no way to write.
        TypeError: If the value holds something that JSON has no type for.
    """
    try:
        return json.dumps(value, allow_nan=False, indent=2)
    except ValueError as error:
        raise ValueError(f"expected finite numbers for strict JSON, got: {error}") from None


def parse_json(text: str) -> Any:
    """What strict JSON says.

    Raises:
        ValueError: If the text is not JSON, or uses the NaN and Infinity that Python would let through.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"expected strict JSON, got the constant {constant}")

    return json.loads(text, parse_constant=refuse)


def read_results(path: str | os.PathLike[str], *schemas: str) -> dict[str, Any]:
    """A JSON object that says by its field "schema" what it holds.

    Args:
        path: The file.
        schemas: What may be in it.

    Raises:
        ResultsError: If the file is missing, is not strict JSON, or has another schema.
    """
    try:
        fields = parse_json(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultsError(f"expected results in {path}, found nothing there") from None
    except (OSError, ValueError) as error:
        raise ResultsError(f"expected JSON in {path}, got: {error}") from None
    found = fields.get("schema") if isinstance(fields, dict) else None
    if found not in schemas:
        raise ResultsError(f"expected schema {' or '.join(map(repr, schemas))} in {path}, got {found!r}")
    return dict(fields)
