"""Leases: who may use which image."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from nagaya.connection import POLL_TIME
from nagaya.errors import TimeoutExpiredError, UnavailableError
from nagaya.models.history import JournalEntry
from nagaya.models.lease import BreakInfo, LeaseInfo, LeaseWait
from nagaya.sdk.patience import ABSENCE, patiently

if TYPE_CHECKING:
    from nagaya.sdk.client import Client

_NOBODY = (FileNotFoundError, ConnectionRefusedError)  # there is no daemon; another one died while asked


class Leases:
    """`client.leases`. A resource is a path, `MACHINE/disk0`, the name of a base image, or a lease's id."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def journal(self, resource: str = "") -> list[JournalEntry]:
        """Refusals, grants, hand-overs and breaks, oldest first."""
        query = {"resource": _resource(resource)} if resource else {}
        answer = self._client.request("GET", "/v1/leases/journal", query=query)
        return [JournalEntry.from_json(one) for one in answer]

    def list(self, resource: str = "") -> list[LeaseInfo]:
        """All leases, or those on one resource."""
        query = {"resource": _resource(resource)} if resource else {}
        return [LeaseInfo.from_json(one) for one in self._client.request("GET", "/v1/leases", query=query)]

    def wait(
        self,
        machine: str,
        timeout: float | None = None,
        watcher: Callable[[LeaseWait], None] | None = None,
    ) -> LeaseWait:
        """Queue a machine for all its images, and wait until they are reserved for it.

        It keeps its place if the daemon restarts at any moment; interrupted, it gives it up. Raises
        `TimeoutExpiredError` after `timeout` seconds, with what it waited for.
        """
        found = self._queue(machine, timeout)
        reason = found.reason
        try:
            while found.state == "waiting":
                reason = found.reason
                if watcher is not None:
                    watcher(found)
                found = self._poll(found.machine_id)
        except BaseException:
            self.give_up(found.machine_id)
            raise
        if found.state == "ended":
            raise TimeoutExpiredError(f"{found.machine} waited long enough: {reason}", machine=found.machine)
        return found

    def waiting(self, machine: str, seconds: float = 0.0) -> LeaseWait:
        """A machine's place in the queue, as soon as it has left it or after `seconds`."""
        path = f"/v1/leases/waiters/{quote(machine, safe='')}"
        answer = self._client.request("GET", path, query={"wait": seconds}, within=seconds + 30)
        return LeaseWait.from_json(answer)

    def give_up(self, machine: str) -> None:
        """It does not wait any more, and what is reserved for it is free."""
        self._client.request("DELETE", f"/v1/leases/waiters/{quote(machine, safe='')}")

    def transfer(
        self, resource: str, machine: str, *, way: Literal["", "stop", "detach"] = "", timeout: float = 30.0
    ) -> LeaseWait:
        """Hand an image over to a machine that is down.

        `way` says what may be done with a holder that runs: "stop" asks it to shut down, and ends it after
        `timeout` seconds, "detach" closes the disk under it.
        """
        body = {"resource": _resource(resource), "machine": machine, "way": way, "timeout": timeout}
        answer = self._client.request("POST", "/v1/leases/transfer", body=body, within=timeout + 90)
        return LeaseWait.from_json(answer)

    def break_(self, lease_id: str, *, force: bool = False) -> BreakInfo:
        """End a lease against its holder's will; with `force` a holder that lives is killed before."""
        path = f"/v1/leases/{quote(lease_id, safe='')}/break"
        answer = self._client.request("POST", path, body={"force": force}, within=90)
        return BreakInfo.from_json(answer | {"lease": LeaseInfo.from_json(answer["lease"])})

    def claim(
        self,
        path: str | os.PathLike[str],
        *,
        holder: str,
        host: str,
        host_id: str = "",
        access: Literal["writer", "reader", "shared"] = "writer",
        ttl: float = 60.0,
    ) -> LeaseInfo:
        """A lease for `holder` on another host, who renews it within `ttl` seconds."""
        body = {
            "path": _resource(os.fspath(path)),
            "holder": holder,
            "host": host,
            "host_id": host_id,
            "access": access,
            "ttl": ttl,
        }
        return LeaseInfo.from_json(self._client.request("POST", "/v1/leases/claim", body=body))

    def renew(self, lease_id: str, *, ttl: float = 60.0) -> LeaseInfo:
        """Another `ttl` seconds for a holder on another host."""
        path = f"/v1/leases/{quote(lease_id, safe='')}/renew"
        return LeaseInfo.from_json(self._client.request("POST", path, body={"ttl": ttl}))

    def release(self, lease_id: str) -> None:
        """A holder on another host needs it no more."""
        self._client.request("DELETE", f"/v1/leases/{quote(lease_id, safe='')}")

    def _queue(self, machine: str, timeout: float | None) -> LeaseWait:
        """Queue a machine, with the next daemon if one dies before it answers: who waits keeps its place."""
        began = time.monotonic()
        while True:
            left = None if timeout is None else max(0.0, timeout - (time.monotonic() - began))
            body = {"machine": machine, "timeout": left}
            try:
                return LeaseWait.from_json(self._client.request("POST", "/v1/leases/waiters", body=body))
            except UnavailableError as error:
                if isinstance(error.__cause__, _NOBODY) or time.monotonic() > began + ABSENCE:
                    raise
            patiently(self._client.host)

    def _poll(self, machine_id: str) -> LeaseWait:
        return patiently(lambda: self.waiting(machine_id, POLL_TIME))


def _resource(text: str) -> str:
    """A relative path is one of this process; MACHINE/disk0 and names of images are left alone."""
    return os.path.abspath(text) if text.startswith((".", "/")) else text  # noqa: PTH100  # as it is named
