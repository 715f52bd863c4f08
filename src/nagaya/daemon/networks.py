"""The networks of this daemon: made, found, changed and removed; `default` is made at its first use.

Their records are in the state; what of a network is on the host lasts as long as a machine uses it.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from nagaya import settings, validation
from nagaya.daemon.nics import MAIN, Allotter, Owner, plugs, wanted_nics
from nagaya.daemon.parts import HostNetworks
from nagaya.daemon.state import NicRow, Record, RecordTable, State
from nagaya.daemon.supervised import ALIVE, Supervised
from nagaya.daemon.writer import Writer
from nagaya.errors import ConflictError, NotFoundError, SpecError, UnsupportedError, UsageError
from nagaya.models.network import AddressInfo, NetworkInfo, NetworkState
from nagaya.models.shares import Change, ChangesAnswer
from nagaya.networks.config import Forward, Reservation, Uplink
from nagaya.resources.addresses import free_range, overlap, unique_prefix
from nagaya.resources.leases import this_host
from nagaya.spec import MachineSpec, NetworkSpec, Nic
from nagaya.traffic import PortForward, parse_forward

if TYPE_CHECKING:
    from nagaya.daemon.supervisor import Supervisor

_TABLE: RecordTable = "networks"
_TOLD = ("dhcp", "dns", "domain", "rate")  # fields that machines with addresses do not notice

Told = tuple[NetworkSpec, tuple[Reservation, ...], tuple[Forward, ...]]

log = logging.getLogger("nagaya.daemon")


@dataclass(slots=True, eq=False)
class Network:
    """A network, and what of it is on the host. Bring it up or down only while holding `lock`."""

    spec: NetworkSpec
    created_at: float
    uplink: Uplink | None = None  # None while it is down
    told: Told | None = None  # what the host was told last
    served_by: int | None = None  # the plane's process that has its uplink
    private: dict[str, int | None] = field(default_factory=dict)  # the same of the NICs' own, by MAC address
    cause: str = ""  # why it could not be brought up
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def name(self) -> str:
        """What people call it."""
        return self.spec.name

    @property
    def state(self) -> NetworkState:
        """Whether it is on the host."""
        return "up" if self.uplink else "failed" if self.cause else "down"


class Networks:
    """All networks."""

    def __init__(self, supervisor: Supervisor, writer: Writer, host: HostNetworks) -> None:
        self._supervisor = supervisor
        self._writer = writer
        self.host = host
        self._making = asyncio.Lock()
        self._seed = f"{this_host().id}{supervisor.paths.state}"
        self._networks = {
            record.name: Network(NetworkSpec.model_validate(record.spec), record.created_at)
            for record in writer.state.records(_TABLE)
        }

    # -- looking

    def all(self) -> list[Network]:
        """All of them, by name."""
        return [self._networks[name] for name in sorted(self._networks)]

    def get(self, name: str) -> Network:
        """The network of that name. Raises `NotFoundError`."""
        found = self._networks.get(name)
        if found is None:
            near = difflib.get_close_matches(name, self._networks, n=1)
            ways = f"`nagaya network list` shows them, `nagaya network create {name}` makes it"
            hint = f"did you mean {near[0]!r}?" if near else ways
            raise NotFoundError(f"there is no network {name!r}", hint=hint, network=name)
        return found

    def users(self, name: str, *, alive: bool = False) -> list[Supervised]:
        """The machines with a NIC on it, by name; with `alive` only those that run or are about to."""
        return [
            one
            for one in self._supervisor.all()
            if any(row.network == name for row in one.row.nics) and (one.row.state in ALIVE or not alive)
        ]

    def info(self, network: Network) -> NetworkInfo:
        """What the API says of it."""
        spec = network.spec
        return NetworkInfo(
            name=spec.name,
            mode=spec.mode,
            ipv4=spec.ipv4 or "",
            ipv6=spec.ipv6 or "",
            gateway4=spec.gateway4,
            gateway6=spec.gateway6,
            uplink=spec.uplink,
            interface=network.uplink.interface or network.uplink.path if network.uplink else "",
            state=network.state,
            cause=network.cause,
            created_at=network.created_at,
            spec=spec.to_json(),
            addresses=self._addresses(spec.name),
        )

    # -- commands

    async def create(self, spec: NetworkSpec) -> Network:
        """Make a network. Raises `ConflictError` for a taken name or range, `UnsupportedError`."""
        async with self._making:
            if spec.name in self._networks:
                raise ConflictError(
                    f"there is a network {spec.name!r} already",
                    hint="choose another name, or change it: nagaya network set",
                    network=spec.name,
                )
            return await self._make(spec)

    async def set(self, name: str, changed: Sequence[tuple[str, object]], *, dry_run: bool) -> ChangesAnswer:
        """Set fields, all or none, while no machine on it runs. Raises `ConflictError` and `SpecError`."""
        began = time.monotonic()
        network = self.get(name)
        async with self._making, network.lock:
            after = self._resolved(_with(network.spec, changed))
            before, now = settings.flatten(network.spec.to_json()), settings.flatten(after.to_json())
            changes = [
                Change(key, before.get(key), now[key], "start") for key in now if before.get(key) != now[key]
            ]
            if changes:
                self._require_changeable(network, [change.field for change in changes])
                self._check(after)
            if changes and not dry_run:
                await self._save(after, network.created_at)
                network.spec, network.cause = after, ""
                self.publish("network", network)
        return ChangesAnswer(name, changes, dry_run, time.monotonic() - began)

    async def give(self, spec: NetworkSpec) -> str:
        """Have a network be as `spec` says; whether it did "create" or "set" it, or left it "unchanged"."""
        network = self._networks.get(spec.name)
        if network is None:
            await self.create(spec)
            return "create"
        body = {key: value for key, value in spec.to_json().items() if value != "auto"}
        return (
            "set" if (await self.set(spec.name, list(body.items()), dry_run=False)).changes else "unchanged"
        )

    async def delete(self, name: str) -> None:
        """Remove a network that no machine has a NIC on."""
        network = self.get(name)
        async with self._making, network.lock:
            users = self.users(name)
            if users:
                names = ", ".join(one.name for one in users)
                raise ConflictError(
                    f"network {name} is used by {names}",
                    hint=f"nagaya network disconnect {users[0].name} {name}, or delete the machine",
                    network=name,
                    machines=[one.name for one in users],
                )
            await self.host.remove(name)
            await self._writer.call(State.delete_record, _TABLE, name)
            self._networks.pop(name, None)
        self._supervisor.events.publish({"event": "network deleted", "name": name})

    # -- machines

    async def prepare(self, spec: MachineSpec) -> tuple[Nic, ...]:
        """The NICs that a new machine of `spec` gets, whose networks are there then.

        Raises `NotFoundError` for a network that is not there, `UnsupportedError` for one that cannot be.
        """
        refusal = self.host.refusal(self._default()) if spec.nics is None else ""
        if refusal:
            log.info("%s gets no NIC: %s", spec.name, refusal)
        nics = wanted_nics(spec, network="" if refusal else self.host.default)
        if any(nic.network == MAIN for nic in nics) and MAIN not in self._networks:
            async with self._making:
                if MAIN not in self._networks:
                    await self._make(self._default())
        for nic in nics:
            self.get(nic.network)
        if spec.ports and not nics:
            raise UnsupportedError(
                f"{spec.name}: ports: it has no NIC that they could lead to", field="ports"
            )
        return nics

    async def check_ports(self, specs: Iterable[MachineSpec]) -> None:
        """Raise `ConflictError` for a port of the host that one of `specs` wants and another program has."""
        wanted = [(spec.name, forward) for spec in specs for forward in map(parse_forward, spec.ports)]
        await self.host.check_ports([_unaddressed(name, forward) for name, forward in wanted])

    def allot(
        self, machine_id: str, name: str, nics: Sequence[Nic], rows: tuple[NicRow, ...] = ()
    ) -> tuple[NicRow, ...]:
        """Addresses for the NICs of a machine, which has `rows` now."""
        others = [
            Owner(one.row.id, one.name, one.row.nics)
            for one in self._supervisor.all()
            if one.row.id != machine_id
        ]
        allotter = Allotter(lambda network: self.get(network).spec, self._seed, self.host.macs())
        return allotter.allot(Owner(machine_id, name, rows), nics, others)

    def publish(self, event: str, network: Network) -> None:
        """Tell those who follow the news."""
        log.info("network %s is %s", network.name, network.state)
        self._supervisor.events.publish(
            {"event": event, "name": network.name, "state": network.state, "cause": network.cause}
        )

    # -- helpers

    def _default(self) -> NetworkSpec:
        return NetworkSpec(name=MAIN, mode=self.host.default_mode)

    async def _make(self, spec: NetworkSpec) -> Network:
        spec = self._resolved(spec)
        self._check(spec)
        network = Network(spec, time.time())
        await self._save(spec, network.created_at)
        self._networks[spec.name] = network
        self.publish("network", network)
        return network

    async def _save(self, spec: NetworkSpec, created_at: float) -> None:
        await self._writer.call(State.save_record, _TABLE, Record(spec.name, spec.to_json(), created_at))

    def _resolved(self, spec: NetworkSpec) -> NetworkSpec:
        """With ranges of its own where they are `auto`."""
        others = [other.spec for other in self._networks.values() if other.name != spec.name]
        found: dict[str, str | None] = {}
        if spec.ipv4 == "auto":
            used = [one for one in self.host.ranges() if ":" not in one]
            used += [other.ipv4 for other in others if other.ipv4]
            found["ipv4"] = free_range(used) if spec.addressed else None
        if spec.ipv6 == "auto":
            used = [*self.host.ranges(), *(other.ipv6 for other in others if other.ipv6)]
            found["ipv6"] = unique_prefix(f"{self._seed}/{spec.name}", used) if spec.addressed else None
        return spec.model_copy(update=found)

    def _check(self, spec: NetworkSpec) -> None:
        refusal = self.host.refusal(spec)
        if refusal:
            raise UnsupportedError(f"network {spec.name}: {refusal}", network=spec.name)
        for span in filter(None, (spec.ipv4, spec.ipv6)):
            for other in self._networks.values():
                theirs = [one for one in (other.spec.ipv4, other.spec.ipv6) if one]
                if other.name != spec.name and overlap(span, theirs):
                    raise _overlapping(spec.name, span, f"network {other.name} has {overlap(span, theirs)}")
            mine = self._networks.get(spec.name)
            if mine is not None and span in (mine.spec.ipv4, mine.spec.ipv6):
                continue  # what the host routes there is its own
            routed = overlap(span, self.host.ranges())
            if routed:
                raise _overlapping(spec.name, span, f"the host has a route to {routed}")

    def _require_changeable(self, network: Network, fields: Sequence[str]) -> None:
        fixed = [one for one in fields if one == "name"]
        if fixed:
            raise UsageError("name: cannot be set", hint="make another network")
        alive = self.users(network.name, alive=True)
        if alive:
            names = ", ".join(one.name for one in alive)
            raise ConflictError(
                f"network {network.name} has machines that run: {names}",
                hint=f"nagaya stop {alive[0].name} first",
                network=network.name,
            )
        users = self.users(network.name)
        if users and any(one not in _TOLD for one in fields):
            names = ", ".join(one.name for one in users)
            raise ConflictError(
                f"{', '.join(fields)}: {names} have addresses of network {network.name}",
                hint="disconnect them first, or make another network",
                network=network.name,
            )

    def _addresses(self, name: str) -> list[AddressInfo]:
        return [
            AddressInfo(one.name, plug.name, plug.row.mac, plug.row.ipv4, plug.row.ipv6)
            for one in self.users(name)
            for plug in plugs(one.spec, one.row.nics)
            if plug.row.network == name
        ]


def _with(spec: NetworkSpec, changed: Sequence[tuple[str, object]]) -> NetworkSpec:
    body: dict[str, Any] = dict(spec.to_json())
    for key, value in changed:
        if key not in NetworkSpec.model_fields:
            raise UsageError(validation.unknown_key(key, NetworkSpec.model_fields))
        body[key] = None if value == "none" else value
    try:
        return NetworkSpec.model_validate(body)
    except ValidationError as error:
        problems = validation.problems(error, NetworkSpec)
        raise SpecError("\n".join(map(str, problems))) from error


def _unaddressed(machine: str, forward: PortForward) -> Forward:
    """Of a machine that has no address yet."""
    return Forward(
        protocol=forward.protocol,
        host_address=forward.host_address,
        host_port=forward.host_port,
        machine_address="::" if ":" in forward.host_address else "0.0.0.0",  # noqa: S104 - not bound
        machine_port=forward.machine_port,
        machine=machine,
    )


def _overlapping(name: str, span: str, fact: str) -> ConflictError:
    return ConflictError(
        f"network {name} cannot have {span}: {fact}",
        hint="choose another range, or leave it out, and one is chosen",
        network=name,
    )
