"""Captures of NICs on a plane that writes three frames: cut at whole frames, ended by many things."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.daemon import captures
from nagaya.daemon.captures import Limits, Records
from nagaya.daemon.daemon import Daemon
from nagaya.errors import ConflictError, NotFoundError
from nagaya.models.network import CaptureInfo
from nagaya.spec import MachineSpec
from nagaya.testing import Stage

ALL = Limits(262_144)
THREE = 24 + 3 * (16 + 60)  # bytes, of what the fake plane writes


def pcap(sizes: Sequence[int]) -> bytes:
    records = [struct.pack("<IIII", 1, 2, size, 1514) + os.urandom(size) for size in sizes]
    return b"".join([bytes(24), *records])


@given(st.data())
def test_whole_frames_pass_however_the_bytes_come(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 300), max_size=20))
    most = data.draw(st.none() | st.integers(1, 20))
    limit = data.draw(st.none() | st.integers(24, 3000))
    records, file, passed = Records(Limits(300, limit, most)), pcap(sizes), b""
    rest = file
    while rest:
        cut = data.draw(st.integers(1, len(rest)))
        passed, rest = passed + records.take(rest[:cut]), rest[cut:]
    ends = [24]
    for size in sizes:
        ends.append(ends[-1] + 16 + size)
    fitting = [end for end in ends[: None if most is None else most + 1] if limit is None or end <= limit]
    assert (passed, records.packets) == (file[: fitting[-1]], len(fitting) - 1)
    assert records.full == (len(fitting) < len(ends) or len(sizes) == most)


async def _running(daemon: Daemon) -> None:
    await daemon.supervisor.create(MachineSpec.model_validate({"name": "web", "memory": "64MiB"}))
    with pytest.raises(ConflictError, match="web is stopped, it cannot be captured"):
        await captures.begin(daemon, "web", "net0", ALL)
    await daemon.supervisor.start("web")


async def _all_of(capture: captures.Capture) -> bytes:
    async with asyncio.timeout(10):
        return b"".join([piece async for piece in capture.pieces()])


def test_who_reads_gets_the_frames_until_it_is_ended(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await _running(daemon)
        with pytest.raises(NotFoundError, match="web net0 has not been captured"):
            await captures.end(daemon, "web", "net0")
        capture = await captures.begin(daemon, "web", "default", ALL)
        assert [path.name for path in daemon.paths.run.glob("capture-*")] == []
        with pytest.raises(ConflictError, match="somebody captures web net0 already"):
            await captures.begin(daemon, "web", "net0", ALL)
        pieces = capture.pieces()
        assert len(await anext(pieces)) == THREE
        assert await captures.end(daemon, "web", "net0") == CaptureInfo(3, 1, running=True)
        assert [piece async for piece in pieces] == []
        await capture.close()
        assert await captures.end(daemon, "web", "net0") == CaptureInfo(3, 1, running=False)
        again = await captures.begin(daemon, "web", "net0", ALL)
        await again.close()

    stage.play(scene)


@pytest.mark.parametrize(
    ("limits", "size"),
    [
        (Limits(262_144, packets=2), THREE - 76),
        (Limits(262_144, size=THREE - 1), THREE - 76),
        (Limits(262_144, seconds=0.01), THREE),
    ],
    ids=["packets", "size", "seconds"],
)
def test_limits_end_it(stage: Stage, limits: Limits, size: int) -> None:
    async def scene(daemon: Daemon) -> None:
        await _running(daemon)
        capture = await captures.begin(daemon, "web", "net0", limits)
        assert len(await _all_of(capture)) == size
        await capture.close()
        assert capture.info.packets == (size - 24) // 76

    stage.play(scene)


def test_the_end_of_the_machine_ends_it(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await _running(daemon)
        capture = await captures.begin(daemon, "web", "net0", ALL)
        await daemon.supervisor.kill("web")
        assert len(await _all_of(capture)) == THREE
        await capture.close()
        assert capture.info == CaptureInfo(3, 0, running=False)

    stage.play(scene)
