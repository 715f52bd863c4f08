"""Under QEMU: our switch beside QEMU's own tap and user networks, between the host and one machine.

    python -m benches.network.qemu [--quick] [--json FILE]

The kernel of the kvm engine with virtio-net, all alike in QEMU's own emulation (TCG) on CPU 0, even where the
host could do better. The host's programs run on CPU 1. No MSI-X: with it QEMU 7.2 crashes where vhost-user
meets TCG.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benches._table import Row, read_options, report
from benches.guest._nagaya import SHARED
from benches.network.guests import ECHO_PORT, SHELL_PORT, Spot, workplace
from benches.network.switches import HOST, OURS, mac, plane_with_tap

from nagaya.errors import TimeoutExpiredError, UnavailableError
from nagaya.testing.netns import Namespace

TITLE = "Networks under QEMU (TCG)"
GUEST = "10.77.0.2"
BOOT_S = 60
MEMORY_MIB = 256


@dataclass(frozen=True, slots=True)
class House:
    """A machine that the host reaches at `address`."""

    host: Spot
    address: str


Samples = Mapping[str, Mapping[str, Sequence[float]]]
Open = Callable[[Path], AbstractContextManager[House]]


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Measure, print the table, and write the JSON if asked to. Returns the rows."""
    options = read_options(__doc__, argv, rounds=(7, 5), seconds=(2, 1))
    with ExitStack() as stack:
        directory = stack.enter_context(workplace())
        houses = {name: stack.enter_context(opened(directory)) for name, opened in HOUSES.items()}
        rates, times = measure(houses, options.rounds, options.seconds)
    rows = [_row(way, found, "Gbit/s") for way, found in rates.items()]
    rows += [_row(what, found, "us") for what, found in times.items()]
    return report(TITLE, rows, options)


def measure(houses: Mapping[str, House], rounds: int, seconds: int) -> tuple[Samples, Samples]:
    """One TCP stream each way, and UDP round trips, round by round."""
    rates: dict[str, dict[str, list[float]]] = {"machine to host": {}, "host to machine": {}}
    times: dict[str, dict[str, list[float]]] = {"UDP, 1 ms apart": {}}
    names = list(houses)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            house = houses[name]
            for way, direction in {"machine to host": "-R", "host to machine": ""}.items():
                told = house.host.run(f"iperf3 -c {house.address} -t {seconds} -J {direction}")
                rate = json.loads(told)["end"]["sum_received"]["bits_per_second"] / 1e9
                rates[way].setdefault(name, []).append(rate)
            told = house.host.run(f"roundtrip ask {house.address} {ECHO_PORT} 100 1000")
            answers = [int(ns) / 1000 for ns in told.split() if int(ns) > 0]
            times["UDP, 1 ms apart"].setdefault(name, []).append(median(answers))
    return rates, times


@contextmanager
def ours(directory: Path) -> Iterator[House]:
    """vhost-user-net: guest memory shared with the plane's worker."""
    with ExitStack() as stack:
        host, plug, _plane = stack.enter_context(plane_with_tap(directory))
        stack.enter_context(
            _machine(directory, host, GUEST, f"vhost-user,chardev=c0 -chardev socket,id=c0,path={plug(2)}")
        )
        yield _house(directory, host, GUEST)


@contextmanager
def tap(directory: Path) -> Iterator[House]:
    """QEMU reads and writes a tap."""
    with Namespace() as host:
        host.run(f"ip tuntap add tap0 mode tap vnet_hdr && ip address add {HOST}/24 dev tap0")
        host.run("ip link set tap0 up")
        with _machine(directory, host, GUEST, "tap,ifname=tap0,script=no,downscript=no,vhost=off"):
            yield _house(directory, host, GUEST)


@contextmanager
def user(directory: Path) -> Iterator[House]:
    """QEMU's user network (slirp), with ports of the loopback interface forwarded to the guest."""
    ports = [f"tcp:127.0.0.1:{port}-:{port}" for port in (SHELL_PORT, 5201)]
    forwards = ",".join(f"hostfwd={one}" for one in (*ports, f"udp:127.0.0.1:{ECHO_PORT}-:{ECHO_PORT}"))
    with Namespace() as host, _machine(directory, host, "10.0.2.15", f"user,{forwards}"):
        yield _house(directory, host, "127.0.0.1")


HOUSES: dict[str, Open] = {OURS: ours, "tap": tap, "user": user}


@contextmanager
def _machine(directory: Path, host: Namespace, address: str, netdev: str) -> Iterator[None]:
    kernel = SHARED / "state" / "kernels" / "kvm" / "vmlinux"
    if not kernel.exists() or shutil.which("qemu-system-x86_64") is None:
        raise UnavailableError(
            "this bench needs QEMU and the kernel of the kvm engine",
            hint="apt-get install qemu-system-x86; the tests build the kernel",
        )
    backend, *more = netdev.split(" ")
    command = [
        "taskset",
        "-c",
        "0",
        "qemu-system-x86_64",
        "-accel",
        "tcg",
        "-cpu",
        "max",
        "-m",
        f"{MEMORY_MIB}",
    ]
    command += ["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
    command += ["-object", f"memory-backend-memfd,id=ram,size={MEMORY_MIB}M,share=on"]
    command += ["-machine", "q35,memory-backend=ram", "-kernel", str(kernel)]
    command += ["-initrd", f"{directory}/initrd", "-append", f"console=ttyS0 panic=-1 address={address}"]
    command += [
        *more,
        "-netdev",
        f"{backend},id=n0",
        "-device",
        f"virtio-net-pci,netdev=n0,mac={mac(2)},vectors=0",
    ]
    log = directory / f"{backend.partition(',')[0]}.log"
    with host.entered(), log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _house(directory: Path, host: Namespace, address: str) -> House:
    """The house once its machine answers."""
    house = House(Spot(host, HOST, 1, directory), address)
    deadline = time.monotonic() + BOOT_S
    while "up" not in house.host.run(f"echo echo up | busybox nc -w 2 {address} {SHELL_PORT} 2>&1; true"):
        if time.monotonic() > deadline:
            raise TimeoutExpiredError(f"the machine at {address} did not answer within {BOOT_S} s")
        time.sleep(0.2)
    return house


def _row(name: str, found: Mapping[str, Sequence[float]], unit: str) -> Row:
    peers = dict(found)
    mine = peers.pop(OURS)
    return Row(name, mine, peers, unit, "higher" if unit == "Gbit/s" else "lower", {"tap": 1.0, "user": 1.0})


if __name__ == "__main__":
    main(sys.argv[1:])
