"""Networks and security groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from nagaya.models.machine import MachineInfo
from nagaya.models.network import CaptureInfo, FlowInfo, GroupInfo, NetworkInfo, PortInfo
from nagaya.sdk.tenants import Settings, patch

if TYPE_CHECKING:
    from nagaya.models.fault import NicFaults
    from nagaya.models.shares import ChangesAnswer
    from nagaya.sdk.client import Client
    from nagaya.spec import NetworkSpec, SecurityGroup


class Networks:
    """`client.networks`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> list[NetworkInfo]:
        """All networks, by name."""
        return [NetworkInfo.from_json(one) for one in self._client.request("GET", "/v1/networks")]

    def get(self, name: str) -> NetworkInfo:
        """One network, and who has which address of it."""
        return NetworkInfo.from_json(self._client.request("GET", _network(name)))

    def create(self, spec: NetworkSpec | Mapping[str, Any]) -> NetworkInfo:
        """Make a network: `{"name": "back", "mode": "isolated"}`. It comes up with a machine on it."""
        return NetworkInfo.from_json(self._client.request("POST", "/v1/networks", body=spec))

    def set(self, name: str, settings: Settings, *, dry_run: bool = False) -> ChangesAnswer:
        """Set fields of it, all or none, while no machine on it runs: `{"rate": "100MiB/s"}`."""
        return patch(self._client, _network(name), settings, dry_run)

    def ports(self, name: str) -> Sequence[PortInfo]:
        """The ports of its switch, and what went through them."""
        return _ports(self._client.request("GET", f"{_network(name)}/ports"))

    def ports_of(self, machine: str) -> Sequence[PortInfo]:
        """The ports of a machine that runs."""
        return _ports(self._client.request("GET", _nic(machine)))

    def connect(self, machine: str, network: str, **nic: Any) -> MachineInfo:
        """Give a machine a NIC on `network`; `nic` are other fields of it: `ipv4="10.9.0.7"`.

        A machine that runs gets it at once, if its engine can.
        """
        body = {"network": network, **nic}
        return MachineInfo.from_json(self._client.request("POST", _nic(machine), body=body))

    def disconnect(self, machine: str, nic: str) -> MachineInfo:
        """Take a NIC away from a machine: "net0", or the name of the network that it is on.

        One that runs gives back its last one, if its engine can and the guest lets go of it.
        """
        return MachineInfo.from_json(self._client.request("DELETE", _nic(machine, nic)))

    def set_link(self, machine: str, nic: str = "net0", *, up: bool) -> MachineInfo:
        """Plug a NIC's cable in, or pull it; live."""
        answer = self._client.request("PUT", f"{_nic(machine, nic)}/link", body={"up": up})
        return MachineInfo.from_json(answer)

    def flows(self, machine: str, nic: str = "net0", *, limit: int = 20) -> Sequence[FlowInfo]:
        """The connections of a NIC with the most bytes.

        Those of a NIC without security groups are counted for a minute from the first question.
        """
        rows = self._client.request("GET", f"{_nic(machine, nic)}/flows", query={"limit": limit})
        return [FlowInfo.from_json(row) for row in rows]

    def faults(self, machine: str) -> Sequence[NicFaults]:
        """The faults on purpose that are laid upon the links of its NICs."""
        from nagaya.models.fault import NicFaults

        return [NicFaults.from_json(row) for row in self._client.request("GET", _nic(machine, "faults"))]

    def set_faults(self, machine: str, nic: str = "net0", **faults: Any) -> None:
        """Lay faults upon a NIC's link, in the place of those that are there; without any, end them.

        `set_faults("web", loss=0.05, delay_us=20_000, partition=["db"])`; the fields are those of
        `NicFaults`. They are in effect when this returns, and end with the machine's run.
        """
        path = f"{_nic(machine, nic)}/faults"
        if faults:
            self._client.request("PUT", path, body=faults)
        else:
            self._client.request("DELETE", path)

    def capture(
        self,
        machine: str,
        nic: str = "net0",
        *,
        snaplen: int | None = None,
        limit: int | None = None,
        packets: int | None = None,
        seconds: float | None = None,
    ) -> Iterator[bytes]:
        """What a NIC sends and gets, as the pieces of a pcap file: `snaplen` bytes of each frame.

        It ends after `limit` bytes, so many `packets` or `seconds`, at `end_capture`, with the machine's run,
        and when the iterator is closed.
        """
        words = {"snaplen": snaplen, "limit": limit, "packets": packets, "seconds": seconds}
        return self._client.stream(f"{_nic(machine, nic)}/capture", **words)

    def end_capture(self, machine: str, nic: str = "net0") -> CaptureInfo:
        """End the capture of a NIC; what that, or the last one, has come to."""
        return CaptureInfo.from_json(self._client.request("DELETE", f"{_nic(machine, nic)}/capture"))

    def delete(self, name: str) -> None:
        """Remove a network that no machine has a NIC on."""
        self._client.request("DELETE", _network(name))


class Groups:
    """`client.groups`: security groups."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> list[GroupInfo]:
        """All groups, by name."""
        return [GroupInfo.from_json(one) for one in self._client.request("GET", "/v1/groups")]

    def get(self, name: str) -> GroupInfo:
        """One group."""
        return GroupInfo.from_json(self._client.request("GET", _group(name)))

    def create(
        self, name: str, *, inbound: Iterable[str] = (), outbound: Iterable[str] = ("any",)
    ) -> GroupInfo:
        """Make a group: `create("web", inbound=["tcp:80", "tcp:22@10.0.0.0/8"])`."""
        body = {"name": name, "in": list(inbound), "out": list(outbound)}
        return GroupInfo.from_json(self._client.request("POST", "/v1/groups", body=body))

    def set(
        self, name: str, *, inbound: Iterable[str] | None = None, outbound: Iterable[str] | None = None
    ) -> GroupInfo:
        """Give a group other rules, live on machines that run; None leaves those of a direction."""
        before = self.get(name)
        body = {
            "name": name,
            "in": before.inbound if inbound is None else list(inbound),
            "out": before.outbound if outbound is None else list(outbound),
        }
        return GroupInfo.from_json(self._client.request("PUT", _group(name), body=body))

    def put(self, group: SecurityGroup | Mapping[str, Any]) -> GroupInfo:
        """Make a group, or give the one of that name these rules."""
        name = group["name"] if isinstance(group, Mapping) else group.name
        return GroupInfo.from_json(self._client.request("PUT", _group(name), body=group))

    def delete(self, name: str) -> None:
        """Remove a group that no NIC is in."""
        self._client.request("DELETE", _group(name))


def _network(name: str) -> str:
    return f"/v1/networks/{quote(name, safe='')}"


def _nic(machine: str, nic: str = "") -> str:
    path = f"/v1/machines/{quote(machine, safe='')}/nics"
    return f"{path}/{quote(nic, safe='')}" if nic else path


def _ports(rows: Iterable[Mapping[str, Any]]) -> Sequence[PortInfo]:
    return [PortInfo.from_json(row) for row in rows]


def _group(name: str) -> str:
    return f"/v1/groups/{quote(name, safe='')}"
