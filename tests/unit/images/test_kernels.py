"""Which kernels there are and which one is the default."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from nagaya.errors import NotFoundError, UnavailableError, UsageError
from nagaya.images import kernels
from nagaya.images.kernels import (
    build_named_kernel,
    debian_obstacle,
    default_uml_kernel,
    find_kernel,
    list_kernels,
)
from nagaya.paths import Paths


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """A host without Debian's package."""
    monkeypatch.setattr(kernels, "_DEBIAN_KERNEL", tmp_path / "linux.uml")
    monkeypatch.setattr(kernels, "_DEBIAN_MODULES", tmp_path / "modules")
    return Paths(tmp_path / "run", tmp_path / "state", tmp_path / "cache")


def install_ours(paths: Paths) -> Path:
    built = paths.kernels / "uml-0123456789ab"
    built.mkdir(parents=True)
    (built / "meta.json").write_text(json.dumps({"origin": "built from x", "key": "0", "cmdline": "lpj=5"}))
    (paths.kernels / "uml").symlink_to(built.name)
    return built


def test_without_any_kernel_the_error_says_how_to_get_one(paths: Paths) -> None:
    assert list_kernels(paths) == []
    with pytest.raises(UnavailableError) as caught:
        default_uml_kernel(paths)
    assert "nagaya kernel build uml" in caught.value.hint
    with pytest.raises(NotFoundError, match="there is: none"):
        find_kernel(paths, "uml")


def test_ours_is_the_default_by_the_path_of_its_build(paths: Paths) -> None:
    built = install_ours(paths)
    kernel = default_uml_kernel(paths)
    assert kernel.path == str(built / "vmlinux")
    assert kernel.cmdline == "lpj=5"
    assert kernel.builtin_virtio
    assert find_kernel(paths, "uml") == kernel


@pytest.mark.parametrize(("flags", "runs"), [("fpu avx512f", True), ("fpu avx512f amx_tile amx_int8", False)])
def test_amx_stops_debians_kernel(tmp_path: Path, flags: str, runs: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert (debian_obstacle(cpuinfo) == "") is runs


def test_only_what_we_have_a_configuration_for_is_built(paths: Paths) -> None:
    with pytest.raises(UsageError, match="'bsd' cannot be built here, only uml and kvm"):
        asyncio.run(build_named_kernel(paths, "bsd", lambda _step, _part: None))


def test_a_missing_kvm_kernel_says_how_to_get_it(paths: Paths) -> None:
    with pytest.raises(NotFoundError) as caught:
        find_kernel(paths, "kvm")
    assert "nagaya kernel build kvm" in caught.value.hint


def test_a_kvm_kernel_is_none_of_the_uml_engine(paths: Paths) -> None:
    built = paths.kernels / "kvm-0123456789ab"
    built.mkdir(parents=True)
    (built / "meta.json").write_text(json.dumps({"origin": "built from x", "key": "0", "cmdline": ""}))
    (paths.kernels / "kvm").symlink_to(built.name)
    assert find_kernel(paths, "kvm").path == str(built / "vmlinux")
    with pytest.raises(UnavailableError, match="no User-mode Linux kernel"):
        default_uml_kernel(paths)
