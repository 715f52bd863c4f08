"""Start: `nagaya start` to the first user-space output, beside the same kernel and initramfs bare.

The initramfs prints one line and switches the machine off, so nothing but the start is in the figure. The
peer is the kernel's executable, pinned to one CPU like ours, its console on a pipe. Neither has a network; of
ours a machine that has one, the first on it, is timed besides. All are timed from outside.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benches._table import Row, report
from benches.guest._nagaya import MARKER, console_log, own_nagaya, wait_for_output
from nagaya.images.initramfs import write_boot_test
from nagaya.images.kernels import default_uml_kernel
from nagaya.kernel import Kernel
from nagaya.sdk import Client, Machine

ROUNDS = 9
MEMORY_MIB = 128


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Print the table and return its rows."""
    with tempfile.TemporaryDirectory(prefix="ngb", dir="/tmp") as directory, own_nagaya() as client:
        Path(directory).chmod(0o755)
        initrd = Path(directory) / "initrd"
        write_boot_test(initrd)
        initrd.chmod(0o644)
        kernel = default_uml_kernel(client.paths)
        spec = {"memory": f"{MEMORY_MIB}MiB", "boot": {"initrd": str(initrd)}}
        machine = client.machines.create({"name": "start", "nics": [], **spec})
        first = client.machines.create({"name": "first", **spec})
        command, request, network, bare = [], [], [], []
        for _ in range(ROUNDS):
            bare.append(_bare(kernel, initrd))
            command.append(_ours(client, machine, by_command=True))
            request.append(_ours(client, machine, by_command=False))
            network.append(_ours(client, first, by_command=False))
    rows = [
        Row("nagaya start NAME", command, {"bare": bare}, "ms", "lower", {"bare": 1.10}),
        Row("the API's request", request, {"bare": bare}, "ms", "lower", {"bare": 1.10}),
        Row("the same, and its network comes up", network, {"bare": bare}, "ms", "lower"),
    ]
    return report("Start: ms to the first line of user space", rows)


def _ours(client: Client, machine: Machine, *, by_command: bool) -> float:
    log = console_log(client, machine)
    log.unlink(missing_ok=True)
    began = time.monotonic()
    if by_command:
        environment = {**os.environ, **client.paths.environment()}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # a user's second command finds compiled modules
        process = subprocess.Popen(_command(machine.name), env=environment, stdout=subprocess.DEVNULL)
        seen = wait_for_output(log, MARKER, 5)
        process.wait()
    else:
        machine.start()
        seen = wait_for_output(log, MARKER, 5)
    machine.wait("stopped")
    return (seen - began) * 1e3


def _command(name: str) -> list[str]:
    """`nagaya start NAME` as installed beside this Python, or from the checkout."""
    program = Path(sys.executable).with_name("nagaya")
    return [*([str(program)] if program.exists() else [sys.executable, "-m", "nagaya.cli"]), "start", name]


def _bare(kernel: Kernel, initrd: Path) -> float:
    with tempfile.TemporaryDirectory(prefix="ngb", dir="/dev/shm") as memory:
        words = [
            "taskset",
            "-c",
            "1",
            kernel.path,
            f"mem={MEMORY_MIB}M",
            f"initrd={initrd}",
            f"uml_dir={memory}/",
        ]
        words += ["con=none", "con0=null,fd:1", "ssl=none", "quiet", *kernel.cmdline.split()]
        began = time.monotonic()
        with subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"TMPDIR": memory, "PATH": os.environ["PATH"]},
        ) as process:
            text = b""
            while MARKER not in text:
                piece = os.read(process.stdout.fileno(), 4096) if process.stdout else b""
                if not piece:
                    raise RuntimeError(
                        f"the bare kernel ended without its line: {text.decode(errors='replace')}"
                    )
                text += piece
            seen = time.monotonic()
            while process.stdout and os.read(process.stdout.fileno(), 4096):
                pass
        return (seen - began) * 1e3


if __name__ == "__main__":
    main()
