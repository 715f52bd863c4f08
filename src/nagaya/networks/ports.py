"""The ports of the host that lead to machines: held, so that nothing else takes one unnoticed.

The packet filter turns connections away before they get to a socket. The sockets here never listen; they
are bound, so the kernel says who comes first, whether that is another program or a machine.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from typing import Any

import psutil

from nagaya.closing import Closing
from nagaya.errors import ConflictError, NagayaError, NotFoundError, PermissionDeniedError
from nagaya.networks.config import Forward

_Key = tuple[str, str, int]  # protocol, address to bind, port


class Ports(Closing):
    """The ports held for forwards, by this process; they are free again when it ends."""

    def __init__(self) -> None:
        self._held: dict[_Key, socket.socket] = {}

    def hold(self, before: Iterable[Forward], after: Iterable[Forward]) -> None:
        """Hold the ports of `after`, all or none, and give back those of `before` that are not among them.

        Raises `ConflictError` that names the program that has one, `NotFoundError` for an address that the
        host does not have, `PermissionDeniedError`.
        """
        wanted = {_key(forward): forward for forward in after}
        fresh: dict[_Key, socket.socket] = {}
        try:
            for key, forward in wanted.items():
                if key not in self._held:
                    fresh[key] = _bound(key, forward)
        except NagayaError:
            for one in fresh.values():
                one.close()
            raise
        self._held |= fresh
        for key in map(_key, before):
            if key not in wanted and key in self._held:
                self._held.pop(key).close()

    def check(self, forwards: Iterable[Forward]) -> None:
        """Raise as `hold` would of ports that are not held."""
        for forward in forwards:
            if _key(forward) not in self._held:
                _bound(_key(forward), forward, reuse=True).close()

    def close(self) -> None:
        for one in self._held.values():
            one.close()
        self._held.clear()


def _key(forward: Forward) -> _Key:
    everywhere = "::" if ":" in forward.machine_address else "0.0.0.0"  # noqa: S104 - what the user asked for
    return forward.protocol, forward.host_address or everywhere, forward.host_port


def _bound(key: _Key, forward: Forward, *, reuse: bool = False) -> socket.socket:
    protocol, address, port = key
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    one = socket.socket(family, kind | socket.SOCK_CLOEXEC)
    try:
        if reuse and protocol == "tcp":  # what is left of ended connections is no obstacle
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind((address, port))
    except OSError as error:
        one.close()
        raise _refusal(error, forward, address) from error
    return one


def _refusal(error: OSError, forward: Forward, address: str) -> NagayaError:
    what = f"port {forward.host_port}/{forward.protocol} of the host"
    facts: dict[str, Any] = {
        "port": forward.host_port,
        "protocol": forward.protocol,
        "machine": forward.machine,
    }
    if error.errno == errno.EADDRINUSE:
        name, pid = _owner(forward)
        return ConflictError(
            f"{what} is in use by {name or 'another program'}",
            hint="choose another port of the host, or end that program",
            pid=pid,
            **facts,
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return NotFoundError(
            f"{what}: it has no address {address}", hint="leave the address out for all of them", **facts
        )
    if error.errno == errno.EACCES:
        return PermissionDeniedError(
            f"{what}: ports below 1024 need privileges", hint="choose a port above 1023", **facts
        )
    return NagayaError(f"{what} cannot be had: {error.strerror}", **facts)


def _owner(forward: Forward) -> tuple[str, int | None]:
    """The program whose socket is bound to the port, and its process, as far as this user may know."""
    for one in psutil.net_connections(forward.protocol):
        bound = one.laddr and one.laddr.port == forward.host_port and not one.raddr
        if bound and one.pid is not None:
            try:
                return f"{psutil.Process(one.pid).name()} (process {one.pid})", one.pid
            except psutil.Error:
                return f"process {one.pid}", one.pid
    return "", None
