"""Machines that share a device: on our plane, on one qemu-storage-daemon, and on one each."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benches.disk.backends import await_socket, cpu_wait_seconds, end, worker_pid

from nagaya import _core
from nagaya.plane import worker
from nagaya.plane.demand import WorkerDemand, demand_from_json

# A device with known service times: 8 at a time, 0.8 ms each, 10,000 a second. That takes little CPU, so that
# it is not the clients and the worker on two CPUs that are measured.
SIMULATED = {"size": 8 << 30, "device": "bench", "parallel": 8, "read_us": 800, "write_us": 800}

SLICE_MS = 100


@dataclass(frozen=True, slots=True)
class Asks:
    """Reads of 4 KiB, unless said otherwise: `depth` at a time, `rate` a second at most if it is not 0."""

    depth: int = 32
    rate: int = 0
    order: str = "random"
    op: str = "read"
    block: int = 4096
    first: bool = False  # at the CPUs, before all that is not


@dataclass(frozen=True, slots=True)
class Got:
    """What a machine got."""

    iops: float
    p99_us: float
    slices: list[int]  # answers in each tenth of a second
    cpu_wait_us: float  # for each request, in which the client was ready and had no CPU


class Machines:
    """Our plane with one worker; each machine has a disk on the same file, or the same simulated device."""

    def __init__(self, directory: Path, file: Path | None, model: Mapping[str, object] = SIMULATED) -> None:
        self._directory = directory
        self._model = model
        self._fd = -1 if file is None else os.open(file, os.O_RDWR | os.O_DIRECT)
        self._plane = _core.Plane([sys.executable, "-I", "-S", str(worker.__file__), str(_core.__file__)])

    def add(self, name: str, **shares: int) -> Path:
        """A machine with these knobs; returns its socket."""
        path = self._directory / f"{name}.sock"
        layer = {"format": "raw"} if self._fd >= 0 else {"format": "simulated", "model": self._model}
        config = {
            "driver": "blk", "id": f"{name}/disk0", "worker": "bench", "queues": 1, "queue_size": 256,
            "read_only": False, "serial": "", "direct": True, "layers": [layer],
        }  # fmt: skip
        self.share(name, **shares)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            fds = [listener.fileno(), *([self._fd] if self._fd >= 0 else [])]
            self._plane.device_add(json.dumps(config), fds)
        return path

    def share(self, name: str, **shares: int) -> None:
        """Give the machine other knobs."""
        self._plane.set_shares(json.dumps([{"id": name, **shares}]))

    def first_at_the_cpus(self) -> None:
        """The worker has a CPU as soon as it wants one."""
        for task in Path(f"/proc/{worker_pid(self._plane)}/task").iterdir():
            _put_first(int(task.name))

    def cpu_wait_seconds(self) -> float:
        """For how long the worker was ready and had no CPU."""
        return cpu_wait_seconds(worker_pid(self._plane))

    def waited_us(self, name: str) -> float:
        """How long each request of a machine waited for others in the arbiter, since the last call."""
        events = [json.loads(event) for event in self._plane.take_events()]
        rows = [row for event in events if event["event"] == "ARBITER_WAITS" for row in event["data"]["rows"]]
        mine = [row for row in rows if row["waiter"] == name]
        answered: int = sum(row["requests"] for row in mine if row["cause"] == "device")
        waited: int = sum(row["wait_us"] for row in mine if row["cause"] == "machine")
        return waited / max(answered, 1)

    def arbiter(self) -> dict[str, Any]:
        """The state of the worker's arbiter."""
        self._plane.take_events()
        state: dict[str, Any] = json.loads(self._plane.query_arbiter())[0]
        return state

    def demand(self, *, anew: bool) -> WorkerDemand:
        """What was asked of the device, and how it answered."""
        (found,) = (demand_from_json(row) for row in json.loads(self._plane.query_demand(anew)))
        return found

    def close(self) -> None:
        """End the plane."""
        self._plane.close()
        if self._fd >= 0:
            os.close(self._fd)


@contextmanager
def our_plane(
    directory: Path, file: Path | None, model: Mapping[str, object] = SIMULATED
) -> Iterator[Machines]:
    """An empty plane."""
    with ExitStack() as stack:
        machines = Machines(directory, file, model)
        stack.callback(machines.close)
        yield machines
    for path in directory.glob("*.sock"):
        path.unlink()


@contextmanager
def qemu_storage_daemons(
    directory: Path, file: Path, names: list[str], one: bool
) -> Iterator[dict[str, Path]]:
    """A socket for each name: of one process with an iothread for all, or of one each."""
    paths = {name: directory / f"qsd-{name}.sock" for name in names}
    with ExitStack() as stack:
        for group in [names] if one else [[name] for name in names]:
            command = ["qemu-storage-daemon", "--object", "iothread,id=iothread"]
            for name in group:
                node = (
                    f"driver=file,node-name={name},filename={file},aio=io_uring,cache.direct=on,locking=off"
                )
                export = f"type=vhost-user-blk,id=export-{name},node-name={name},writable=on,num-queues=1"
                address = f"addr.type=unix,addr.path={paths[name]},iothread=iothread"
                command += ["--blockdev", node, "--export", f"{export},{address}"]
            process = subprocess.Popen(command)
            stack.callback(end, process)
            for name in group:
                await_socket(paths[name], process)
        yield paths
    for path in paths.values():
        path.unlink(missing_ok=True)


class Crowd:
    """All machines ask at the same time."""

    def __init__(self, vub: Path, seconds: float, warm_up: float) -> None:
        self._vub = vub
        self.seconds = seconds
        self.warm_up = warm_up

    def ask(
        self, sockets: Mapping[str, Path], asks: Mapping[str, Asks], *, warm_up: float | None = None
    ) -> dict[str, Got]:
        """What each got, the first seconds not counted."""
        warm_up = self.warm_up if warm_up is None else warm_up
        processes = {name: self._start(sockets[name], one, warm_up) for name, one in asks.items()}
        outputs: dict[str, bytes] = {}

        def read(name: str) -> None:
            outputs[name], _ = processes[name].communicate()

        readers = [threading.Thread(target=read, args=(name,)) for name in processes]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        return {name: _got(json.loads(output)) for name, output in outputs.items()}

    def _start(self, path: Path, asks: Asks, warm_up: float) -> subprocess.Popen[bytes]:
        command = [str(self._vub), "bench", "--socket", str(path), "--op", asks.op, "--mode", "block"]
        command += ["--depth", str(asks.depth), "--rate", str(asks.rate), "--order", asks.order]
        command += ["--block", str(asks.block)]
        command += ["--slice-ms", str(SLICE_MS)]
        command += ["--seconds", str(self.seconds), "--warm-up", str(warm_up)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        if asks.first:
            _put_first(process.pid)
        return process


def _put_first(task: int) -> None:
    """A task of the lowest real-time priority runs before all of none."""
    os.sched_setscheduler(task, os.SCHED_RR, os.sched_param(1))


def _got(result: Mapping[str, Any]) -> Got:
    wait = result["client_cpu_wait_seconds"] * 1e6 / max(result["ios"], 1)
    return Got(result["iops"], result["latency_us"]["p99"], result["slices"], wait)
