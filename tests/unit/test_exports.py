"""Each public name has one home."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import nagaya

ROOT = Path(nagaya.__file__).parent


def _reexports(path: Path) -> dict[str, str]:
    """Names in `__all__` of a package and the module that each comes from."""
    tree = ast.parse(path.read_text())
    public: set[str] = set()
    origin: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            origin |= {alias.asname or alias.name: node.module for alias in node.names}
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == [
            "__all__"
        ]:
            public = set(ast.literal_eval(node.value))
    return {name: origin.get(name, "") for name in public}


def test_a_name_is_exported_by_one_package_only() -> None:
    homes: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted(ROOT.rglob("__init__.py")):
        for name in _reexports(path):
            homes[name].append(str(path.parent.relative_to(ROOT.parent)))
    several = {name: packages for name, packages in homes.items() if len(packages) > 1}
    assert several == {}


def test_a_package_exports_only_what_lies_inside_it() -> None:
    for path in sorted(ROOT.rglob("__init__.py")):
        package = ".".join(path.parent.relative_to(ROOT.parent).parts)
        for name, module in _reexports(path).items():
            assert module in ("", package) or module.startswith(f"{package}."), (
                f"{package} exports {name} of {module}: import it from there"
            )


def test_the_public_names_of_nagaya_can_be_imported() -> None:
    for name in _reexports(ROOT / "__init__.py"):
        assert getattr(nagaya, name, None) is not None, name
