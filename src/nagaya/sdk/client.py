"""The client itself: what concerns the whole daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nagaya.connection import Connection
from nagaya.paths import Paths
from nagaya.sdk.machines import Machines

if TYPE_CHECKING:
    from nagaya.models.host import HostInfo, HostReport, VersionInfo
    from nagaya.models.plan import ConsolidationAnswer, PlanAnswer
    from nagaya.models.shares import ChangesAnswer
    from nagaya.models.usage import UsageAnswer
    from nagaya.models.waits import WaitInfo
    from nagaya.sdk.disks import Disks
    from nagaya.sdk.leases import Leases
    from nagaya.sdk.memory import Memory
    from nagaya.sdk.networks import Groups, Networks
    from nagaya.sdk.operations import Operation, Operations
    from nagaya.sdk.stores import Images, Kernels
    from nagaya.sdk.tenants import Settings, Tenants
    from nagaya.spec import MachineSpec, NetworkSpec, SecurityGroup, Tenant


class Client(Connection):
    """A connection to the daemon of `paths` (default: this user's). Use it as a context manager.

    With `start=ensure_daemon` a daemon is started when a request finds none.
    """

    def __init__(self, paths: Paths | None = None, *, start: Callable[[Paths], object] | None = None) -> None:
        super().__init__(paths, start=start)
        self.machines = Machines(self)

    @cached_property
    def images(self) -> Images:
        """The images in the store."""
        from nagaya.sdk.stores import Images

        return Images(self)

    @cached_property
    def disks(self) -> Disks:
        """Disks of machines, and disks with a name of their own."""
        from nagaya.sdk.disks import Disks

        return Disks(self)

    @cached_property
    def kernels(self) -> Kernels:
        """The guest kernels."""
        from nagaya.sdk.stores import Kernels

        return Kernels(self)

    @cached_property
    def leases(self) -> Leases:
        """Who may use which image."""
        from nagaya.sdk.leases import Leases

        return Leases(self)

    @cached_property
    def networks(self) -> Networks:
        """The networks."""
        from nagaya.sdk.networks import Networks

        return Networks(self)

    @cached_property
    def groups(self) -> Groups:
        """The security groups."""
        from nagaya.sdk.networks import Groups

        return Groups(self)

    @cached_property
    def memory(self) -> Memory:
        """Memory of machines, and the broker that moves it between them."""
        from nagaya.sdk.memory import Memory

        return Memory(self)

    @cached_property
    def operations(self) -> Operations:
        """The long jobs."""
        from nagaya.sdk.operations import Operations

        return Operations(self)

    @cached_property
    def tenants(self) -> Tenants:
        """The tenants."""
        from nagaya.sdk.tenants import Tenants

        return Tenants(self)

    def version(self) -> VersionInfo:
        """The daemon's version."""
        from nagaya.models.host import VersionInfo

        return VersionInfo.from_json(self.request("GET", "/v1/version"))

    def host(self) -> HostInfo:
        """The processes and the directories of this Nagaya."""
        from nagaya.models.host import HostInfo

        return HostInfo.from_json(self.request("GET", "/v1/host"))

    def report(self) -> HostReport:
        """What the host has, keeps, has promised, uses and has left."""
        from nagaya.models.host import HostReport

        return HostReport.from_json(self.request("GET", "/v1/host/report"))

    def set_host(self, settings: Settings, *, dry_run: bool = False) -> ChangesAnswer:
        """Set how much of the host is promised: `{"memory.overcommit": "fair", "cpu.kept": 0.5}`."""
        from nagaya.sdk.tenants import patch

        return patch(self, "/v1/host", settings, dry_run)

    def waits(self, since: int = 60) -> list[WaitInfo]:
        """who waited for whom at disks and networks in the last `since` seconds, the longest first."""
        from nagaya.models.waits import WaitInfo

        answer = self.request("GET", "/v1/waits", query={"since": since})
        return [WaitInfo.from_json(row) for row in answer]

    def usage(self, since: int = 5) -> UsageAnswer:
        """What all machines use of the host now, and who waited for whom in the last `since` seconds."""
        from nagaya.models.usage import UsageAnswer

        return UsageAnswer.from_json(self.request("GET", "/v1/usage", query={"since": since}))

    def plan(self, like: str, *, most: int = 100, p99_us: int | None = None) -> PlanAnswer:
        """How many machines more like `like` fit this host, and what breaks first; changes nothing.

        `p99_us` is what any disk may take; without it each one's objective, or three times what it takes now.
        Raises `ConflictError` if nothing has been recorded of `like`.
        """
        from nagaya.models.plan import PlanAnswer

        query = {"like": like, "most": most} | ({} if p99_us is None else {"p99_us": p99_us})
        return PlanAnswer.from_json(self.request("GET", "/v1/plan", query=query, within=120))

    def consolidation(self) -> ConsolidationAnswer:
        """Which machines could share one host like this one, by what they have asked for."""
        from nagaya.models.plan import ConsolidationAnswer

        return ConsolidationAnswer.from_json(self.request("GET", "/v1/plan/consolidation"))

    def metrics(self) -> str:
        """The same in the text format of Prometheus."""
        return b"".join(self.stream("/v1/metrics")).decode()

    def apply(
        self,
        machines: Sequence[MachineSpec | Mapping[str, Any]],
        images: Mapping[str, Any] | None = None,
        *,
        tenants: Sequence[Tenant | Mapping[str, Any]] = (),
        networks: Sequence[NetworkSpec | Mapping[str, Any]] = (),
        groups: Sequence[SecurityGroup | Mapping[str, Any]] = (),
        source: str = "",
        recreate: bool = False,
        prune: bool = False,
    ) -> Operation:
        """Make it so: build missing images, create, update and start machines. Idempotent.

        The operation's result is `{"machines": [{"name", "action"}], "images": [...]}`, and so on. A
        running machine whose spec changed is a `ConflictError` unless `recreate`; `prune` deletes what an
        earlier `apply` with the same `source` made and this one leaves out.
        """
        body = {
            "machines": list(machines),
            "images": dict(images or {}),
            "tenants": list(tenants),
            "networks": list(networks),
            "groups": list(groups),
            "source": source,
            "recreate": recreate,
            "prune": prune,
        }
        return self.operations.begin("/v1/apply", body)

    def down(self, machines: Sequence[str], *, keep: bool = False, timeout: float = 30.0) -> Operation:
        """Stop the named machines and delete them (`keep`: only stop); unknown names are passed over."""
        body = {"machines": list(machines), "keep": keep, "timeout": timeout}
        return self.operations.begin("/v1/down", body)

    def events(self) -> Iterator[dict[str, Any]]:
        """Events as they come: `{"event": "machine" | "operation" | "lease" | "deleted", ...}`."""
        import json

        with self.websocket("/v1/events") as connection:
            for message in connection:
                yield json.loads(message)
