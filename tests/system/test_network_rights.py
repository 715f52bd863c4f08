"""What the programs that serve networks may do, seen from outside while they run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nagaya.networks.config import Instance, Reservation
from nagaya.networks.helper import find
from nagaya.networks.host import HostNetworks
from nagaya.paths import Paths
from nagaya.spec import NetworkSpec
from nagaya.testing.netns import Namespace
from nagaya.testing.yard import wait_until

pytestmark = [pytest.mark.root, pytest.mark.anyio]
UID = 0x7FFE0001
NET_ADMIN, NET_BIND, NET_RAW = 1 << 12, 1 << 10, 1 << 13
WEB = Reservation("web", "52:54:00:00:00:05", "10.77.0.5", "fd77::5", instance=Instance("m1"))


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def confined(pid: int, *, capabilities: int) -> None:
    """Another user's, no way to privileges, filtered, and with these capabilities."""
    facts = status(pid)
    assert set(facts["Uid"].split()) == set(facts["Gid"].split()) == {str(UID)}
    assert (facts["NoNewPrivs"], facts["Seccomp"], facts["Groups"]) == ("1", "2", "")
    assert int(facts["CapEff"], 16) == int(facts["CapPrm"], 16) == capabilities
    assert f"Max address space         {512 * 2**20}" in limits(pid)
    assert "Max core file size        0" in limits(pid)


def limits(pid: int) -> str:
    return Path(f"/proc/{pid}/limits").read_text()


def inside(directory: Path) -> list[Path]:
    return list(directory.iterdir())


def namespaces(pid: int) -> dict[str, str]:
    return {entry.name: str(entry.readlink()) for entry in Path(f"/proc/{pid}/ns").iterdir()}


async def test_dnsmasq_and_the_metadata_service(paths: Paths) -> None:
    spec = NetworkSpec(name="default", ipv4="10.77.0.0/24", ipv6="fd77::/64")
    with Namespace() as place, place.entered():
        networks = HostNetworks(paths, UID)
        try:
            await networks.ensure(spec, [WEB])
            pids = {helper.program.title.split()[0]: helper.pid for helper in networks.helpers("default")}
            assert pids["dnsmasq"] and pids["metadata"]
            confined(pids["dnsmasq"], capabilities=NET_ADMIN | NET_BIND | NET_RAW)
            assert int(status(pids["dnsmasq"])["CapBnd"], 16) == NET_ADMIN | NET_BIND | NET_RAW
            metadata = pids["metadata"]  # it listens first, and answers nobody before its filters are there
            await wait_until(lambda: status(metadata)["Seccomp"] == "2")
            confined(metadata, capabilities=0)
            assert "Max file size             0" in limits(metadata)
        finally:
            await networks.remove("default")
            await networks.close()


async def test_passt(paths: Paths) -> None:
    spec = NetworkSpec(name="mine", mode="user", ipv4="10.77.0.0/24", ipv6="fd77::/64")
    with Namespace() as place, place.entered():
        networks = HostNetworks(paths, UID)
        try:
            uplink, fresh = await networks.private.ensure(spec, WEB, [])
            assert fresh
            assert await networks.private.ensure(spec, WEB, []) == (uplink, False)
            (pid,) = find(uplink.path, UID)
            await wait_until(lambda: status(pid)["Seccomp"] == "2")  # it listens before it has its filters
            confined(pid, capabilities=0)
            own, ours = namespaces(pid), namespaces(os.getpid())
            assert all(own[name] != ours[name] for name in ("user", "mnt", "ipc", "uts", "pid"))
            assert inside(Path(f"/proc/{pid}/root")) == []
        finally:
            await networks.private.remove(WEB.mac)
            await networks.close()
        assert (find(uplink.path, UID), inside(paths.run / "passt")) == ([], [])
