"""Who talks: User-mode Linux guests that differ in nothing but their NIC, and namespaces of the host.

A guest has the address that it was given, and answers on a port with a shell, which the host reaches through
the network that is measured. It has a CPU: all of its processes run there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nagaya.closing import Closing
from nagaya.errors import TimeoutExpiredError, UnavailableError
from nagaya.testing.netns import Namespace

SHELL_PORT = 2000
ECHO_PORT = 2001
PROGRAMS = {
    "iperf3": "iperf3",
    "vde_switch": "vde2",
    "busybox": "busybox-static",
    "cpio": "cpio",
    "cc": "build-essential",
}

INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for word in $(cat /proc/cmdline); do
    case $word in address=*) address=${{word#address=}} ;; esac
done
card=$(ls /sys/class/net | grep -m1 -e '^eth' -e '^vec')
ip link set lo up
ip address add $address/24 dev $card
ip link set $card up
iperf3 -s -D
roundtrip serve {ECHO_PORT} &
exec nc -ll -p {SHELL_PORT} -e /bin/sh
"""


class Place(Protocol):
    """Where one end of a measurement runs."""

    @property
    def address(self) -> str:
        """Its IPv4 address."""

    def run(self, command: str) -> str:
        """What a shell command prints there."""


@dataclass(frozen=True, slots=True)
class Spot:
    """A namespace of the host, on CPU `cpu`; programs of `directory` are found there."""

    namespace: Namespace
    address: str
    cpu: int
    directory: Path

    def run(self, command: str) -> str:
        """What a shell command prints. Raises `CalledProcessError`."""
        return self.namespace.run(
            f"PATH=$PATH:{self.directory}; taskset -cp {self.cpu} $$ >/dev/null; {command}", timeout=60
        )


class Guest(Closing):
    """A running guest on CPU `cpu`; `nic` is the part of its command line that gives it its NIC."""

    def __init__(
        self, kernel: Path, directory: Path, host: Namespace, address: str, cpu: int, nic: Sequence[str]
    ) -> None:
        self.address = address
        self._host = host
        self._log = directory / f"{address}.log"
        command = [
            "taskset",
            "-c",
            str(cpu),
            "setarch",
            "-R",
            str(kernel),
            "mem=512M",
            f"initrd={directory}/initrd",
        ]
        command += ["con=null", "con0=null,fd:1", f"uml_dir={directory}", f"address={address}", *nic]
        with host.entered(), self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={"TMPDIR": "/dev/shm"},  # where its memory is
            )

    @property
    def pid(self) -> int:
        """Of the first of its processes, which leads a session with the others."""
        return self._process.pid

    def run(self, command: str) -> str:
        """What a shell command prints. Raises `TimeoutExpiredError` if the guest does not answer."""
        with self._connect() as connection:
            connection.settimeout(60)
            connection.sendall(f"{command}; exit\n".encode())
            answer = bytearray()
            while part := connection.recv(65536):
                answer += part
        return answer.decode(errors="replace")

    def close(self) -> None:
        """End all of its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _connect(self) -> socket.socket:
        deadline = time.monotonic() + 20
        while True:
            with self._host.entered():
                connection = socket.socket()
            connection.settimeout(1)
            try:
                connection.connect((self.address, SHELL_PORT))
            except OSError as error:
                connection.close()
                if self._process.poll() is not None or time.monotonic() > deadline:
                    tail = self._log.read_text(errors="replace")[-1000:]
                    raise TimeoutExpiredError(f"the guest {self.address} does not answer: {tail}") from error
                time.sleep(0.05)
            else:
                return connection


def cpu_time(pids: Collection[int]) -> float:
    """CPU seconds of processes, and of those in the sessions that they lead (proc(5), stat: 6, 14 and 15)."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            fields = stat.read_text().rpartition(")")[2].split()
            if int(stat.parent.name) in pids or int(fields[3]) in pids:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A short-lived directory with `initrd`, which guests boot, and the program `roundtrip`.

    Raises `UnavailableError` naming the packages that are missing.
    """
    missing = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if missing:
        raise UnavailableError(
            f"these benches need what is not installed: {', '.join(missing)}",
            hint=f"apt-get install --no-install-recommends {' '.join(missing)}",
        )
    # Short: a unix socket's path holds 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ng", dir="/tmp") as name:
        directory = Path(name)
        source = Path(__file__).with_name("roundtrip.c")
        subprocess.run(["cc", "-O2", "-static", "-o", directory / "roundtrip", source], check=True)
        _write_initrd(directory)
        yield directory


def _write_initrd(directory: Path) -> None:
    root = directory / "root"
    for name in ("bin", "dev", "proc", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    iperf3 = str(shutil.which("iperf3"))
    for program in (str(shutil.which("busybox")), directory / "roundtrip", iperf3):
        shutil.copy(program, root / "bin")
    linked = subprocess.run(["ldd", iperf3], check=True, capture_output=True, text=True).stdout
    for library in re.findall(r"/\S+", linked):
        place = root / library[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, place)
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    with (directory / "initrd").open("wb") as archive:
        pack = ["cpio", "-o", "-H", "newc", "--quiet"]
        subprocess.run(pack, cwd=root, input=names.encode(), stdout=archive, check=True)
