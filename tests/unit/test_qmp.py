"""The QMP server: qemu.qmp's client works unchanged, and no input stops it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qemu.qmp import ExecuteError, QMPClient

from nagaya.errors import ConflictError
from nagaya.plane.sockets import Listener
from nagaya.qmp import MESSAGE_BYTES, Framer, QmpServer

pytestmark = pytest.mark.anyio


async def _echo(arguments: Mapping[str, object]) -> object:
    return dict(arguments)


async def _conflict(arguments: Mapping[str, object]) -> object:
    raise ConflictError("name taken", hint="take another", name="web")


async def _bug(arguments: Mapping[str, object]) -> object:
    raise ZeroDivisionError("oops")


@contextlib.asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[tuple[QmpServer, str]]:
    server = QmpServer("1.2.3")
    server.commands.update({"echo": _echo, "conflict": _conflict, "bug": _bug})
    path = str(directory / "qmp.sock")
    with Listener(path) as listener:
        task = asyncio.create_task(server.serve(listener.socket))
        yield server, path
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class RawClient:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def say(self, text: bytes) -> None:
        self.writer.write(text)
        await self.writer.drain()

    async def hear(self) -> dict[str, Any]:
        line = await asyncio.wait_for(self.reader.readline(), 60)
        assert line.endswith(b"\r\n")
        message: dict[str, Any] = json.loads(line)
        return message


@contextlib.asynccontextmanager
async def raw_client(path: str, negotiate: bool = True) -> AsyncIterator[RawClient]:
    client = RawClient(*await asyncio.open_unix_connection(path))
    assert await client.hear() == {
        "QMP": {
            "version": {"qemu": {"major": 1, "minor": 2, "micro": 3}, "package": "nagaya 1.2.3"},
            "capabilities": [],
        }
    }
    if negotiate:
        await client.say(b'{"execute": "qmp_capabilities"}')
        assert await client.hear() == {"return": {}}
    try:
        yield client
    finally:
        client.writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await client.writer.wait_closed()


async def test_qemus_client_works_unchanged(directory: Path) -> None:
    async with serving(directory) as (server, path):
        client = QMPClient()
        await client.connect(path)
        assert await client.execute("echo", {"n": [1, {"ü": '}\\"'}]}) == {"n": [1, {"ü": '}\\"'}]}
        with pytest.raises(ExecuteError, match="has not been found") as unknown:
            await client.execute("nonsense")
        assert unknown.value.error_class == "CommandNotFound"
        with pytest.raises(ExecuteError, match="name taken") as refused:
            await client.execute("conflict")
        assert refused.value.error_class == "GenericError"
        details: Any = refused.value.received["error"]
        assert details["data"]["facts"] == {"name": "web"}
        server.emit("THING_HAPPENED", {"x": 1})
        event = await asyncio.wait_for(client.events.get(), 60)
        assert (event["event"], event["data"]) == ("THING_HAPPENED", {"x": 1})
        assert isinstance(event["timestamp"], dict)
        assert set(event["timestamp"]) == {"seconds", "microseconds"}
        await client.disconnect()


async def test_several_clients_each_get_their_own_answers(directory: Path) -> None:
    async with serving(directory) as (_, path), raw_client(path) as first, raw_client(path) as second:
        await first.say(b'{"execute": "echo", "arguments": {"a": 1}, "id": [1]}')
        await second.say(b'{"execute": "echo", "arguments": {"b": 2}, "id": null}')
        assert await second.hear() == {"return": {"b": 2}, "id": None}
        assert await first.hear() == {"return": {"a": 1}, "id": [1]}


async def test_commands_in_one_packet_are_answered_in_order(directory: Path) -> None:
    async with serving(directory) as (_, path), raw_client(path) as client:
        await client.say(
            b'{"execute":"echo","id":1}{"execute":"echo","id":2}\n\n {"execute":"echo","id":3}\r\n'
        )
        assert [(await client.hear())["id"] for _ in range(3)] == [1, 2, 3]


async def test_nothing_runs_before_negotiation(directory: Path) -> None:
    async with serving(directory) as (server, path), raw_client(path, negotiate=False) as client:
        await client.say(b'{"execute": "echo"}')
        answer = await client.hear()
        assert answer["error"]["class"] == "CommandNotFound"
        server.emit("UNSEEN", {})
        await client.say(b'{"execute": "qmp_capabilities"}')
        assert await client.hear() == {"return": {}}
        await client.say(b'{"execute": "qmp_capabilities"}')
        assert (await client.hear())["error"]["class"] == "CommandNotFound"


@pytest.mark.parametrize(
    "text",
    [
        b"hello\n",
        b"[1, 2]\n",
        b'{"execute" "echo"}',
        b'{"execute": "echo\n',
        b"\xff\xfe\n",
        b'{"execute": "\xff"}',
        b"{" + b'"a":{' * 2000 + b"}" * 2001,
        b'{"a": ' + b"[" * 30000 + b"]" * 30000 + b"}",
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"exec": "echo"}',
        b'{"execute": 7}',
        b'{"execute": "echo", "arguments": []}',
        b'{"execute": "echo", "control": {}}',
        b"}}}\n",
    ],
)
async def test_malformed_input_gets_an_error_and_the_connection_lives(directory: Path, text: bytes) -> None:
    async with serving(directory) as (_, path), raw_client(path) as client:
        await client.say(text)
        assert "error" in await client.hear()
        await client.say(b'{"execute": "echo", "id": "after"}')
        answers = [await client.hear()]
        while "error" in answers[-1]:
            answers.append(await client.hear())
        assert answers[-1] == {"return": {}, "id": "after"}


async def test_a_message_without_end_is_cut_off(directory: Path) -> None:
    async with serving(directory) as (_, path), raw_client(path) as client:
        await client.say(b'{"a": "' + b"x" * MESSAGE_BYTES)
        assert "over 65536 bytes" in (await client.hear())["error"]["desc"]
        assert await client.reader.read() == b""
        async with raw_client(path) as another:
            await another.say(b'{"execute": "echo"}')
            assert await another.hear() == {"return": {}}


async def test_a_bug_in_a_command_is_an_answer(directory: Path) -> None:
    async with serving(directory) as (_, path), raw_client(path) as client:
        await client.say(b'{"execute": "bug", "id": 5}')
        answer = await client.hear()
        assert answer["id"] == 5
        assert "ZeroDivisionError" in answer["error"]["desc"]


async def test_a_client_that_reads_no_events_is_hung_up_on(directory: Path) -> None:
    async with serving(directory) as (server, path), raw_client(path) as deaf, raw_client(path) as other:
        for _ in range(200):
            server.emit("NOISE", {"text": "x" * 16384})
            await other.hear()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await deaf.reader.readexactly(200 * 16384)


async def test_a_client_that_only_writes_waits(directory: Path) -> None:
    async with serving(directory) as (server, path), raw_client(path) as greedy:
        command = b'{"execute": "echo", "arguments": {"a": "%s"}}' % (b"x" * 8000)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                while True:
                    await greedy.say(command)
                    await asyncio.sleep(0)
        (session,) = server._sessions
        assert session._writer is not None
        assert session._writer.transport.get_write_buffer_size() < 2**17
        async with raw_client(path) as other:
            await other.say(b'{"execute": "echo"}')
            assert await other.hear() == {"return": {}}


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers())), st.integers(1, 7))
def test_the_framer_finds_objects_however_they_are_cut(objects: list[dict[str, Any]], size: int) -> None:
    framer = Framer(10**6)
    stream = "".join(json.dumps(each, ensure_ascii=False) for each in objects).encode()
    found = []
    for start in range(0, len(stream), size):
        framer.feed(stream[start : start + size])
        while (text := framer.next_message()) is not None:
            found.append(json.loads(text))
    assert found == objects


@given(st.binary(max_size=200))
def test_the_framer_survives_any_bytes(garbage: bytes) -> None:
    framer = Framer(10**6)
    framer.feed(garbage)
    for _ in range(len(garbage) + 1):
        with contextlib.suppress(ValueError):
            if framer.next_message() is None:
                break
    else:
        pytest.fail("the framer does not get through")
