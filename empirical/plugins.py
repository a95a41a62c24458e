"""A user's own Python file that registers methods, attacks or data sets before a command looks for them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


class PluginError(ValueError):
    """A plug-in that cannot be used; the message is one line."""


def load_plugins(paths: Iterable[Path]) -> None:
    """Run Python files, each once in a process, for what they register.

    A file may call `empirical.objectives.register`, `empirical.attacks.register_attack` and
    `empirical.data.register_dataset`.

    Raises:
        PluginError: If there is no such file, or it fails, for instance because a name is taken.
    """
    for path in paths:
        _load(Path(path))


def _load(path: Path) -> None:
    if not path.is_file():
        raise PluginError(f"expected a Python file to plug in, found none at {path}")
    # Known to Python by its place, so that two files of one name do not meet and none is run twice.
    name = f"plugin:{path.resolve()}"
    if name in sys.modules:
        return
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"expected a Python file (.py) to plug in, got {path}")
    # Dataclasses look their module up while they are made.
    sys.modules[name] = module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the file does wrong is the user's to read
        del sys.modules[name]
        message = " ".join(str(error).split())
        raise PluginError(f"{path} failed: {type(error).__name__}: {message}") from error
