"""The packages import in one direction only: bounds <- estimators <- empirical."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "bounds": {"bounds"},
    "estimators": {"bounds", "estimators"},
    "empirical": {"bounds", "estimators", "empirical"},
}
HEAVY = {"torch", "torchvision", "sklearn", "mlxtend", "matplotlib"}


def imported_packages(path: Path) -> set[str]:
    """Top-level names that a file imports, relative imports resolved."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(path.relative_to(ROOT).parts[0] if node.level else (node.module or "").split(".")[0])
    return names


def sources(package: str) -> list[Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"no Python files found in {package}"
    return files


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_import_direction(package):
    for path in sources(package):
        forbidden = (imported_packages(path) & set(MAY_IMPORT)) - MAY_IMPORT[package]
        assert not forbidden, f"{path.relative_to(ROOT)} imports {forbidden}"


def test_bounds_never_imports_a_deep_learning_library():
    for path in sources("bounds"):
        assert not imported_packages(path) & HEAVY, path


def test_a_forbidden_import_is_seen(tmp_path, monkeypatch):
    (tmp_path / "bounds").mkdir()
    bad = tmp_path / "bounds" / "bad.py"
    bad.write_text("def f():\n    from empirical.data import load_dataset\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert imported_packages(bad) == {"empirical"}


@pytest.mark.parametrize(
    "package", ["bounds", "empirical", "empirical.cli", "empirical.plots", "empirical.report.page"]
)
def test_importing_a_package_does_not_import_torch(package):
    code = f"import sys, {package}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_public_functions_of_empirical_are_there():
    import empirical
    from empirical.comparison.compare import compare
    from empirical.training import train
    from empirical.transfer import measure_transfer

    assert empirical.compare is compare
    assert empirical.train is train
    assert empirical.measure_transfer is measure_transfer
    with pytest.raises(AttributeError, match="no attribute 'compere'"):
        _ = empirical.compere
