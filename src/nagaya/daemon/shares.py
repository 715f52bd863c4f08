"""Knobs, from specifications to the plane and the control groups, also live (docs/arbitration.md)."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from nagaya import settings, validation
from nagaya.daemon import failpoint, hotmemory
from nagaya.daemon.supervised import ALIVE, DOWN, UP, Supervised
from nagaya.daemon.tenants import Nodes, Tenants, share_nodes, tenant_nodes
from nagaya.engines.engine import Machine
from nagaya.errors import ConflictError, NagayaError, ResourceError, SpecError, UnavailableError, UsageError
from nagaya.models.shares import Change, ChangesAnswer, TenantInfo
from nagaya.plane.copying import title
from nagaya.plane.shares import ArbiterStatus, Resource, ShareNode
from nagaya.resources import relocation
from nagaya.resources.reservations import admit
from nagaya.spec import MachineSpec, Tenant, check_name

if TYPE_CHECKING:
    from nagaya.daemon.supervisor import Supervisor

Settings = Sequence[tuple[str, object]]

_LIVE = re.compile(
    r"(disk|cpu|network)\..*|(disks|nics)\[\d+\]\.share\..*|memory\.(reservation|limit|weight|huge|node)|tenant|restart|autostart"
)
_NODE = "memory.node"
_GROUPS = "cpu."  # what the machine's control groups hold
_SHARES: Mapping[Resource, tuple[str, ...]] = {  # what the plane's arbiters hold
    "disk": ("disk.", "disks[", "tenant"),
    "network": ("network.", "nics[", "tenant"),
}
_FIXED = re.compile(r"name|disks\[\d+\]\.(?!share\.).*")  # never set

log = logging.getLogger("nagaya.daemon")


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields in which two specifications, as JSON, differ: dotted name to both values."""
    old, new = settings.flatten(before), settings.flatten(after)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return {name: (old.get(name), new.get(name)) for name in names}


def is_live(field: str) -> bool:
    """Whether a field of a running machine can be changed."""
    return _LIVE.fullmatch(field) is not None


def only_knobs_differ(before: MachineSpec, after: MachineSpec) -> bool:
    """Whether a running machine with the one specification can be given the other."""
    found = differences(before.to_json(), after.to_json())
    hot = before.memory.max is not None or after.memory.size <= before.memory.size
    return all(is_live(field) or (hot and field == hotmemory.FIELD) for field in found)


