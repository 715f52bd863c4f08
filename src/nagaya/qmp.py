"""The server's side of QMP (QEMU's interop/qmp-spec), on the protocol and message classes of qemu.qmp."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import socket
import time
from collections.abc import Awaitable, Callable, Mapping

from qemu.qmp import Message, QMPError, Runstate
from qemu.qmp.protocol import AsyncProtocol

from nagaya.errors import NagayaError, NotFoundError, UsageError

Command = Callable[[Mapping[str, object]], Awaitable[object]]

MESSAGE_BYTES = 64 * 1024  # a device with 64 layers of 512-byte paths fits; no client has cause to send more
_BACKLOG_BYTES = 2**20  # events that wait for one client
_CLIENTS = 64

log = logging.getLogger(__name__)


@functools.cache
def version_info(version: str) -> dict[str, object]:
    """VersionInfo of the QMP schema for ours; clients want its three numbers under the name `qemu`."""
    numbers = [int(number) for number in re.findall(r"\d+", version)][:3]
    named = dict(zip(("major", "minor", "micro"), [*numbers, 0, 0, 0], strict=False))
    return {"qemu": named, "package": f"nagaya {version}"}


class QmpServer:
    """Serves `commands`, by name, to several clients at once; each client's run one after the other.

    A command gets its `arguments` and returns what is JSON-serialisable. A `NagayaError` that it raises
    travels as the member `data` of the QMP error, beside `class` and `desc`.
    """

    def __init__(self, version: str) -> None:
        self.commands: dict[str, Command] = {}
        self.version = version_info(version)
        self.greeting = {"QMP": {"version": self.version, "capabilities": []}}
        self._sessions: dict[_Session, asyncio.Task[None]] = {}

    async def serve(self, listener: socket.socket) -> None:
        """Accept clients until cancelled, then hang up on them all."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                client, _ = await loop.sock_accept(listener)
                if len(self._sessions) >= _CLIENTS:
                    log.warning("too many QMP clients", extra={"limit": _CLIENTS})
                    client.close()
                    continue
                session = _Session(self)
                self._sessions[session] = asyncio.create_task(self._run(session, client))
        finally:
            for session in self._sessions:
                session.stop()
            await asyncio.gather(*self._sessions.values(), return_exceptions=True)

    def emit(self, event: str, facts: Mapping[str, object]) -> None:
        """Send an event to every client that has negotiated. One that does not read is hung up on."""
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        timestamp = {"seconds": seconds, "microseconds": nanoseconds // 1000}
        message = Message({"event": event, "data": dict(facts), "timestamp": timestamp})
        for session in self._sessions:
            session.notify(message)

    async def _run(self, session: _Session, client: socket.socket) -> None:
        try:
            await session.connect(client)
            await session.ended()
        except QMPError as error:
            log.debug("QMP client failed", extra={"error": str(error)})
        finally:
            try:
                await session.hang_up()
            except (EOFError, OSError, QMPError) as error:
                log.debug("QMP client left", extra={"error": str(error)})
            finally:
                client.close()
                del self._sessions[session]


class _Session(AsyncProtocol[Message]):
    """One client. The base class runs a reader and a writer task."""

    def __init__(self, server: QmpServer) -> None:
        super().__init__()
        self._qmp = server
        self._framer = Framer(MESSAGE_BYTES)
        self._negotiated = False
        self._stopped = False

    async def ended(self) -> None:
        """Return when the client left or `stop` was called."""
        while self.runstate is Runstate.RUNNING and not self._stopped:
            await self.runstate_changed()

    def stop(self) -> None:
        self._stopped = True
        if self.runstate is Runstate.RUNNING:
            self._schedule_disconnect()

    def notify(self, message: Message) -> None:
        if not self._negotiated or self.runstate is not Runstate.RUNNING or self._writer is None:
            return
        if self._writer.transport.get_write_buffer_size() > _BACKLOG_BYTES:
            log.warning("QMP client does not read its events", extra={"limit": _BACKLOG_BYTES})
            self._writer.transport.abort()
            return
        self._outgoing.put_nowait(message)

    async def hang_up(self) -> None:
        """Send what is queued, at most a second long, and disconnect. Raises what ended the connection."""
        writer = self._writer
        timer = (
            asyncio.get_running_loop().call_later(1, writer.transport.abort) if writer is not None else None
        )
        try:
            await self.disconnect()
        finally:
            if timer is not None:
                timer.cancel()

    async def _establish_session(self) -> None:
        await self._send(Message(self._qmp.greeting))
        await super()._establish_session()

    async def _do_recv(self) -> Message:
        if self._reader is None:
            raise EOFError
        while True:
            try:
                text = self._framer.next_message()
                if text is not None:
                    return Message(text)
            except _TooLongError as error:
                await self._refuse(str(error))
                raise EOFError from error
            except (QMPError, ValueError, RecursionError):
                await self._refuse("JSON parse error, expecting a QMP command object")
                continue
            chunk = await self._reader.read(4096)
            if not chunk:
                raise EOFError
            self._framer.feed(chunk)

    def _do_send(self, msg: Message) -> None:
        if self._writer is not None:
            self._writer.write(bytes(msg) + b"\r\n")

    async def _on_message(self, msg: Message) -> None:
        await self._reply(await self._answer(msg))

    async def _refuse(self, description: str) -> None:
        await self._reply({"error": {"class": "GenericError", "desc": description}})

    async def _reply(self, reply: Mapping[str, object]) -> None:
        await self._outgoing.put(Message(reply))
        await self._outgoing.join()
        if self._writer is not None:
            await self._writer.drain()  # a client that only writes waits here, not in our memory

    async def _answer(self, message: Message) -> dict[str, object]:
        reply: dict[str, object] = {}
        try:
            reply["return"] = await self._execute(message)
        except NagayaError as error:
            reply["error"] = {"class": _class_of(error), "desc": str(error), "data": error.to_json()}
        except Exception as error:
            log.exception("QMP command failed", extra={"command": message.get("execute")})
            description = f"internal error: {type(error).__name__}: {error}"
            reply["error"] = {"class": "GenericError", "desc": description}
        if "id" in message:
            reply["id"] = message["id"]
        return reply

    async def _execute(self, message: Message) -> object:
        name, arguments = message.get("execute"), message.get("arguments", {})
        for member in message:
            if member not in ("execute", "arguments", "id"):
                raise UsageError(f"QMP input member {member!r} is unexpected")
        if not isinstance(name, str):
            raise UsageError("QMP input lacks member 'execute' of type string")
        if not isinstance(arguments, dict):
            raise UsageError("QMP input member 'arguments' must be an object")
        if not self._negotiated:
            if name != "qmp_capabilities":
                raise _CommandNotFoundError("expecting capabilities negotiation with 'qmp_capabilities'")
            self._negotiated = True
            return {}
        command = self._qmp.commands.get(name)
        if command is None:
            raise _CommandNotFoundError(f"the command {name} has not been found")
        return await command(arguments)


class _CommandNotFoundError(NotFoundError):
    pass


def _class_of(error: NagayaError) -> str:
    if isinstance(error, _CommandNotFoundError):
        return "CommandNotFound"
    return "DeviceNotFound" if isinstance(error, NotFoundError) else "GenericError"


class _TooLongError(Exception):
    pass


class Framer:
    """Cuts a byte stream into JSON objects. QMP has no delimiter: clients need not end a message with CR LF.

    Only brackets and strings are looked at; whether the text is JSON is for the parser. What cannot start or
    continue an object is skipped up to the end of its line.
    """

    _MARK = re.compile(rb'[{}"\\\n]')

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._at = 0  # where to look on
        self._depth = 0
        self._quoted = False

    def feed(self, chunk: bytes) -> None:
        """Add what was received."""
        self._buffer += chunk

    def next_message(self) -> bytes | None:
        """The next object's text, or None if it is incomplete. Raises `ValueError` for what cannot be one."""
        if self._at == 0:
            self._skip_to_object()
        while mark := self._MARK.search(self._buffer, self._at):
            self._at = mark.end()
            character = mark[0]
            if character == b"\\" and self._quoted:
                if self._at == len(self._buffer):
                    self._at -= 1  # what it escapes is not here yet
                    break
                self._at += 1
            elif character == b'"':
                self._quoted = not self._quoted
            elif character == b"\n" and self._quoted:  # RFC 8259: no control character in a string
                self._cut(self._at)
                raise ValueError("a string does not end on its line")
            elif not self._quoted and character in b"{}":
                self._depth += 1 if character == b"{" else -1
                if self._depth == 0:
                    return self._cut(self._at)
        else:
            self._at = len(self._buffer)
        if len(self._buffer) > self._limit:
            raise _TooLongError(f"a message is over {self._limit} bytes")
        return None

    def _skip_to_object(self) -> None:
        start = len(self._buffer) - len(self._buffer.lstrip(b" \t\r\n\xff"))
        del self._buffer[:start]
        if self._buffer and not self._buffer.startswith(b"{"):
            line = self._buffer.find(b"\n")
            self._cut(len(self._buffer) if line < 0 else line)
            raise ValueError("input is not a JSON object")

    def _cut(self, end: int) -> bytes:
        text = bytes(self._buffer[:end])
        del self._buffer[:end]
        self._at = 0
        self._depth = 0
        self._quoted = False
        return text
