"""Security groups: what the NICs that are in them may be asked for, and may ask for; changed live."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from nagaya.daemon.state import Record, RecordTable, State
from nagaya.daemon.supervised import Supervised
from nagaya.daemon.writer import Writer
from nagaya.errors import ConflictError, NagayaError, NotFoundError
from nagaya.models.network import GroupInfo
from nagaya.spec import MachineSpec, SecurityGroup

if TYPE_CHECKING:
    from nagaya.daemon.supervisor import Supervisor

_TABLE: RecordTable = "security_groups"


class Groups:
    """All security groups."""

    def __init__(self, supervisor: Supervisor, writer: Writer) -> None:
        self._supervisor = supervisor
        self._writer = writer
        self._changing = asyncio.Lock()
        found = (SecurityGroup.model_validate(record.spec) for record in writer.state.records(_TABLE))
        self._groups = {group.name: group for group in found}

    def all(self) -> list[SecurityGroup]:
        """All of them, by name."""
        return [self._groups[name] for name in sorted(self._groups)]

    def get(self, name: str) -> SecurityGroup:
        """The group of that name. Raises `NotFoundError`."""
        found = self._groups.get(name)
        if found is None:
            near = difflib.get_close_matches(name, self._groups, n=1)
            ways = f"`nagaya group list` shows them, `nagaya group create {name}` makes it"
            hint = f"did you mean {near[0]!r}?" if near else ways
            raise NotFoundError(f"there is no security group {name!r}", hint=hint, group=name)
        return found

    def require(self, spec: MachineSpec) -> None:
        """Raise `NotFoundError` unless all groups of a machine's NICs are there."""
        for nic in spec.nics or ():
            for name in nic.groups:
                self.get(name)

    def users(self, name: str) -> list[Supervised]:
        """The machines with a NIC in it, by name."""
        return [one for one in self._supervisor.all() if name in _groups_of(one.spec)]

    def info(self, group: SecurityGroup) -> GroupInfo:
        """What the API says of it."""
        members = [one.name for one in self.users(group.name)]
        return GroupInfo(group.name, list(group.inbound), list(group.outbound), members)

    async def create(self, group: SecurityGroup) -> SecurityGroup:
        """Make one. Raises `ConflictError` for a name that is taken."""
        if group.name in self._groups:
            raise ConflictError(
                f"there is a security group {group.name!r} already",
                hint=f"change it: nagaya group set {group.name} --in ...",
                group=group.name,
            )
        await self.put(group)
        return group

    async def put(self, group: SecurityGroup) -> bool:
        """Give a group these rules, live on machines that run. Whether that changed anything.

        If one of their ports cannot be told, all have the rules that they had, and its error is raised.
        """
        async with self._changing:
            before = self._groups.get(group.name)
            if before == group:
                return False
            try:
                await self._give(group)
            except NagayaError as error:
                if before is not None:
                    with contextlib.suppress(NagayaError):  # those that cannot be told now either kept them
                        await self._give(before)
                    error.message = f"security group {group.name} stays as it was: {error.message}"
                raise
        self._supervisor.events.publish({"event": "group", "name": group.name})
        return True

    async def delete(self, name: str) -> None:
        """Remove one that no machine's NIC is in."""
        self.get(name)
        users = self.users(name)
        if users:
            names = ", ".join(one.name for one in users)
            raise ConflictError(
                f"security group {name} is that of {names}", hint="take them out of it first", group=name
            )
        del self._groups[name]
        await self._writer.call(State.delete_record, _TABLE, name)
        self._supervisor.events.publish({"event": "group deleted", "name": name})

    async def _give(self, group: SecurityGroup) -> None:
        record = Record(group.name, group.to_json(), time.time())
        await self._writer.call(State.save_record, _TABLE, record)
        self._groups[group.name] = group
        await self._supervisor.cabling.retell(lambda plug: group.name in plug.spec.groups)


def _groups_of(spec: MachineSpec) -> Iterable[str]:
    return {name for nic in spec.nics or () for name in nic.groups}
