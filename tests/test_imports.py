"""Imports point one way, and the command line starts without the heavy libraries."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("datamodules", "heads", "foundation")
HEAVY = ("torch", "lightning", "pymatgen", "e3nn", "torch_geometric", "wandb", "ase", "pandas", "matplotlib", "sklearn")
# What each package may import of ours; heads sees the vocabulary alone, not how data are read.
ALLOWED = {
    "datamodules": ("datamodules",),
    "heads": ("heads", "datamodules.properties", "datamodules.tensors", "datamodules.errors"),
    "foundation": ("foundation", "heads", "datamodules"),
}


def our_imports(source: str, package: str) -> set[str]:
    """Dotted names of our modules that a source file imports, at any depth of the code.

    ``from a import b`` counts as ``a.b``, so that importing a module by its package is seen for what it is.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A relative import stays inside its own top-level package.
            base = node.module or "" if node.level == 0 else package
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return {name for name in names if name.split(".")[0] in OURS}


def forbidden(source: str, package: str) -> set[str]:
    def allowed(name: str) -> bool:
        return any(name == prefix or name.startswith(prefix + ".") for prefix in ALLOWED[package])

    return {name for name in our_imports(source, package) if not allowed(name)}


@pytest.mark.parametrize("package", OURS)
def test_imports_point_one_way(package: str) -> None:
    found = {
        path.relative_to(ROOT).as_posix(): names
        for path in sorted((ROOT / package).rglob("*.py"))
        if (names := forbidden(path.read_text(encoding="utf-8"), package))
    }
    assert not found


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("datamodules", "import heads"),
        ("datamodules", "from foundation.paths import config_path"),
        ("heads", "from datamodules.crystals import Crystal"),
        ("heads", "from datamodules import crystals"),
        ("heads", "import datamodules"),
        ("heads", "def later():\n    from foundation import paths"),
    ],
)
def test_the_check_sees_what_it_forbids(package: str, source: str) -> None:
    assert forbidden(source, package)


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("datamodules", "from datamodules.errors import InputError\nimport numpy"),
        ("heads", "from datamodules.properties import Property\nfrom heads.base import Head"),
        ("foundation", "import heads.scalar\nfrom datamodules import crystals\nfrom . import paths"),
    ],
)
def test_the_check_lets_the_rest_pass(package: str, source: str) -> None:
    assert not forbidden(source, package)


def test_the_command_line_starts_light() -> None:
    code = f"import sys, foundation.cli; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
