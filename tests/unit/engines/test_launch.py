"""A zygote that dies while it is asked: whether it can have begun anything."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nagaya.engines.launch import NoZygoteError, ZygoteClient
from nagaya.errors import UnavailableError
from nagaya.paths import Paths

pytestmark = pytest.mark.anyio


@pytest.fixture
def own(directory: Path) -> Paths:
    paths = Paths(directory / "r", directory / "s", directory / "c")
    paths.run.mkdir()
    return paths


@pytest.fixture
def zygote(own: Paths) -> Iterator[socket.socket]:
    """The socket of one that has not looked at it yet."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(own.zygote_socket))
        listener.listen()
        yield listener


async def readable(one: socket.socket) -> None:
    await asyncio.to_thread(select.select, [one], [], [])


async def test_one_that_dies_before_it_accepts_has_begun_nothing(own: Paths, zygote: socket.socket) -> None:
    asking = asyncio.create_task(ZygoteClient(own).ping())
    await readable(zygote)
    zygote.close()
    with pytest.raises(NoZygoteError):
        await asking


async def test_one_that_dies_before_it_reads_has_begun_nothing(own: Paths, zygote: socket.socket) -> None:
    asking = asyncio.create_task(ZygoteClient(own).ping())
    await readable(zygote)
    connection, _ = zygote.accept()
    await readable(connection)
    connection.close()
    with pytest.raises(NoZygoteError):
        await asking


async def test_one_that_dies_after_it_read_may_have_begun_something(
    own: Paths, zygote: socket.socket
) -> None:
    asking = asyncio.create_task(ZygoteClient(own).ping())
    await readable(zygote)
    connection, _ = zygote.accept()
    await readable(connection)
    assert connection.recv(1 << 16)
    connection.close()
    with pytest.raises(UnavailableError) as found:
        await asking
    assert not isinstance(found.value, NoZygoteError)
