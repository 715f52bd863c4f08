"""The peer of `packets`: DPDK's vhost backend. testpmd joins two of its ports, and polls them on one CPU.

Debian's `dpdk-dev` would install two hundred packages to run one program: they are unpacked into a directory.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nagaya.errors import UnavailableError

# What testpmd needs of the packages that Debian would install beside it.
_UNUSED = ("-dev", "systemd", "udev", "rdma", "python")
_LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
_READY = 20.0  # s; it makes its buffers first


class Testpmd:
    """A running testpmd, stopped but while it is `awake`: it takes all of its CPU, whoever needs it."""

    def __init__(self, process: subprocess.Popen[bytes], sockets: tuple[Path, Path]) -> None:
        self._process = process
        self.sockets = sockets
        self.pid = process.pid
        self.pause()

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run for a while."""
        self._process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.pause()


@contextmanager
def testpmd(directory: Path, cpu: int, other_cpu: int) -> Iterator[Testpmd]:
    """testpmd in `directory`, forwarding on `cpu`; the thread that waits for its end is on `other_cpu`."""
    root = _unpacked(directory / "dpdk")
    sockets = (directory / "dpdk0.sock", directory / "dpdk1.sock")
    # stdbuf: what it says of its state is to reach the log when it says it.
    command = [
        "stdbuf",
        "-oL",
        str(root / "usr/bin/dpdk-testpmd"),
        "-l",
        f"{other_cpu},{cpu}",
        "--main-lcore",
        str(other_cpu),
    ]
    command += ["--no-huge", "-m", "256", "--no-pci", "--no-telemetry", f"--file-prefix=bench{os.getpid()}"]
    # By bare names: it refuses a path below a directory that others can write, as /tmp is.
    command += ["-d", "librte_mempool_ring.so.23", "-d", "librte_net_vhost.so.23"]
    for number, path in enumerate(sockets):
        command += ["--vdev", f"net_vhost{number},iface={path},queues=1"]
    command += ["--", "--forward-mode=io", "--auto-start", "--disable-link-check", "--no-mlockall"]
    command += ["--total-num-mbufs=16384"]
    environment = os.environ | {"LD_LIBRARY_PATH": ":".join(str(root / part) for part in _LIBRARIES)}
    log = directory / "testpmd.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        _await_ready(process, log)
        yield Testpmd(process, sockets)
    finally:
        process.kill()
        process.communicate()


def _await_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until it forwards."""
    deadline = time.monotonic() + _READY
    while b"Press enter to exit" not in log.read_bytes():
        if process.poll() is not None or time.monotonic() > deadline:
            text = log.read_text(errors="replace")[-2000:]
            raise UnavailableError(f"dpdk-testpmd does not forward after {_READY:.0f} s:\n{text}")
        time.sleep(0.05)


def _unpacked(root: Path) -> Path:
    """Debian's packages of testpmd, downloaded and unpacked below `root`."""
    downloads = root / "packages"
    downloads.mkdir(parents=True)
    # As `apt-get install` would, but nothing is installed.
    plan = _output(["apt-get", "install", "--simulate", "--no-install-recommends", "dpdk-dev"])
    words = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
    wanted = [word for word in words if not any(part in word for part in _UNUSED)]
    subprocess.run(
        ["apt-get", "download", "--quiet", "dpdk-dev", *wanted],
        cwd=downloads,
        check=True,
        capture_output=True,
    )
    for package in downloads.iterdir():
        subprocess.run(["dpkg-deb", "--extract", str(package), str(root)], check=True)
    shutil.rmtree(downloads)
    return root


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
