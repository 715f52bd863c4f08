"""Reading capped logs."""

from __future__ import annotations

import asyncio
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nagaya.daemon import logs


def read(path: Path, tail: int | None = None, raw: bool = True) -> bytes:
    async def collect() -> bytes:
        return b"".join([block async for block in logs.read(path, tail=tail, raw=raw, follow=False)])

    return asyncio.run(collect())


def test_both_halves_are_read_the_older_first(tmp_path: Path) -> None:
    (tmp_path / "console.log.1").write_bytes(b"one\ntwo\n")
    (tmp_path / "console.log").write_bytes(b"three\n")
    assert read(tmp_path / "console.log") == b"one\ntwo\nthree\n"
    assert read(tmp_path / "console.log", tail=2) == b"two\nthree\n"
    assert read(tmp_path / "console.log", tail=0) == b""


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path / "console.log", tail=3) == b""


def test_control_sequences_are_removed_unless_raw(tmp_path: Path) -> None:
    (tmp_path / "console.log").write_bytes(b"\x1b[31mred\x1b[0m \x1b]0;title\x07plain\r\n")
    assert read(tmp_path / "console.log", raw=False) == b"red plain\n"
    assert b"\x1b[31m" in read(tmp_path / "console.log", raw=True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.integers(0, 200_000), max_size=6),
    ended=st.booleans(),
    tail=st.integers(0, 8),
    cut=st.floats(0, 1),
)
def test_the_tail_is_what_tail_would_print(
    tmp_path: Path, lines: list[int], ended: bool, tail: int, cut: float
) -> None:
    content = b"".join(b"x" * length + b"\n" for length in lines) + (b"" if ended else b"rest")
    middle = int(len(content) * cut)
    (tmp_path / "console.log.1").write_bytes(content[:middle])
    (tmp_path / "console.log").write_bytes(content[middle:])
    kept = content.splitlines(keepends=True)
    assert read(tmp_path / "console.log", tail=tail) == b"".join(
        kept[len(kept) - tail :] if tail < len(kept) else kept
    )


def test_following_goes_on_over_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"a\n")

    async def scene() -> bytes:
        seen = b""
        stream = logs.read(path, tail=None, raw=True, follow=True)
        seen += await anext(stream)
        with path.open("ab") as file:
            file.write(b"b\n")
        seen += await anext(stream)
        with path.open("ab") as file:
            file.write(b"c\n")
        path.rename(tmp_path / "console.log.1")
        path.write_bytes(b"d\n")
        while b"d" not in seen:
            seen += await anext(stream)
        await stream.aclose()
        return seen

    assert asyncio.run(scene()) == b"a\nb\nc\nd\n"
