"""Imports point down, files fit in the head, and input is not checked by `assert` (STYLE.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import nagaya

ROOT = Path(nagaya.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if "data" not in path.relative_to(ROOT).parts)

# From the bottom up. A module imports its own package and lower rows, never its row's others.
LAYERS = (
    {
        "closing",
        "errors",
        "units",
        "paths",
        "progress",
        "kernel",
        "ansi",
        "yamlfile",
        "validation",
        "qmp",
        "settings",
        "detached",
        "oom",
        "traffic",
        "knobs",
        "_core",
    },
    {"spec"},
    {"abi"},
    {"hw", "seccomp"},
    {"kvm"},
    {"plane", "agent"},
    {"resources"},
    {"engines", "images", "networks"},
    {"specfile"},
    {"models", "connection"},
    {"daemon"},
    {"sdk"},
    {"doctor", "top"},
    {"cli", "web"},
)
ROW = {name: row for row, names in enumerate(LAYERS) for name in names}

# What stands beside the rows, and why.
FREE = {
    ("testing", "*"): "shipped fakes implement the protocols of every layer",
}
CLIENT = {"sdk", "cli", "doctor", "top"}  # what runs in the user's terminal
CLIENT_MAY_USE_OF_DAEMON = {"nagaya.daemon.models", "nagaya.daemon.launch"}
MAX_LINES = 470  # "about 400"


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything below `nagaya` that the module imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "nagaya":
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import hides where it points"
            if node.module and node.module.split(".")[0] == "nagaya":
                for alias in node.names:
                    yield node.lineno, f"{node.module}.{alias.name}"


def _part(dotted: str) -> str:
    """`nagaya.daemon.api` → `daemon`; `nagaya` and its `__version__` → ``."""
    pieces = dotted.split(".")
    return pieces[1] if len(pieces) > 1 and pieces[1] != "__version__" else ""


def _name(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = _name(path)
    if own == "__init__" or (own, "*") in FREE:
        return
    assert own in ROW, f"{own} is in no layer: say in LAYERS where it belongs"
    for line, dotted in _imports(path):
        other = _part(dotted)
        if other in ("", own):
            continue
        where = f"{path.relative_to(ROOT)}:{line}: {own} imports {dotted}"
        assert other in ROW, f"{where}, which is in no layer"
        same_base = ROW[own] == ROW[other] == 0
        assert ROW[other] < ROW[own] or same_base, f"{where}, which is not below it"
        if own in CLIENT and other == "daemon":
            assert any(dotted.startswith(allowed) for allowed in CLIENT_MAY_USE_OF_DAEMON), (
                f"{where}; a client may import only {', '.join(sorted(CLIENT_MAY_USE_OF_DAEMON))}"
            )
        if other == "_core":
            assert own in ("kvm", "plane", "daemon", "seccomp"), f"{where}; wrap it in nagaya.plane"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_fits_in_the_head(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines, {MAX_LINES} are the bound"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_assert_no_bare_except_no_star_import(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        line = getattr(node, "lineno", 0)
        where = f"{path.relative_to(ROOT)}:{line}"
        assert not isinstance(node, ast.Assert), f"{where}: raise an error of nagaya.errors instead of assert"
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{where}: a bare except"
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), f"{where}: a star import"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_public_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text(), str(path))
    if path.name != "__init__.py" or tree.body:
        assert ast.get_docstring(tree), f"{path.relative_to(ROOT)} does not say what it is"
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
            where = f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}"
            assert ast.get_docstring(node), f"{where} is public and has no docstring"
