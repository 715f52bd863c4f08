"""The host's side of all networks of one Nagaya: interfaces, packet filter, DHCP and names.

Nothing is remembered but in the run directory and in the kernel, and every step can be done again: after a
crash at any point `ensure` completes a network and `remove` undoes it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from nagaya.errors import ConflictError, NagayaError, UnsupportedError
from nagaya.networks import checks, documents, metadata, plan, records, rules, sysctls
from nagaya.networks.config import Forward, Reservation, Uplink
from nagaya.networks.dnsmasq import Dnsmasq
from nagaya.networks.files import make_directory
from nagaya.networks.helper import Helper, Program, end
from nagaya.networks.links import Link, Links, open_links
from nagaya.networks.names import Names
from nagaya.networks.plan import Record
from nagaya.networks.ports import Ports
from nagaya.networks.private import PrivateUplinks
from nagaya.networks.programs import find_program
from nagaya.networks.watch import Watch
from nagaya.paths import Paths
from nagaya.spec import NetworkMode, NetworkSpec

_T = TypeVar("_T")
log = logging.getLogger("nagaya.networks")


class HostNetworks:
    """The networks of the Nagaya of `paths`; `uid` is the user of the programs that serve them.

    `default` names the network of machines that name none, "" where this host can have no network at all;
    its mode is `default_mode`. Calls wait for one another. A cancelled one leaves something that the next
    `ensure` or `remove` mends.
    """

    def __init__(self, paths: Paths, uid: int) -> None:
        self.names = Names(paths.run)
        self._uid = uid
        self._directory = self.names.directory
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "networks")  # one, so in order, cancelled or not
        self._helpers: dict[tuple[str, str], Helper] = {}  # by network and kind
        self._records: dict[str, Record] | None = None
        self._rules = ""
        self._listed = ""
        self._watch: Watch | None = None
        self._ports = Ports()
        self.private = PrivateUplinks(paths, uid)
        self.default_mode: NetworkMode = "nat" if os.geteuid() == 0 else "user"
        usual = NetworkSpec(name="default", mode=self.default_mode)
        self.default = "" if self.refusal(usual) else usual.name

    async def ensure(
        self, spec: NetworkSpec, reservations: Iterable[Reservation] = (), forwards: Iterable[Forward] = ()
    ) -> Uplink:
        """The network is there, with exactly these reservations and forwards; returns its way to the plane.

        `spec` has ranges, not "auto". Raises `ConflictError` for a range, a port or an interface that is
        taken, `NotFoundError` for an uplink that is not there, `PermissionDeniedError`, `UnavailableError`
        for a program that is missing or does not start; what was there before stays then.
        """
        record = Record(spec, tuple(reservations), tuple(forwards))
        async with self._lock:
            uplink, fresh = await self._in_thread(lambda: self._make(record))
            if self._watch is None and self._rules:
                self._watch = Watch(self._look_again)
            try:
                await self._serve(record, uplink, fresh)
            except* NagayaError as failures:
                raise failures.exceptions[0] from None
        return uplink

    async def remove(self, name: str) -> None:
        """Nothing of the network is left on the host. Idempotent."""
        async with self._lock:
            marks = _marks(self._directory / name)
            for kind, mark in marks.items():
                await self._stop(name, kind, mark)
            await self._in_thread(lambda: self._unmake(name))
            for mark in marks.values():  # one that was about to start now lacks its files, or is seen here
                await end(str(mark), self._uid)

    async def sweep(self, keep: Collection[str]) -> list[str]:
        """Remove what a crash left of networks that are not in `keep`. Returns their names."""
        gone = sorted(set(await self.present()) - set(keep))
        for name in gone:
            await self.remove(name)
        return gone

    async def present(self) -> list[str]:
        """The networks of which there is something on the host."""
        async with self._lock:
            return sorted(await self._in_thread(lambda: list(self._load())))

    def helpers(self, name: str) -> list[Helper]:
        """The programs that serve the network now."""
        return [helper for key, helper in self._helpers.items() if key[0] == name]

    def refusal(self, spec: NetworkSpec) -> str:
        """Why this host cannot have such a network, and what to do; "" if it can."""
        return checks.refusal(spec)

    async def check_ports(self, forwards: Iterable[Forward]) -> None:
        """Raise, as `ensure` would, for ports of the host that another program has."""
        taken = self.private.forwards()
        wanted = [one for one in forwards if not any(_same_port(one, other) for other in taken)]
        async with self._lock:
            await self._in_thread(lambda: self._ports.check(wanted))

    def ranges(self) -> list[str]:
        """Those of both families to which the host has routes that are not of our networks."""

        def look() -> list[str]:
            with open_links() as links:
                routes = links.routes()
            return [
                str(route.destination)
                for route in routes
                if route.destination.prefixlen and not route.interface.startswith(self.names.prefix)
            ]

        return self._thread.submit(look).result()

    def macs(self) -> frozenset[str]:
        """The MAC addresses of the host's interfaces and of its neighbours."""

        def look() -> frozenset[str]:
            with open_links() as links:
                return links.macs()

        return self._thread.submit(look).result()

    async def close(self) -> None:
        """Look after the networks no more; they stay as they are."""
        if self._watch is not None:
            self._watch.close()
        for helper in self._helpers.values():
            await helper.close()
        self._helpers.clear()
        await self.private.close()
        self._ports.close()
        self._thread.shutdown(wait=True)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _make(self, record: Record) -> tuple[Uplink, bool]:
        """The kernel's part, and whether the interface was not there before.

        The rules come before the interface, so there is no moment without them.
        """
        name = record.spec.name
        interface = self.names.interface(name)
        known = self._load()
        with open_links() as links:
            _check_forwards(record, known.values())
            lower = links.require(record.spec.uplink, name) if record.spec.uplink else None
            fresh = links.find(interface) is None
            if fresh:
                plan.check_ranges(
                    record, self.names, links, [one for key, one in known.items() if key != name]
                )
            _check_uplink(record, lower, links)
            make_directory(self._directory / name, self._uid)
            before = known[name].forwards if name in known else ()
            self._ports.hold(before, record.forwards)
            self._save(record)
            self._filter(links)
            mtu = min(record.spec.mtu, lower.mtu if lower else record.spec.mtu)
            return self._make_interface(record, lower, mtu, links), fresh

    def _make_interface(self, record: Record, lower: Link | None, mtu: int, links: Links) -> Uplink:
        spec = record.spec
        interface, alias = self.names.interface(spec.name), self.names.alias(spec.name)
        if spec.mode == "macvtap" and lower is not None:
            links.make_macvtap(interface, alias, mtu, lower)
            return Uplink("macvtap", interface, mtu=mtu, rate=spec.rate)
        if not record.has_tap:
            return Uplink("none", mtu=mtu)
        links.make_tap(interface, alias, self.names.mac(spec.name), mtu, record.addresses())
        if spec.mode == "bridge" and lower is not None:
            links.enslave(interface, lower, spec.vlan)
        else:
            for setting, value in plan.own_settings(record, interface).items():
                sysctls.write_own(setting, value)
        return Uplink("tap", interface, mtu=mtu, rate=spec.rate)

    def _unmake(self, name: str) -> None:
        with open_links() as links:
            links.remove(self.names.interface(name), self.names.alias(name))
            (self._directory / name / records.FILE).unlink(missing_ok=True)
            gone = self._load().pop(name, None)
            self._ports.hold(gone.forwards if gone else (), ())
            self._filter(links)
        shutil.rmtree(self._directory / name, ignore_errors=True)

    def _filter(self, links: Links) -> None:
        """Packet filter and settings of the host are what the records say; without any, what they were."""
        settings = sysctls.Sysctls(self._directory / "sysctls.json")
        all_links, routes = links.all(), links.routes()
        areas = [
            plan.area(record, self.names, plan.ways_out(record, all_links, routes))
            for record in self._load().values()
            if record.served
        ]
        wanted = plan.host_settings(areas)
        script = rules.render(self.names.table, self.names.prefix, areas, plan.closed(wanted, settings))
        if areas and (script != self._rules or self._listed != rules.listed(self.names.table)):
            rules.apply(script)
            self._rules, self._listed = script, rules.listed(self.names.table)
        settings.apply(wanted)
        if not areas:
            if find_program("nft") and rules.listed(self.names.table):
                rules.delete(self.names.table)
            self._rules = ""

    async def _look_again(self) -> None:
        """The host has changed: another way out, other settings, or a packet filter that somebody flushed."""

        def look() -> None:
            with open_links() as links:
                self._filter(links)

        async with self._lock:
            try:
                await self._in_thread(look)
            except NagayaError as error:
                log.error("the networks do not follow a change of the host: %s", error.message)

    async def _serve(self, record: Record, uplink: Uplink, fresh: bool) -> None:
        """The programs' part: they do not depend on one another, and each takes a moment to start."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._serve_names(record, uplink, fresh))
            group.create_task(self._serve_metadata(record, uplink, fresh))

    async def _serve_names(self, record: Record, uplink: Uplink, fresh: bool) -> None:
        name = record.spec.name
        dnsmasq = Dnsmasq(self._directory / name, self._uid)
        if not record.needs_dnsmasq:
            await self._stop(name, "dnsmasq", dnsmasq.config)
            return
        helper = await self._helper(name, "dnsmasq", dnsmasq.program(name))
        hosts = dnsmasq.write_hosts(record.spec, record.reservations)
        if dnsmasq.needs(record.spec, uplink.interface, uplink.mtu):
            await helper.stop()  # before its file changes: who finds it running finds it with that file
            dnsmasq.write(record.spec, uplink.interface, uplink.mtu)
        adopted = helper.pid is None
        await helper.ensure(fresh=fresh)
        if hosts or adopted:  # a daemon may have been killed between the file and the signal
            helper.signal(signal.SIGHUP)

    async def _serve_metadata(self, record: Record, uplink: Uplink, fresh: bool) -> None:
        name = record.spec.name
        directory = self._directory / name / "metadata"
        if not record.needs_metadata:
            await self._stop(name, "metadata", directory)
            return
        documents.write(directory, record.spec.domain, record.reservations, self._uid)
        addresses = [str(address.ip) for address in record.addresses()]
        program = metadata.program(name, uplink.interface, addresses, directory, self._uid)
        await (await self._helper(name, "metadata", program)).ensure(fresh=fresh)

    async def _helper(self, network: str, kind: str, program: Program) -> Helper:
        helper = self._helpers.get((network, kind))
        if helper is not None and helper.program != program:
            await helper.stop()
            helper = None
        if helper is None:
            helper = self._helpers[network, kind] = Helper(program)
        return helper

    async def _stop(self, network: str, kind: str, mark: Path) -> None:
        if helper := self._helpers.pop((network, kind), None):
            await helper.close()
        await end(str(mark), self._uid)

    def _load(self) -> dict[str, Record]:
        """The records, from the files the first time."""
        if self._records is None:
            self._directory.mkdir(mode=0o711, parents=True, exist_ok=True)
            self._directory.chmod(0o711)
            self._records = {record.spec.name: record for record in records.read_all(self._directory)}
        return self._records

    def _save(self, record: Record) -> None:
        records.write(self._directory / record.spec.name, record)
        self._load()[record.spec.name] = record


def _marks(directory: Path) -> dict[str, Path]:
    """The programs that may serve a network, and how they are found, whoever started them."""
    return {"dnsmasq": directory / "dnsmasq.conf", "metadata": directory / "metadata"}


def _check_forwards(record: Record, known: Collection[Record]) -> None:
    """A port of the host goes to one machine. Raises `ConflictError` that names the other one."""
    if record.forwards and not record.routed:  # of mode `user` they are passt's
        raise UnsupportedError(
            f"network {record.spec.name}: no ports are forwarded into mode {record.spec.mode}",
            hint="ports are forwarded into networks of mode `nat`, `routed` and `user`",
        )
    before = [forward for other in known for forward in other.forwards]
    taken = [forward for other in known if other.spec.name != record.spec.name for forward in other.forwards]
    for forward in sorted(record.forwards, key=lambda one: one not in before):  # who has it already has it
        for other in taken:
            if _same_port(forward, other) and replace(forward, machine="") != replace(other, machine=""):
                raise ConflictError(
                    f"port {forward.host_port}/{forward.protocol} of the host is"
                    f" {other.machine or other.machine_address}'s",
                    hint="choose another port of the host",
                    port=forward.host_port,
                    machine=other.machine,
                )
        taken.append(forward)


def _same_port(one: Forward, other: Forward) -> bool:
    families = [":" in forward.machine_address for forward in (one, other)]
    return (one.protocol, one.host_port, families[0]) == (other.protocol, other.host_port, families[1]) and (
        one.host_address == other.host_address or "" in (one.host_address, other.host_address)
    )


def _check_uplink(record: Record, lower: Link | None, links: Links) -> None:
    spec = record.spec
    if lower is None:
        return
    if spec.mode == "bridge" and lower.kind != "bridge":
        raise ConflictError(
            f"network {spec.name}: {lower.name} is not a bridge",
            hint=f"put {lower.name} into a bridge, or use mode `macvtap`, which takes all of it",
            network=spec.name,
            uplink=lower.name,
        )
    if spec.mode == "bridge" and spec.vlan is not None and not lower.vlans:
        raise ConflictError(
            f"network {spec.name}: the bridge {lower.name} does not tell VLANs apart",
            hint=f"ip link set {lower.name} type bridge vlan_filtering 1, or leave `vlan` out",
            network=spec.name,
            uplink=lower.name,
        )
    if spec.mode == "macvtap":
        addresses = {one for one in links.addresses(lower.index) if not one.ip.is_link_local}
        if addresses:
            raise ConflictError(
                f"network {spec.name}: {lower.name} has the host's own address"
                f" {', '.join(sorted(map(str, addresses)))}, which the host would lose",
                hint="use an interface that the host does not use itself, or mode `bridge`",
                network=spec.name,
                uplink=lower.name,
            )
