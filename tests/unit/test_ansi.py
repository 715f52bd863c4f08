"""What a guest writes does not steer the reader's terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.ansi import AnsiStripper, clean


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (b"plain\r\n\ttext\n", "plain\n\ttext\n"),
        (b"\x1b[1;31mred\x1b[0m", "red"),
        (b"\x1b]0;title\x07after", "after"),
        (b"\x1b]52;c;Zm9v\x1b\\after", "after"),
        (b"\x1bPq#0\x1b\\x", "x"),
        (b"\x1b(Bx", "x"),
        (b"\x1bcx", "x"),
        ("\x9b31mx".encode(), "x"),
        ("grün 長屋".encode(), "grün 長屋"),
        (b"a\x08b\x00c\x7f", "abc"),
        (b"\xff", "\N{REPLACEMENT CHARACTER}"),
        (b"\x1b[31\nnext", "next"),
        (b"\x1b]never closed\nnext", "next"),
        ("right \u202e left".encode(), "right  left"),
    ],
)
def test_sequences_go_and_text_stays(written: bytes, shown: str) -> None:
    assert AnsiStripper().feed(written) == shown


@given(st.binary(max_size=300), st.integers(min_value=1, max_value=7))
def test_the_borders_of_chunks_do_not_matter(written: bytes, step: int) -> None:
    whole = AnsiStripper().feed(written)
    stripper = AnsiStripper()
    pieces = [stripper.feed(written[at : at + step]) for at in range(0, len(written), step)]
    assert "".join(pieces) == whole
    assert all(character.isprintable() or character in "\n\t" for character in whole)


def test_clean_keeps_letters_of_all_scripts() -> None:
    assert clean("長屋 grün\x07\u202e") == "長屋 grün��"
