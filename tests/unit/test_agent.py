"""The guest agent's client: against the real qemu-ga, and against agents that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nagaya.agent import GuestAgent
from nagaya.agent.stream import AgentStream
from nagaya.errors import (
    NotFoundError,
    ProtocolError,
    TimeoutExpiredError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from nagaya.testing.listening import is_listening

pytestmark = pytest.mark.anyio
needs_qemu_ga = pytest.mark.skipif(shutil.which("qemu-ga") is None, reason="needs package qemu-guest-agent")


@pytest.fixture
def real_agent(directory: Path) -> Iterator[str]:
    """qemu-ga on this host; the tests run only what is harmless here."""
    path = str(directory / "ga.sock")
    command = ["qemu-ga", "-m", "unix-listen", "-p", path, "-t", str(directory), "-b", "guest-shutdown"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not is_listening(path):
            assert process.poll() is None, "qemu-ga does not start"
            time.sleep(0.01)
        yield path
        process.terminate()


@needs_qemu_ga
async def test_ping_and_info(real_agent: str) -> None:
    async with await GuestAgent.connect("web", real_agent) as agent:
        await agent.ping()
        info = await agent.info()
        assert info.version[0].isdigit()
        assert "guest-exec" in info.commands
        assert "guest-shutdown" not in info.commands


@needs_qemu_ga
async def test_exec_returns_what_the_command_did(real_agent: str) -> None:
    async with GuestAgent("web", real_agent) as agent:
        result = await agent.exec(["sh", "-c", "cat; echo oops >&2; exit 7"], stdin=b"a\0b")
        assert result == (7, b"a\0b", b"oops\n", False)
        assert (await agent.exec(["sh", "-c", "kill -9 $$"])).exit_code == 128 + 9
        assert (await agent.exec(["printenv", "X"], env={"X": "1 2"})).stdout == b"1 2\n"
        with pytest.raises(NotFoundError, match=r"^there is no program /no/such/program in web$"):
            await agent.exec(["/no/such/program"])


@needs_qemu_ga
async def test_a_short_command_is_answered_at_once(real_agent: str) -> None:
    async with GuestAgent("web", real_agent) as agent:
        await agent.ping()
        times = []
        for _ in range(20):  # one of them meets an idle host
            started = time.monotonic()
            await agent.exec(["true"])
            times.append(time.monotonic() - started)
        assert min(times) < 0.05


@needs_qemu_ga
async def test_output_over_the_agents_limit_is_said_to_be_cut(real_agent: str) -> None:
    async with GuestAgent("web", real_agent) as agent:
        result = await agent.exec(["head", "-c", str(17 * 2**20), "/dev/zero"])
        assert (result.exit_code, len(result.stdout), result.truncated) == (0, 16 * 2**20, True)
        await agent.ping()


@needs_qemu_ga
async def test_a_command_past_its_deadline_is_killed(real_agent: str, directory: Path) -> None:
    async with GuestAgent("web", real_agent) as agent:
        script = f"echo $$ > {directory}/pid.new; mv {directory}/pid.new {directory}/pid; exec sleep 60"
        pid = directory / "pid"
        for seconds in (0.2, 2, 20):  # on a busy host it may not have begun before the first
            with pytest.raises(
                TimeoutExpiredError, match=f"sh in machine web did not end within {seconds} s"
            ):
                await agent.exec(["sh", "-c", script], timeout=seconds)
            if pid.exists():
                break
        process = Path("/proc", pid.read_text().strip())
        while process.exists() and (process / "cmdline").read_bytes():  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.01)


@needs_qemu_ga
async def test_commands_of_one_client_run_at_the_same_time(real_agent: str) -> None:
    async with GuestAgent("web", real_agent) as agent:
        started = time.monotonic()
        results = await asyncio.gather(*(agent.exec(["sh", "-c", f"sleep 1; echo {n}"]) for n in range(4)))
        assert [result.stdout for result in results] == [b"%d\n" % n for n in range(4)]
        assert time.monotonic() - started < 4


@needs_qemu_ga
async def test_a_long_command_leaves_the_agent_to_others_in_its_pauses(real_agent: str) -> None:
    async with GuestAgent("web", real_agent) as agent, GuestAgent("web", real_agent) as other:
        long = asyncio.create_task(agent.exec(["sh", "-c", "sleep 1.5; echo long"]))
        await asyncio.sleep(0.1)
        assert (await other.exec(["echo", "short"])).stdout == b"short\n"
        await other.close()
        assert (await long).stdout == b"long\n"


@needs_qemu_ga
async def test_files_go_in_and_come_out(real_agent: str, directory: Path) -> None:
    content = bytes(range(256)) * 10_000
    async with GuestAgent("web", real_agent) as agent:
        assert await agent.write_file(str(directory / "f"), content) == len(content)
        assert b"".join([chunk async for chunk in agent.read_file(str(directory / "f"))]) == content
        await agent.write_file(str(directory / "empty"), b"")
        assert [chunk async for chunk in agent.read_file(str(directory / "empty"))] == []
        with pytest.raises(NotFoundError):
            await agent.write_file(str(directory / "no/such/f"), b"x")


@needs_qemu_ga
async def test_half_a_command_that_an_earlier_client_left_disturbs_nobody(real_agent: str) -> None:
    reader, writer = await asyncio.open_unix_connection(real_agent)
    writer.write(b'{"execute": "guest-info"}\n')
    await reader.readline()  # qemu-ga ends where a unix socket is closed with an answer unread
    writer.write(b'{"execute": "guest-pi')
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    async with GuestAgent("web", real_agent) as agent:
        assert (await agent.exec(["echo", "mine"])).stdout == b"mine\n"


@needs_qemu_ga
async def test_a_command_that_the_guest_forbids_is_unsupported(real_agent: str) -> None:
    async with GuestAgent("web", real_agent) as agent:
        with pytest.raises(UnsupportedError, match="guest-shutdown"):
            await agent.shutdown()


Reply = Callable[[dict[str, Any]], Awaitable[bytes | None]]


@contextlib.asynccontextmanager
async def agent_that(directory: Path, reply: Reply, left: bytes = b"") -> AsyncIterator[GuestAgent]:
    """An agent that synchronises well and answers everything else as `reply` says; None hangs up.

    It begins with what is `left` of an earlier client.
    """

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            writer.write(left)
            while line := await reader.readline():
                message = json.loads(line.lstrip(b"\xff"))
                if message["execute"] == "guest-sync-delimited":
                    answer: bytes | None = (
                        b"\xff" + json.dumps({"return": message["arguments"]["id"]}).encode()
                    )
                else:
                    answer = await reply(message)
                if answer is None:
                    return
                writer.write(answer + b"\n" if answer else b"")
                await writer.drain()

    path = str(directory / "fake.sock")
    server = await asyncio.start_unix_server(converse, path)
    async with server, GuestAgent("web", path) as agent:
        yield agent


async def test_an_answer_that_an_earlier_client_left_is_not_taken(directory: Path) -> None:
    async def reply(message: dict[str, Any]) -> bytes:
        if message["execute"] == "guest-exec":
            return b'{"return": {"pid": 7}}'
        return json.dumps({"return": {"exited": True, "exitcode": message["arguments"]["pid"]}}).encode()

    async with agent_that(directory, reply, b'{"return": {"pid": 8}}\n{"return": {"pi') as agent:
        assert (await agent.exec(["true"])).exit_code == 7


@pytest.mark.parametrize(
    "answer",
    [
        b"hello",
        b"[]",
        b"{}",
        b'{"return": 7}',
        b'{"return": {}}',
        b'{"return": {"pid": "1"}}',
        b'{"return": {"pid": true}}',
        b'{"return": {"pid": 1.5}}',
        b"[" * 50_000,
        b'{"return": {"pid": 1, "x": "' + b"x" * 70_000 + b'"}}',
    ],
)
async def test_nonsense_is_an_error_that_names_the_machine(directory: Path, answer: bytes) -> None:
    async def reply(message: dict[str, Any]) -> bytes:
        return answer

    async with agent_that(directory, reply) as agent:
        with pytest.raises(ProtocolError, match="guest agent of web"):
            await agent.exec(["true"])


@pytest.mark.parametrize(
    "status",
    [
        {"exited": 1},
        {"exited": True},
        {"exited": True, "exitcode": 0, "out-data": "§§"},
        {"exited": True, "exitcode": 0, "out-data": [1]},
        {"exited": True, "exitcode": 0, "out-truncated": "yes"},
    ],
)
async def test_a_status_of_the_wrong_type_is_an_error(directory: Path, status: dict[str, Any]) -> None:
    async def reply(message: dict[str, Any]) -> bytes:
        done = {"guest-exec": {"pid": 1}, "guest-exec-status": status}
        return json.dumps({"return": done[message["execute"]]}).encode()

    async with agent_that(directory, reply) as agent:
        with pytest.raises(ProtocolError, match="guest agent of web"):
            await agent.exec(["true"])


@pytest.mark.parametrize(("kills", "then"), [(True, "and was killed"), (False, "and may still run")])
async def test_past_its_deadline_it_is_said_what_became_of_a_command(
    directory: Path, kills: bool, then: str
) -> None:
    begun = False

    async def reply(message: dict[str, Any]) -> bytes | None:
        nonlocal begun
        if message["execute"] == "guest-exec-status":
            begun = True
            return b'{"return": {"exited": false}}'
        if message["arguments"]["path"] == "sleep" or kills:
            return b'{"return": {"pid": 7}}'
        return b'{"error": {"class": "GenericError", "desc": "no sh"}}'

    async with agent_that(directory, reply) as agent:
        for seconds in (0.2, 2, 20):  # on a busy host it may not have begun before the first
            with pytest.raises(TimeoutExpiredError, match=r"sleep in machine web did not end") as told:
                await agent.exec(["sleep", "9"], timeout=seconds)
            if begun:
                break
        assert told.value.message.endswith(f"within {seconds} s {then}")


async def test_an_endless_answer_is_cut_off(directory: Path) -> None:
    async def reply(message: dict[str, Any]) -> bytes:
        return b"x" * 10**6

    async with agent_that(directory, reply) as agent:
        with pytest.raises(ProtocolError, match="over 65536 bytes"):
            await agent.ping()


async def test_silence_ends_at_the_deadline_and_the_late_answer_is_not_mistaken(directory: Path) -> None:
    async def reply(message: dict[str, Any]) -> bytes:
        if message["execute"] == "guest-ping":
            await asyncio.sleep(0.2)
            return b'{"return": {"version": "late"}}'
        return b'{"return": {"version": "right", "supported_commands": []}}'

    async with agent_that(directory, reply) as agent:
        with pytest.raises(TimeoutExpiredError, match=r"of web did not answer guest-ping within 0\.1 s"):
            await agent.ping(timeout=0.1)
        assert (await agent.info()).version == "right"


async def test_an_agent_that_hangs_up_is_unavailable(directory: Path) -> None:
    async def reply(message: dict[str, Any]) -> None:
        return None

    async with agent_that(directory, reply) as agent:
        with pytest.raises(UnavailableError, match="of web cannot be reached: it hung up"):
            await agent.ping()


async def test_shutdown_needs_no_answer(directory: Path) -> None:
    seen = []

    async def reply(message: dict[str, Any]) -> bytes | None:
        seen.append(message)
        return b"" if len(seen) == 1 else None

    async with agent_that(directory, reply) as agent:
        await agent.shutdown()
        await agent.shutdown("reboot")
    assert [message["arguments"]["mode"] for message in seen] == ["powerdown", "reboot"]


async def test_freeze_and_thaw_count_the_file_systems(directory: Path) -> None:
    counts: list[object] = [3, 3, "3"]

    async def reply(message: dict[str, Any]) -> bytes:
        assert message["execute"] in ("guest-fsfreeze-freeze", "guest-fsfreeze-thaw")
        return json.dumps({"return": counts.pop(0)}).encode()

    async with agent_that(directory, reply) as agent:
        assert await agent.fs_freeze() == 3
        assert await agent.fs_thaw() == 3
        with pytest.raises(ProtocolError, match="not a number"):
            await agent.fs_thaw()


async def test_a_machine_that_does_not_run_is_unavailable_at_once(directory: Path) -> None:
    async with GuestAgent("web", directory / "none.sock") as agent:
        with pytest.raises(UnavailableError, match="of web cannot be reached"):
            await agent.ping()


async def test_an_agent_that_is_busy_or_starting_is_waited_for(directory: Path) -> None:
    tries = 0

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        with contextlib.closing(writer):
            if tries == 1:
                return  # busy with another client
            await reader.readline()  # lost: the guest had not opened its port yet
            while line := await reader.readline():
                message = json.loads(line.lstrip(b"\xff"))
                sync = message["execute"] == "guest-sync-delimited"
                answer = {"return": message["arguments"]["id"] if sync else {}}
                writer.write((b"\xff" if sync else b"") + json.dumps(answer).encode() + b"\n")

    path = str(directory / "slow.sock")
    async with await asyncio.start_unix_server(converse, path), GuestAgent("web", path) as agent:
        await agent.ping()
    assert tries == 2


async def test_input_that_cannot_be_sent_is_a_usage_error(directory: Path) -> None:
    agent = GuestAgent("web", directory / "none.sock")
    for argv, env, stdin in (
        ([], {}, b""),
        (["a"], {"-i": ""}, b""),
        (["a"], {"a=b": ""}, b""),
        (["a"], {}, bytes(2**24)),
    ):
        with pytest.raises(UsageError):
            await agent.exec(argv, env=env, stdin=stdin)


async def test_a_repeated_answer_to_a_sync_is_no_answer_to_a_command() -> None:
    ours, theirs = socket.socketpair()
    stream = AgentStream(*await asyncio.open_connection(sock=ours))
    with theirs:
        theirs.sendall(b'\xff{"return": 5}\n{"return": {"pid": 7}}\n')
        assert await stream.answer(1000) == {"pid": 7}
    await stream.close()