class Shares:
    """Turns knobs, of machines and of tenants."""

    def __init__(self, supervisor: Supervisor, tenants: Tenants) -> None:
        self._supervisor = supervisor
        self.tenants = tenants
        self._admitting = asyncio.Lock()  # from the arithmetic until what it allowed is in effect

    def names(self) -> Callable[[str], str]:
        """What people call a node now: `db`, `db/disk0`, `@acme`, `%merge of db/disk0`."""
        known = {one.row.id: one.name for one in self._supervisor.all()}

        def name(node_id: str) -> str:
            if node_id.startswith("%copy/"):
                return f"%{title(node_id)}"
            machine, slash, disk = node_id.partition("/")
            return f"{known.get(machine, machine)}{slash}{disk}"

        return name

    async def set(self, name: str, changed: Settings, *, dry_run: bool = False) -> ChangesAnswer:
        """Set fields of a machine's specification, all or none, live where it runs.

        Raises `SpecError` for a wrong value, `ConflictError` for a field that needs a machine that is down,
        `UnsupportedError` for what its engine or this host cannot do, and `ResourceError` for a reservation
        that does not fit.
        """
        one = self._supervisor.get(name)
        began = time.monotonic()
        async with one.lock:
            found = await self._change(one, _applied(one.spec, changed), dry_run)
        return ChangesAnswer(one.name, found, dry_run, time.monotonic() - began)

    async def give(self, name: str, spec: MachineSpec) -> None:
        """Give a machine a specification that differs in what can be set. Raises as `set` does."""
        one = self._supervisor.get(name)
        async with one.lock:
            await self._change(one, spec, dry_run=False)

    async def _change(self, one: Supervised, spec: MachineSpec, dry_run: bool) -> list[Change]:
        one.require(UP | DOWN, "changed", hint="wait until it is up or down")
        up = one.row.state in UP
        found = differences(one.spec.to_json(), spec.to_json())
        fixed = [field for field in found if _FIXED.fullmatch(field)]
        if fixed:
            raise UsageError(f"{', '.join(fixed)}: cannot be set", hint="it stays as it was made")
        stuck = [field for field in found if up and not is_live(field) and field != hotmemory.FIELD]
        if stuck:
            raise ConflictError(
                f"{', '.join(stuck)}: {one.name} is {one.row.state} and takes that only when it starts",
                hint=f"nagaya stop {one.name}, set it, nagaya start {one.name}",
                machine=one.name,
                fields=stuck,
            )
        engine = self._supervisor.engine_of(one) if up else self._supervisor.parts.engine(spec)
        engine.check(spec)
        if up and hotmemory.FIELD in found:
            await hotmemory.check(self._supervisor, one, spec)
        changes = [Change(field, *values, "live" if up else "start") for field, values in found.items()]
        async with self._admitting:
            self._supervisor.capacity.admit_autostart(one.name, spec, one.spec)
            if up:
                before = self._nodes(one)
                for resource in _shared(found):
                    await self._admit(one, spec, resource, before[resource])
            if up:
                self._supervisor.capacity.admit(one, spec, one.spec)
            if found and not dry_run:
                await self._commit(one, spec, changes)
        self._supervisor.queue.kick()
        return changes

    async def set_tenant(self, name: str, changed: Settings, *, dry_run: bool = False) -> ChangesAnswer:
        """Set knobs of a tenant; live for its machines that run."""
        began = time.monotonic()
        after = _tenant_with(self.tenants.get(_checked(name)), changed)
        changes = await self.give_tenant(after, dry_run=dry_run)
        return ChangesAnswer(f"@{name}", changes, dry_run, time.monotonic() - began)

    async def give_tenant(self, after: Tenant, *, dry_run: bool = False) -> list[Change]:
        """Give a tenant other knobs. Raises `ResourceError` for a reservation that does not fit."""
        name, before = after.name, self.tenants.get(after.name)
        found = differences(before.to_json(), after.to_json())
        new, old = tenant_nodes(after), tenant_nodes(before)
        async with self._admitting:
            for resource in _shared(found):
                admit(await self._arbiters(resource), [new[resource]], [old[resource]], self.names())
            if found and not dry_run:
                await self.tenants.save(after)
                if any(one.row.state in ALIVE for one in self._members(name)):
                    await self._tell_tenant(before, {kind: new[kind] for kind in _shared(found)})
        return [Change(field, *values, "live") for field, values in found.items()]

    def tenant(self, name: str) -> TenantInfo:
        """What the API says of a tenant."""
        tenant = self.tenants.get(_checked(name))
        knobs: Any = tenant.to_json()
        return TenantInfo(name, knobs["disk"], knobs["network"], [one.name for one in self._members(name)])

    def all_tenants(self) -> list[TenantInfo]:
        """Those that have machines or knobs, by name."""
        used = {one.spec.tenant for one in self._supervisor.all() if one.spec.tenant}
        return [self.tenant(name) for name in sorted(used.union(self.tenants.names()))]

    async def add_devices(self, one: Supervised, machine: Machine) -> None:
        """Have the plane serve a machine's devices, if the host can keep what it reserves; else none is left.

        Only with its devices is it known on which disks and networks a machine is. Raises `ResourceError`.
        """
        launcher = self._supervisor.launcher
        reserving = [kind for kind, nodes in self._nodes(one).items() if any(map(_reserves, nodes))]
        if not reserving:
            await launcher.add_devices(one.row, machine)
            return
        async with self._admitting:
            await launcher.add_devices(one.row, machine)
            try:
                for resource in reserving:
                    await self._admit(one, one.spec, resource, ())
            except ResourceError:
                await launcher.remove_devices(one.row, one.spec)
                raise

    async def grow_network(self, one: Supervised, before: MachineSpec) -> None:
        """A machine that was as `before` has one more NIC, which the plane serves: give it its share.

        Raises `ResourceError` if what it reserves does not fit.
        """
        async with self._admitting:
            had = share_nodes(one.row.id, before, self.tenants)["network"]
            await self._admit(one, one.spec, "network", had)
            nodes = self._nodes(one)["network"]
            await self._supervisor.parts.plane.set_shares(nodes, resource="network")

    async def renew(self, machines: Iterable[Supervised]) -> None:
        """Tell the plane the knobs of machines again: an earlier daemon may have died in between."""
        trees = [self._nodes(one) for one in machines]
        for resource in _SHARES:
            nodes = {node.id: node for tree in trees for node in tree[resource]}
            if nodes:
                await self._supervisor.parts.plane.set_shares(list(nodes.values()), resource=resource)

    async def _admit(
        self, one: Supervised, spec: MachineSpec, resource: Resource, before: Sequence[ShareNode]
    ) -> None:
        nodes = share_nodes(one.row.id, spec, self.tenants)[resource]
        if any(map(_reserves, nodes)):
            admit(await self._arbiters(resource), nodes, before, self.names())

    async def _arbiters(self, resource: Resource) -> list[ArbiterStatus]:
        return [one for one in await self._supervisor.parts.plane.arbiters() if one.resource == resource]

    def _nodes(self, one: Supervised) -> Mapping[Resource, Nodes]:
        return share_nodes(one.row.id, one.spec, self.tenants)

    def _members(self, tenant: str) -> list[Supervised]:
        return [one for one in self._supervisor.all() if one.spec.tenant == tenant]

    async def _commit(self, one: Supervised, spec: MachineSpec, changes: Sequence[Change]) -> None:
        """On disk, then in effect; if that fails, as it was."""
        before = one.spec
        detail = ", ".join(f"{change.field}={_shown(change.after)}" for change in changes)
        fields = [change.field for change in changes]
        if spec.memory.node is None:  # first: no later daemon would look for it
            self._prefer_node(one, spec, fields)
        try:
            await self._record(one, spec, "set", detail)
        except NagayaError:
            self._prefer_node(one, before, fields)
            raise
        failpoint.reach("set:recorded")
        if one.row.state not in UP:
            return
        try:
            await self._apply(one, fields)
        except NagayaError as error:
            await self._record(one, before, "set undone", error.message)
            try:
                await self._apply(one, fields)
            except NagayaError:
                log.exception("%s: its knobs could not be set back; the next daemon does it", one.name)
            raise
        failpoint.reach("set:applied")

    async def _record(self, one: Supervised, spec: MachineSpec, event: str, detail: str) -> None:
        before, one.spec = one.spec, spec
        try:
            await self._supervisor.move(one, one.row.state, event, detail, spec=spec.to_json())
        except NagayaError:
            one.spec = before
            raise

    async def _apply(self, one: Supervised, fields: Sequence[str]) -> None:
        if any(field.startswith(_GROUPS) for field in fields):
            await one.require_process().engine.adjust(self._supervisor.engine_machine(one))
        if hotmemory.FIELD in fields:
            await hotmemory.apply(self._supervisor, one)
        self._prefer_node(one, one.spec, fields)
        for resource in _shared(fields):
            await self._supervisor.parts.plane.set_shares(self._nodes(one)[resource], resource=resource)

    def _prefer_node(self, one: Supervised, spec: MachineSpec, fields: Sequence[str]) -> None:
        """What is elsewhere is moved later (`nagaya.daemon.memoryhome`)."""
        if _NODE in fields and one.row.state in UP:
            try:
                relocation.prefer(spec.memory.node, self._supervisor.parts.group(one.row.id))
            except OSError as error:
                raise UnavailableError(f"{one.name}: {_NODE} cannot be set: {error.strerror}") from error

    async def _tell_tenant(self, before: Tenant, nodes: Mapping[Resource, ShareNode]) -> None:
        try:
            for resource, node in nodes.items():
                await self._supervisor.parts.plane.set_shares([node], resource=resource)
        except NagayaError:
            await self.tenants.save(before)
            raise


