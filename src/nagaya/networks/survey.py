"""What of this host helps or hinders networks: for `nagaya doctor`. Changes nothing."""

from __future__ import annotations

import ipaddress
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nagaya.networks import checks, records
from nagaya.networks.links import Route, open_links
from nagaya.networks.names import Names
from nagaya.networks.passt import resolvers
from nagaya.networks.plan import Record
from nagaya.networks.programs import find_program
from nagaya.networks.sysctls import read
from nagaya.paths import Paths
from nagaya.spec import NetworkSpec

_TIMEOUT_S = 10.0
_STRICT, _LOOSE = "1", "2"  # of rp_filter
_MODES = {"nft": "nat, routed and isolated", "dnsmasq": "nat, routed and isolated", "passt": "user"}
_PACKAGES = {"nft": "nftables", "dnsmasq": "dnsmasq-base", "passt": "passt"}
_KEEPERS = {  # who would undo a rule, and where it is asked to let our networks pass
    "DOCKER-USER": "docker: put both into its chain DOCKER-USER, so that they stay",
    "ufw-before-forward": "ufw: put both into /etc/ufw/before.rules, so that they stay",
}


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact. `well` is whether networks work with it; what is not well has a meaning and a fix."""

    name: str
    well: bool
    found: str
    meaning: str = ""
    fix: str = ""


def survey(paths: Paths) -> Iterator[Fact]:
    """All that bears on networks of the Nagaya of `paths`, for this user."""
    rooted = os.geteuid() == 0
    yield _default("nat" if rooted else "user")
    for program in ("nft", "dnsmasq", "passt") if rooted else ("passt",):
        yield _program(program)
    if rooted:
        yield _tap(Path("/dev/net/tun"))
        yield _macvtap()
        with open_links() as links:
            routes = links.routes()
        yield from filters(_run, Names(paths.run))
        yield return_paths(routes)
        yield from overlaps(records.read_all(Names(paths.run).directory), routes)
    else:
        yield pings(read("ipv4/ping_group_range") or "", [os.getegid(), *os.getgroups()])
    yield _resolvers(resolvers())


def filters(run: Callable[[Sequence[str]], str], names: Names) -> Iterator[Fact]:
    """Who else decides what this host forwards: chains that drop what none of their rules lets through.

    `run` gives a command's output. Of nftables a rule of ours that accepts does not outweigh another's drop.
    """
    closed = list(_closed(run, names.table))
    if not closed:
        yield Fact("forwarding", True, "nobody else drops what this host forwards")
        return
    for where, commands, keeper in closed:
        yield Fact(
            f"forwarding ({where})",
            False,
            "its policy is drop",
            "networks of modes nat and routed have no way out, unless a rule of it lets them",
            "; ".join(commands) + (f" ({keeper})" if keeper else ""),
        )


def return_paths(routes: Iterable[Route]) -> Fact:
    """Reverse path filtering (RFC 3704) that could drop answers."""
    found = {name: read(f"ipv4/conf/{name}/rp_filter") or "0" for name in ("all", "default")}
    ways = sorted(
        {one.interface for one in routes if one.destination.version == 4 and not one.destination.prefixlen}
    )
    text = ", ".join(f"{name} {value}" for name, value in found.items())
    if found["all"] == _STRICT and len(ways) > 1:
        return Fact(
            "rp_filter",
            False,
            f"strict, with default routes by {' and '.join(ways)}",
            "answers to guests that come in by the other interface are dropped",
            f"sysctl net.ipv4.conf.all.rp_filter={_LOOSE}",
        )
    return Fact("rp_filter", True, text)


def overlaps(known: Iterable[Record], routes: Sequence[Route]) -> Iterator[Fact]:
    """Networks whose ranges the host also reaches elsewhere: by a VPN that came later, say."""
    for record in known:
        for text in filter(None, (record.spec.ipv4, record.spec.ipv6)):
            own = ipaddress.ip_network(text)
            for route in routes:
                other = route.destination
                if route.interface.startswith("ngy-") or not other.prefixlen:
                    continue
                if own.version == other.version and own.overlaps(other):
                    name, family = record.spec.name, f"ipv{own.version}"
                    yield Fact(
                        f"network {name}",
                        False,
                        f"{own} overlaps {other}, which the host reaches by {route.interface}",
                        "one of the two is out of reach",
                        f"stop its machines, then nagaya network set {name} {family}=auto",
                    )


def pings(span: str, groups: Iterable[int]) -> Fact:
    """Whether passt may send pings: the range of groups that may, as net.ipv4.ping_group_range has it."""
    low, _, high = span.partition("\t")
    if low.isdigit() and high.isdigit() and any(int(low) <= group <= int(high) for group in groups):
        return Fact("pings", True, "this user may send them")
    return Fact(
        "pings",
        False,
        "this user may not send them",
        "pings of machines on networks of mode user get no answer",
        "sysctl net.ipv4.ping_group_range='0 2147483647'",
    )


def _closed(run: Callable[[Sequence[str]], str], own: str) -> Iterator[tuple[str, list[str], str]]:
    """Where, what would let our networks pass, and who would undo that."""
    if nft := find_program("nft"):
        chains = _chains(run([nft, "--json", "list", "chains"]))
        keepers = [text for name, text in _KEEPERS.items() if any(one["name"] == name for one in chains)]
        for one in chains:
            if one.get("hook") != "forward" or one.get("policy") != "drop" or one["table"] == own:
                continue
            where = f"{one['family']} {one['table']} {one['name']}"
            rules = [f"nft insert rule {where} {way} 'ngy-*' accept" for way in ("iifname", "oifname")]
            yield where, rules, "; ".join(keepers)
    for program in ("iptables-legacy", "ip6tables-legacy"):
        found = find_program(program)
        if found and "-P FORWARD DROP" in run([found, "-S", "FORWARD"]):
            yield program, [f"{program} -I FORWARD {way} ngy-+ -j ACCEPT" for way in ("-i", "-o")], ""


def _chains(text: str) -> list[dict[str, str]]:
    try:
        found = json.loads(text)["nftables"]
    except (ValueError, KeyError, TypeError):
        return []
    return [one["chain"] for one in found if "chain" in one]


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    return done.stdout if done.returncode == 0 else ""


def _default(mode: str) -> Fact:
    refusal = checks.refusal(NetworkSpec.model_validate({"name": "default", "mode": mode}))
    if not refusal:
        return Fact("default network", True, f"mode {mode}")
    fact, _, fix = refusal.partition(": ")
    return Fact("default network", False, fact, "machines that name no network get no NIC", fix)


def _program(name: str) -> Fact:
    where = find_program(name)
    if where:
        return Fact(_PACKAGES[name], True, where)
    meaning = f"there can be no networks of mode {_MODES[name]}"
    return Fact(_PACKAGES[name], False, f"no {name}", meaning, f"apt-get install {_PACKAGES[name]}")


def _tap(device: Path) -> Fact:
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        meaning = "there can be no networks of modes nat, routed and bridge"
        fix = "modprobe tun; in a container, give it the device"
        return Fact("taps", False, f"{device}: {error.strerror}", meaning, fix)
    return Fact("taps", True, str(device))


def _macvtap() -> Fact:
    modules = Path("/lib/modules", platform.release(), "modules.dep")
    if Path("/sys/class/macvtap").exists() or (modules.exists() and "/macvtap.ko" in modules.read_text()):
        return Fact("macvtap", True, "the kernel has it")
    return Fact("macvtap", True, "the kernel has none", "there can be no networks of mode macvtap")


def _resolvers(found: Sequence[str]) -> Fact:
    if found:
        return Fact("resolvers", True, ", ".join(found))
    return Fact(
        "resolvers",
        False,
        "/etc/resolv.conf has none but on this host's loopback interface",
        "guests on networks of mode user are told none",
        "name one that answers from elsewhere, or use systemd-resolved",
    )
