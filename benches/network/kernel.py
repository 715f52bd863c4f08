"""The kernel of all guests: our own User-mode Linux, with the NICs that other switches need built in as well.

Debian's has them too, but does not run where the CPU has AMX.
"""

from __future__ import annotations

import asyncio
import importlib.resources
import tempfile
from dataclasses import replace
from pathlib import Path

from benches.guest._nagaya import SHARED

from nagaya.images.kernel_build import UML, build_kernel
from nagaya.images.tools import in_thread
from nagaya.paths import Paths

NAME = "uml-bench"

# The vector transport looks up names of hosts with the C library, which cannot be linked statically.
WITHOUT = ("CONFIG_STATIC_LINK=y", "# CONFIG_UML_NET is not set")
WITH = ("CONFIG_UML_NET=y", "CONFIG_UML_NET_VECTOR=y", "CONFIG_UML_NET_DAEMON=y")


def bench_kernel() -> Path:
    """The kernel; builds it at its first use, which takes minutes."""
    paths = Paths(SHARED / "run", SHARED / "state", SHARED / "cache")
    ours = importlib.resources.files("nagaya.images") / "data" / UML.config
    lines = [line for line in ours.read_text().splitlines() if line not in WITHOUT]
    said = ""

    def report(step: str, _fraction: float | None) -> None:
        nonlocal said
        if step not in (said, "done"):
            print(f"the kernel of the bench: {step}", flush=True)
        said = step

    with tempfile.TemporaryDirectory(prefix="ngk") as directory:
        config = Path(directory) / "config"
        config.write_text("\n".join((*lines, *WITH, "")))
        flavour = replace(UML, name=NAME, config=str(config))
        asyncio.run(in_thread(lambda runner: build_kernel(flavour, paths, report, runner, rebuild=False)))
    return paths.kernels / NAME / "vmlinux"