def _shared(fields: Iterable[str]) -> list[Resource]:
    """The resources whose arbiters are to be told of changed fields."""
    return [kind for kind, parts in _SHARES.items() if any(field.startswith(parts) for field in fields)]


def _reserves(node: ShareNode) -> bool:
    return bool(node.reservation or node.reservation_iops)


def _applied(spec: MachineSpec, changed: Settings) -> MachineSpec:
    body = spec.to_json()
    for field, value in changed:
        settings.put(body, field, value)
    try:
        return MachineSpec.model_validate(body)
    except ValidationError as error:
        raise _wrong(validation.problems(error, MachineSpec)) from error


def _tenant_with(tenant: Tenant, changed: Settings) -> Tenant:
    body = tenant.to_json()
    for field, value in changed:
        settings.put(body, field, value)
    try:
        made = Tenant.model_validate(body)
    except ValidationError as error:
        raise _wrong(validation.problems(error, Tenant)) from error
    if made.name != tenant.name:
        raise UsageError("name: cannot be set", hint="set the machines' tenant instead")
    return made


def _wrong(problems: Sequence[validation.Problem]) -> SpecError:
    return SpecError(
        "\n".join(str(problem) for problem in problems),
        problems=[{"field": validation.dotted(one.field), "message": one.message} for one in problems],
    )


def _checked(name: str) -> str:
    try:
        return check_name(name)
    except ValueError as error:
        raise UsageError(str(error).replace("a machine", "a tenant"), tenant=name) from error


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
