"""Which engine runs a machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nagaya.engines.kvm import KvmEngine
from nagaya.engines.select import Engines
from nagaya.engines.uml import UmlEngine
from nagaya.errors import UnsupportedError
from nagaya.paths import Paths
from nagaya.spec import MachineSpec


def engines(top: Path, *, fast: bool, kernel: bool) -> Engines:
    paths = Paths(top / "r", top / "s", top / "c")
    if kernel:
        (paths.kernels / "kvm").mkdir(parents=True)
    return Engines(UmlEngine(paths), KvmEngine(paths), lambda: fast, paths.kernels)


@pytest.mark.parametrize("name", ["uml", "kvm"])
def test_an_engine_that_is_named_is_taken(tmp_path: Path, name: Any) -> None:
    made = engines(tmp_path, fast=False, kernel=False)
    assert made.select(MachineSpec(name="web", engine=name)) is getattr(made, name)


def test_an_engine_to_come_says_so(tmp_path: Path) -> None:
    made = engines(tmp_path, fast=True, kernel=True)
    with pytest.raises(UnsupportedError, match="web: engine: 'qemu' is not built yet"):
        made.select(MachineSpec(name="web", engine="qemu"))


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("fast", "kernel", "fields", "expected"),
    [
        (True, True, {}, "kvm"),
        (True, True, {"cpus": 2, "boot": {"kernel": "kvm"}}, "kvm"),
        (False, True, {}, "uml"),
        (True, False, {}, "uml"),
        (True, True, {"boot": {"kernel": "uml"}}, "uml"),
        (True, True, {"boot": {"kernel": "/boot/vmlinuz"}}, "uml"),
        (True, True, {"cpus": 1024}, "uml"),
    ],
)
def test_auto_is_kvm_where_the_cpu_runs_guest_kernels_and_the_machine_fits(
    tmp_path: Path, fast: bool, kernel: bool, fields: dict[str, Any], expected: str
) -> None:
    made = engines(tmp_path, fast=fast, kernel=kernel)
    assert made.select(MachineSpec(name="web", **fields)).name == expected
