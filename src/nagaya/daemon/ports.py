"""Commands on NICs: plugged into networks, their cables pulled, looked at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import ValidationError

from nagaya import validation
from nagaya.daemon import livenic
from nagaya.daemon.nics import Plug, plugs
from nagaya.daemon.state import NicRow
from nagaya.daemon.supervised import ALIVE, DOWN, UP, Supervised
from nagaya.errors import ConflictError, NagayaError, NotFoundError, SpecError
from nagaya.models.network import PortInfo
from nagaya.plane.ports import PortStatus
from nagaya.spec import MachineSpec, Nic

if TYPE_CHECKING:
    from nagaya.daemon.supervisor import Supervisor

_NUMBER = re.compile(r"(?:net)?([0-9]{1,2})")


async def connect(supervisor: Supervisor, machine: str, nic: Nic) -> Supervised:
    """Give a machine one more NIC; one that runs gets it at once, if its engine can."""
    one = supervisor.get(machine)
    supervisor.networks.get(nic.network)
    if one.row.state in UP:
        await livenic.connect(supervisor, one, _with(one, (*(plug.spec for plug in _plugs(one)), nic)))
        return one
    await _change(supervisor, one, (*(plug.spec for plug in _plugs(one)), nic), one.row.nics)
    return one


async def disconnect(supervisor: Supervisor, machine: str, what: str) -> Supervised:
    """Take a NIC away from a machine: by its name, or by that of the network that it is on.

    One that runs gives back its last one, if that was plugged while it ran.
    """
    one = supervisor.get(machine)
    gone = find(one, what)
    if one.row.state in UP:
        await livenic.disconnect(supervisor, one, gone)
        return one
    kept = [plug for plug in _plugs(one) if plug != gone]  # those behind it move up, and keep what they have
    await _change(supervisor, one, [plug.spec for plug in kept], tuple(plug.row for plug in kept))
    return one


async def set_link(supervisor: Supervisor, machine: str, what: str, *, up: bool) -> Supervised:
    """Plug a NIC's cable in, or pull it; a guest that runs sees it at once."""
    one = supervisor.get(machine)
    async with one.lock:
        one.require(UP | DOWN, "changed", hint="wait until it is up or down")
        plug = find(one, what)
        if plug.row.link == up:
            return one
        await _set_link(supervisor, one, plug, up=up)
    return one


async def ports(supervisor: Supervisor, network: str | None) -> list[PortInfo]:
    """The ports of a network, or of all: machines by name, uplinks last."""
    if network is not None:
        supervisor.networks.get(network)
    named = supervisor.shares.names()
    statuses = await supervisor.parts.plane.ports(network)
    found = [_info(status, named(status.id.removeprefix("%"))) for status in statuses]
    return sorted(found, key=lambda port: (not port.machine, port.id))


async def ports_of(supervisor: Supervisor, machine: str) -> list[PortInfo]:
    """The ports of a machine that runs."""
    one = supervisor.get(machine)
    return [port for port in await ports(supervisor, None) if port.machine == one.name]


def find(one: Supervised, what: str) -> Plug:
    """The NIC called "net0" or "0", or the only one on the network `what`. Raises `NotFoundError`."""
    nics = _plugs(one)
    number = _NUMBER.fullmatch(what)
    if number is not None and int(number[1]) < len(nics):
        return nics[int(number[1])]
    there = [plug for plug in nics if plug.row.network == what]
    if len(there) > 1:
        raise ConflictError(
            f"{one.name} has {len(there)} NICs on network {what}",
            hint=f"name one of {', '.join(plug.name for plug in there)}",
            machine=one.name,
        )
    if not there:
        have = ", ".join(f"{plug.name} on {plug.row.network}" for plug in nics) or "none"
        raise NotFoundError(f"{one.name} has no NIC {what!r}; it has: {have}", machine=one.name, nic=what)
    return there[0]


async def _set_link(supervisor: Supervisor, one: Supervised, plug: Plug, *, up: bool) -> None:
    before = one.row.nics
    after = tuple(replace(row, link=up) if row == plug.row else row for row in before)
    event = f"link {'up' if up else 'down'}"
    await supervisor.move(one, one.row.state, event, plug.name, nics=after)
    if one.row.state not in ALIVE:
        return
    try:
        rules = supervisor.cabling.rules(plug, supervisor.networks.get(plug.row.network).spec)
        await supervisor.parts.plane.set_port(f"{one.row.id}/{plug.name}", rules, link=up)
    except NagayaError as error:
        await supervisor.move(one, one.row.state, f"{event} undone", error.message, nics=before)
        raise


async def _change(
    supervisor: Supervisor, one: Supervised, nics: Sequence[Nic], rows: tuple[NicRow, ...]
) -> None:
    await supervisor.change(one, _with(one, nics), one.row.source, nics=rows)


def _with(one: Supervised, nics: Sequence[Nic]) -> MachineSpec:
    body = {**one.spec.to_json(), "nics": [nic.model_dump(mode="json") for nic in nics]}
    try:
        return MachineSpec.model_validate(body)
    except ValidationError as error:
        problems = validation.problems(error, MachineSpec)
        raise SpecError("\n".join(map(str, problems)), machine=one.name) from error


def _plugs(one: Supervised) -> tuple[Plug, ...]:
    return plugs(one.spec, one.row.nics)


def _info(status: PortStatus, name: str) -> PortInfo:
    guest = not status.id.startswith("%")
    machine, _, part = name.partition("/")
    uplink = "uplink" if part == "uplink" else f"uplink of {name}"
    return PortInfo(
        id=name if guest else uplink,
        machine=machine if guest else "",
        network=status.network,
        mac=status.mac or "",
        link=status.link,
        connected=status.connected,
        rx_packets=status.rx_packets,
        rx_bytes=status.rx_bytes,
        tx_packets=status.tx_packets,
        tx_bytes=status.tx_bytes,
        drops=dict(status.drops),
    )
