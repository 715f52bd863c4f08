"""Who carries the frames: our switch, the host's bridge with taps, vde_switch; and a cable, as the limit.

Each is in network namespaces of its own. Guests are 10.77.0.2, on CPU 0, and 10.77.0.3, on CPU 1; the host
is 10.77.0.1, and its programs run on CPU 1. What our worker, vde_switch and the kernel do runs where the
scheduler puts it.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benches.network.guests import Guest, Place, Spot, workplace
from benches.network.kernel import bench_kernel

from nagaya import _core
from nagaya.plane import worker
from nagaya.plane.config import UplinkDevice
from nagaya.plane.uplinks import OpenUplink
from nagaya.testing.netns import Namespace

HOST = "10.77.0.1"

OURS = "ours"
VECTOR = "vector, tap"
VETH = "veth"


@dataclass(frozen=True, slots=True)
class Yard:
    """Three that can talk; `plane` is ours, if the switch is."""

    first: Place
    second: Place
    host: Place
    pids: Collection[int]  # of all who take part, clients on the host apart
    plane: _core.Plane | None = None


Open = Callable[[Path, Path], AbstractContextManager[Yard]]
Plug = Callable[[int], list[str]]


@contextmanager
def plane_with_tap(directory: Path) -> Iterator[tuple[Namespace, Callable[[int], Path], _core.Plane]]:
    """A network of the plane whose uplink is a tap of the host, and what gives machine `number` a socket."""
    with ExitStack() as stack:
        host = stack.enter_context(Namespace())
        plane = _core.Plane([sys.executable, "-I", "-S", str(worker.__file__), str(_core.__file__)])
        stack.callback(plane.close)
        host.run(f"ip tuntap add tap0 mode tap && ip address add {HOST}/24 dev tap0 && ip link set tap0 up")
        with host.entered():
            tap = stack.enter_context(OpenUplink(UplinkDevice("%bench/uplink", "bench", "tap", "tap0")))
        uplink = {
            "driver": "uplink", "id": "%bench/uplink", "worker": "net", "network": "bench", "kind": "tap",
            "uso": tap.uso,
        }  # fmt: skip
        plane.device_add(json.dumps(uplink), [tap.fd])

        def plug(number: int) -> Path:
            path = directory / f"net{number}.sock"
            config = {
                "driver": "net", "id": f"m{number}/net0", "worker": "net", "network": "bench",
                "mac": mac(number), "rules": {"addresses": [f"10.77.0.{number}"]},
            }  # fmt: skip
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
                listener.listen(1)
                plane.device_add(json.dumps(config), [listener.fileno()])
            stack.callback(path.unlink)
            return path

        yield host, plug, plane


@contextmanager
def ours(kernel: Path, directory: Path) -> Iterator[Yard]:
    """The plane: a worker that is the switch, and a tap for the host."""
    with ExitStack() as stack:
        host, socket_of, plane = stack.enter_context(plane_with_tap(directory))

        def plug(number: int) -> list[str]:
            return [f"virtio_uml.device={socket_of(number)}:1"]

        first, second = _guests(kernel, directory, host, plug, stack)
        (carrier,) = json.loads(plane.query())["workers"]
        pids = {first.pid, second.pid, carrier["pid"]}
        yield Yard(first, second, Spot(host, HOST, 1, directory), pids, plane)


@contextmanager
def bridge(transport: str, kernel: Path, directory: Path) -> Iterator[Yard]:
    """The kernel's bridge with a tap for each guest, which User-mode Linux's vector transport drives."""
    with ExitStack() as stack:
        host = stack.enter_context(Namespace())
        host.run(f"ip link add br0 type bridge && ip address add {HOST}/24 dev br0 && ip link set br0 up")

        def plug(number: int) -> list[str]:
            tap = f"tap{number}"
            host.run(f"ip tuntap add {tap} mode tap vnet_hdr && ip link set {tap} master br0 up")
            return [f"vec0:transport={transport},ifname={tap},depth=128,gro=1,mac={mac(number)}"]

        first, second = _guests(kernel, directory, host, plug, stack)
        yield Yard(first, second, Spot(host, HOST, 1, directory), {first.pid, second.pid})


@contextmanager
def vde(kernel: Path, directory: Path) -> Iterator[Yard]:
    """vde_switch with a tap for the host; guests speak to it with User-mode Linux's transport `daemon`."""
    with ExitStack() as stack:
        host = stack.enter_context(Namespace())
        control = directory / "vde"
        with host.entered():
            carrier = subprocess.Popen(
                ["vde_switch", "-s", str(control), "-t", "tap0"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        stack.callback(carrier.wait)
        stack.callback(carrier.terminate)
        while not (control / "ctl").exists():
            time.sleep(0.01)
        host.run(f"ip address add {HOST}/24 dev tap0 && ip link set tap0 up")

        def plug(number: int) -> list[str]:
            return [f"eth0=daemon,{mac(number)},unix,{control}/ctl"]

        first, second = _guests(kernel, directory, host, plug, stack)
        pids = {first.pid, second.pid, carrier.pid}
        yield Yard(first, second, Spot(host, HOST, 1, directory), pids)


@contextmanager
def veth(_kernel: Path, directory: Path) -> Iterator[Yard]:
    """No guests: two namespaces and a cable (veth) between them."""
    with Namespace() as one, Namespace() as other:
        one.wire("veth0", other, "veth1")
        first, second = Spot(one, "10.77.0.2", 0, directory), Spot(other, "10.77.0.3", 1, directory)
        one.run("ip address add 10.77.0.2/24 dev veth0")
        other.run("ip address add 10.77.0.3/24 dev veth1")
        processes = []
        for command in (["iperf3", "-s"], [str(directory / "roundtrip"), "serve", "2001"]):
            with one.entered():
                processes.append(
                    subprocess.Popen(
                        ["taskset", "-c", "0", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                    )
                )
        try:
            yield Yard(first, second, second, {process.pid for process in processes})
        finally:
            for process in processes:
                process.terminate()
                process.wait()


SWITCHES: dict[str, Open] = {
    OURS: ours,
    VECTOR: partial(bridge, "tap"),
    "vde_switch": vde,
    VETH: veth,
}


@contextmanager
def all_yards() -> Iterator[dict[str, Yard]]:
    """All switches side by side, by name, with their guests booted."""
    kernel = bench_kernel()
    with ExitStack() as stack:
        directory = stack.enter_context(workplace())
        yards = {}
        for number, (name, open_switch) in enumerate(SWITCHES.items()):
            place = directory / str(number)
            place.mkdir()
            for file in ("initrd", "roundtrip"):
                (place / file).symlink_to(directory / file)
            yards[name] = stack.enter_context(open_switch(kernel, place))
        yield yards


def in_turn(yards: Mapping[str, Yard], rounds: int) -> Iterator[tuple[str, Yard]]:
    """Each yard once a round; the order is turned by one each round."""
    names = list(yards)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            yield name, yards[name]


def _guests(kernel: Path, directory: Path, host: Namespace, plug: Plug, stack: ExitStack) -> list[Guest]:
    """Guests 2 and 3 of a network, booted."""
    guests = [
        stack.enter_context(Guest(kernel, directory, host, f"10.77.0.{number}", number - 2, plug(number)))
        for number in (2, 3)
    ]
    for guest in guests:
        guest.run("true")
    return guests


def mac(number: int) -> str:
    """The address of a guest's NIC."""
    return f"52:54:00:00:00:{number:02x}"
