"""Tells machines of a network who they are (docs/networks.md).

Guests reach it at 169.254.169.254 port 80, which the packet filter turns to the host's address in their
network. It sees only their interface, and knows a machine by the address it comes from, which the switch
lets nobody else use. What it may say lies in files that the daemon writes; it keeps no state, has no
privileges, and gives each machine a few connections of some seconds at a time.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import os
import resource
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import h11

from nagaya.abi import linux
from nagaya.networks import documents
from nagaya.networks import metadata_listener as listening
from nagaya.networks.helper import Program
from nagaya.networks.names import METADATA_PORT
from nagaya.networks.seccomp import install, metadata_filters

CONNECTIONS_EACH = 8  # of one machine at a time
CONNECTIONS = listening.CONNECTIONS  # of all
REQUEST_S = 5.0  # for a request and its answer
_HEADER_LIMIT = 8 * 1024  # bytes
_READ = 4096
_TOKEN_S = 21600  # seconds that a token holds, at most; as EC2
_MEMORY_LIMIT = 512 * 2**20
_TOKEN, _TTL = b"x-aws-ec2-metadata-token", b"x-aws-ec2-metadata-token-ttl-seconds"


def program(network: str, interface: str, addresses: Sequence[str], directory: Path, uid: int) -> Program:
    """How to start it for a network whose documents are in `directory`; it becomes `uid`."""
    argv = (
        *(sys.executable, "-m", listening.__name__, "--interface", interface),
        *("--port", str(METADATA_PORT), "--uid", str(uid)),
    )
    return Program(
        f"metadata service of network {network}",
        (*argv, str(directory), *addresses),
        str(directory),
        uid,
        {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": os.defpath, "LC_ALL": "C.UTF-8"},
    )


class Service:
    """Answers requests from the documents in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._secret = os.urandom(32)
        self._open: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: one request, one answer."""
        peer = str(ipaddress.ip_address(writer.get_extra_info("peername")[0].partition("%")[0]))
        try:
            if self._open[peer] >= CONNECTIONS_EACH or self._open.total() >= CONNECTIONS:
                return
            self._open[peer] += 1
            try:
                async with asyncio.timeout(REQUEST_S):
                    await self._exchange(peer, reader, writer)
            finally:
                self._open[peer] -= 1
                self._open += Counter()  # forgets those that have none
        except (OSError, TimeoutError, h11.ProtocolError):
            pass
        finally:
            writer.transport.abort()

    async def _exchange(self, peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEADER_LIMIT)
        try:
            request = await _request(connection, reader)
            status, body = self._answer(peer, request)
        except h11.RemoteProtocolError as error:
            status, body = error.error_status_hint, str(error)
        if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        payload = body.encode()
        headers = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(payload))),
            ("Connection", "close"),
        ]
        for event in (
            h11.Response(status_code=status, headers=headers),
            h11.Data(data=payload),
            h11.EndOfMessage(),
        ):
            writer.write(connection.send(event) or b"")
        await writer.drain()
        writer.write_eof()
        await reader.read(_READ)  # the peer's end: an early close could cost it the answer

    def _answer(self, peer: str, request: h11.Request) -> tuple[int, str]:
        path = request.target.decode("ascii", "replace").partition("?")[0]
        headers = dict(request.headers)
        if path == "/latest/api/token":
            return self._token(peer, request, headers)
        if request.method != b"GET":
            return 405, "only GET\n"
        if _TOKEN in headers and not self._knows(peer, headers[_TOKEN]):
            return 401, "the token has expired\n"
        document = documents.read(self._directory, peer)
        body = None if document is None else documents.answer(document, path)
        return (404, "there is nothing\n") if body is None else (200, body)

    def _token(self, peer: str, request: h11.Request, headers: dict[bytes, bytes]) -> tuple[int, str]:
        """EC2's second version: who can PUT is not a proxy that was talked into a GET."""
        if request.method != b"PUT":
            return 405, "only PUT\n"
        if b"x-forwarded-for" in headers:
            return 403, "not through a proxy\n"
        seconds = headers.get(_TTL, b"")
        if not seconds.isdigit() or not 1 <= int(seconds[:6]) <= _TOKEN_S:
            return 400, f"{_TTL.decode()}: 1 to {_TOKEN_S}\n"
        expiry = int(time.monotonic()) + int(seconds[:6])
        return 200, base64.urlsafe_b64encode(f"{expiry}:{self._sign(peer, expiry)}".encode()).decode()

    def _knows(self, peer: str, token: bytes) -> bool:
        try:
            expiry, _, signature = base64.urlsafe_b64decode(token).decode("ascii").partition(":")
            ends = int(expiry[:20])
        except ValueError:
            return False
        return hmac.compare_digest(signature, self._sign(peer, ends)) and time.monotonic() < ends

    def _sign(self, peer: str, expiry: int) -> str:
        return hmac.new(self._secret, f"{peer} {expiry}".encode(), hashlib.sha256).hexdigest()


async def _request(connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Request:
    """The head of the request; a body is not read."""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            raise h11.RemoteProtocolError("no request")
        connection.receive_data(await reader.read(_READ))


def serve(directory: str, uid: int, listeners: Sequence[socket.socket]) -> None:
    """Drop all privileges and answer from the documents in `directory`. Does not return."""
    _drop_privileges(uid)
    install(metadata_filters())
    asyncio.run(_serve(Service(Path(directory)), listeners))


async def _serve(service: Service, listeners: Sequence[socket.socket]) -> None:
    servers = [
        await asyncio.start_server(service.serve, sock=listener, limit=_HEADER_LIMIT)
        for listener in listeners
    ]
    await asyncio.gather(*(server.serve_forever() for server in servers))


def _drop_privileges(uid: int) -> None:
    for limit, value in (
        (resource.RLIMIT_AS, _MEMORY_LIMIT),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, CONNECTIONS + 64),
    ):
        resource.setrlimit(limit, (value, value))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
