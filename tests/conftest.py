"""What the tests share: short-lived directories, and guest kernels and images that are built once.

Kernels and images are kept outside the checkout, in `NAGAYA_TEST_STATE` (default /var/tmp/nagaya-test),
because they take minutes. A machine that has none builds them in the first test that asks.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from nagaya.images.build import build
from nagaya.images.kernels import build_kvm_kernel, build_uml_kernel
from nagaya.images.recipe import Recipe
from nagaya.images.store import Image
from nagaya.kernel import Kernel
from nagaya.paths import Paths
from nagaya.testing.scratch import begin_run, make_directory, sweep

SHARED = Path(os.environ.get("NAGAYA_TEST_STATE", "/var/tmp/nagaya-test"))

# The same commit has the same result: property tests look at the same examples in each run.
# `make explore` looks for new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("NAGAYA_PROPERTIES", "same"))


# Machines of tests have a NIC if the test says so, and then in a network namespace of the test's own.
os.environ["NAGAYA_DEFAULT_NETWORK"] = "none"


def pytest_configure() -> None:
    """What a killed run left is ended before this one begins."""
    begin_run()
    for done in sweep():
        print(done)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this host cannot run; on the CI host that is only `vt-x`."""
    facts = {
        "root": (os.geteuid() == 0, "needs root"),
        "kvm": (os.access("/dev/kvm", os.R_OK | os.W_OK), "needs read and write access to /dev/kvm"),
        "qemu": (shutil.which("qemu-img") is not None, "needs qemu-img (package qemu-utils)"),
        "vt-x": (_has_vtx(), "needs a CPU with VT-x or AMD-V"),
    }
    for item in items:
        for marker, (present, reason) in facts.items():
            if not present and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def _has_vtx() -> bool:
    flags = Path("/proc/cpuinfo").read_text().split()
    return "vmx" in flags or "svm" in flags


@pytest.fixture(scope="session")
def shared_paths() -> Paths:
    """Where kernels and images are built once for all tests."""
    shared = Paths(SHARED / "run", SHARED / "state", SHARED / "cache")
    for directory in (shared.run, shared.images, shared.kernels, shared.cache):
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    return shared


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short: a unix socket's path holds 107 bytes."""
    top = make_directory()
    yield top
    shutil.rmtree(top)


@pytest.fixture
def paths(shared_paths: Paths) -> Iterator[Paths]:
    """Directories of a Nagaya of its own that sees the shared kernels and images; their paths are short."""
    top = make_directory()
    top.chmod(0o755)
    own = Paths(top / "r", top / "s", shared_paths.cache)
    own.run.mkdir(mode=0o755)
    own.state.mkdir(mode=0o755)
    own.images.symlink_to(shared_paths.images)
    own.kernels.symlink_to(shared_paths.kernels)
    yield own
    shutil.rmtree(top)


def _quiet(_step: str, _fraction: float | None) -> None:
    """A progress callback for builds inside tests."""


@pytest.fixture(scope="session")
def uml_kernel(shared_paths: Paths) -> Kernel:
    """Our own User-mode Linux kernel."""
    return asyncio.run(build_uml_kernel(shared_paths, _quiet))


@pytest.fixture(scope="session")
def kvm_kernel(shared_paths: Paths) -> Kernel:
    """Our own Linux for machines of the kvm engine."""
    return asyncio.run(build_kvm_kernel(shared_paths, _quiet))


@pytest.fixture(scope="session")
def busybox_image(shared_paths: Paths) -> Image:
    """The minimal guest."""
    return asyncio.run(build(shared_paths, "busybox", Recipe(kind="busybox"), _quiet))


@pytest.fixture(scope="session")
def debian_image(shared_paths: Paths) -> Image:
    """Debian with systemd."""
    return asyncio.run(build(shared_paths, "debian", Recipe(kind="debian"), _quiet))
