"""Who serves the disk: our plane, qemu-storage-daemon, and fio, which needs nobody. All on one file."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from benches.disk.disks import Disk

from nagaya import _core
from nagaya.plane import worker

_END_S = 5.0  # that a peer has to end in order


# For `own_cpus`: what serves, and who asks.
BACKEND_CPU = 0
ALONE = ("chrt", "--fifo", "1", "taskset", "--cpu-list", "1")


@dataclass(frozen=True, slots=True)
class Load:
    """What the client asks for in one measurement."""

    op: Literal["read", "write"]
    depth: int
    mode: Literal["block", "poll"]
    seconds: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement."""

    iops: float
    cpu_us: float  # CPU time of the backend for one I/O, microseconds; fio: of fio itself
    p99_us: float


class Target(Protocol):
    """Something that a load can be put on."""

    def measure(self, load: Load, seed: int = 1) -> Sample: ...  # which blocks, odd; the same for all

    def own_cpus(self) -> None: ...


class Client:
    """`vub` against a vhost-user socket; the CPU time is that of the backend's process."""

    def __init__(self, vub: Path, socket_path: Path, pid: int) -> None:
        self._vub = vub
        self._socket = socket_path
        self._pid = pid
        self._prefix: tuple[str, ...] = ()

    def own_cpus(self) -> None:
        """Have the backend and the client a CPU each that nobody else gets while they want it."""
        self._prefix = ALONE
        for task in Path(f"/proc/{self._pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {BACKEND_CPU})
            os.sched_setscheduler(int(task.name), os.SCHED_FIFO, os.sched_param(1))

    @contextmanager
    def trickle(self, rate: int) -> Iterator[None]:
        """Reads, `rate` a second, one after the other, meanwhile."""
        command = [str(self._vub), "bench", "--socket", str(self._socket), "--op", "read", "--mode", "block"]
        command += ["--depth", "1", "--rate", str(rate), "--seconds", "600"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            yield
        finally:
            end(process)

    def measure(self, load: Load, seed: int = 1) -> Sample:
        command = [
            *self._prefix,
            str(self._vub),
            "bench",
            "--socket",
            str(self._socket),
            "--op",
            load.op,
            "--mode",
            load.mode,
        ]
        command += ["--depth", str(load.depth), "--seconds", str(load.seconds), "--seed", str(seed)]
        before = cpu_seconds(self._pid)
        output = subprocess.run(command, check=True, capture_output=True, timeout=load.seconds + 30).stdout
        cpu = cpu_seconds(self._pid) - before
        result = json.loads(output)
        return Sample(result["iops"], cpu * 1e6 / result["ios"], result["latency_us"]["p99"])


class Fio:
    """fio with io_uring on the file itself: what the host gives without any virtual machine."""

    def __init__(self, file: Path, direct: bool) -> None:
        self._file = file
        self._direct = direct
        self._prefix: tuple[str, ...] = ()

    def own_cpus(self) -> None:
        """Run where other targets' clients do."""
        self._prefix = ALONE

    def measure(self, load: Load, seed: int = 1) -> Sample:
        command = [
            *self._prefix,
            "fio",
            "--name=bench",
            f"--filename={self._file}",
            "--ioengine=io_uring",
            "--bs=4k",
        ]
        command += [f"--direct={self._direct:d}", f"--rw=rand{load.op}", f"--iodepth={load.depth}"]
        command += [
            f"--runtime={round(load.seconds * 1000)}ms",
            "--time_based",
            "--norandommap",
            f"--randseed={seed}",
        ]
        command += ["--invalidate=0", "--end_fsync=0", "--output-format=json"]
        output = subprocess.run(command, check=True, capture_output=True, timeout=load.seconds + 30).stdout
        job = json.loads(output)["jobs"][0]
        side: Mapping[str, Any] = job[load.op]
        cpu = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1e3
        p99_us = side["clat_ns"]["percentile"]["99.000000"] / 1e3
        return Sample(side["iops"], cpu * 1e6 / side["total_ios"], p99_us)


class Fresh:
    """A backend started anew for each measurement, on a disk made anew."""

    def __init__(self, backend: Callable[[], AbstractContextManager[Client]]) -> None:
        self._backend = backend
        self._alone = False

    def own_cpus(self) -> None:
        """As `Client.own_cpus`, for each backend to come."""
        self._alone = True

    def measure(self, load: Load, seed: int = 1) -> Sample:
        with self._backend() as client:
            if self._alone:
                client.own_cpus()
            return client.measure(load, seed)


@contextmanager
def our_plane(vub: Path, disk: Disk, directory: Path, *, arbitrated: bool = True) -> Iterator[Client]:
    """The Rust plane with one worker, as the holder runs it."""
    with our_machines(vub, disk, directory, ("ours",), arbitrated=arbitrated) as (client,):
        yield client


@contextmanager
def our_machines(
    vub: Path, disk: Disk, directory: Path, names: Sequence[str], *, arbitrated: bool = True
) -> Iterator[list[Client]]:
    """Several machines with the same disk on one worker. Not `arbitrated`, all requests go at once."""
    plane = _core.Plane([sys.executable, "-I", "-S", str(worker.__file__), str(_core.__file__)])
    flags = os.O_RDWR | (os.O_DIRECT if disk.direct else 0)
    fds = [os.open(file, flags if top == 0 else os.O_RDONLY) for top, file in enumerate(disk.files)]
    paths = [directory / f"{name}.sock" for name in names]
    try:
        for name, path in zip(names, paths, strict=True):
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
                listener.listen(1)
                config = {
                    "driver": "blk", "id": f"{name}/disk0", "worker": "bench", "queues": 1, "queue_size": 256,
                    "read_only": False, "serial": "", "direct": disk.direct, "layers": disk.layers,
                    "arbitrated": arbitrated,
                }  # fmt: skip
                plane.device_add(json.dumps(config), [listener.fileno(), *fds])
        yield [Client(vub, path, worker_pid(plane)) for path in paths]
    finally:
        for fd in fds:
            os.close(fd)
        plane.close()
        for path in paths:
            path.unlink(missing_ok=True)


@contextmanager
def qemu_storage_daemon(vub: Path, disk: Disk, directory: Path) -> Iterator[Client]:
    """The peer in its best configuration: io_uring, and an iothread, which polls adaptively."""
    path = directory / "qsd.sock"
    export = f"type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={path}"
    export += ",writable=on,num-queues=1,iothread=iothread"
    command = ["qemu-storage-daemon", "--object", "iothread,id=iothread", "--blockdev", disk.blockdev]
    process = subprocess.Popen([*command, "--export", export])
    try:
        await_socket(path, process)
        yield Client(vub, path, process.pid)
    finally:
        end(process)
        path.unlink(missing_ok=True)


@contextmanager
def benched_file(path: Path, size: int) -> Iterator[Path]:
    """A file of `size` bytes, every block written, so that no measurement allocates.

    An existing file of that size is used as it is and kept.
    """
    if path.exists() and path.stat().st_size == size:
        yield path
        return
    chunk = os.urandom(1 << 20)
    with path.open("xb") as file:
        try:
            for _ in range(size // len(chunk)):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
            yield path
        finally:
            path.unlink()


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process, from the scheduler's own account (nanoseconds, not ticks)."""
    return _schedstat(pid, 0)


def cpu_wait_seconds(pid: int) -> float:
    """For how long threads of a process were ready and had no CPU, all together."""
    return _schedstat(pid, 1)


def _schedstat(pid: int, field: int) -> float:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[field]) for task in tasks) / 1e9


def build_vub(top: Path) -> Path:
    """Compile the client if it is not, and return its path."""
    command = [
        "cargo",
        "build",
        "--locked",
        "--release",
        "--quiet",
        "--package",
        "nagaya-client",
        "--bin",
        "vub",
    ]
    built = subprocess.run(
        [*command, "--message-format=json"], cwd=top, check=True, stdout=subprocess.PIPE, text=True
    )
    for line in built.stdout.splitlines():
        if executable := json.loads(line).get("executable"):
            return Path(executable)
    raise RuntimeError(f"{' '.join(command)}: cargo names no executable")


def worker_pid(plane: _core.Plane) -> int:
    """The process of the plane's only worker, as soon as it has one."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for served in json.loads(plane.query())["workers"]:
            if served["pid"]:
                return int(served["pid"])
        time.sleep(0.01)
    raise RuntimeError("the plane has no worker after 10 s")


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end, and kill it if it does not: qemu-storage-daemon can miss SIGTERM while a client goes."""
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def await_socket(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r}: no socket {path}, exit status {process.returncode}")
        time.sleep(0.01)
