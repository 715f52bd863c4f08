"""Console output made safe to print: what a guest writes must not steer the reader's terminal."""

from __future__ import annotations

import codecs

_MAX_STRING = 4096  # characters of a control string that the guest never closes
_CANCEL = "\x18\x1a"  # CAN and SUB end any sequence (ECMA-48 8.3)
_STRING_STARTS = "]PX^_"  # OSC, DCS, SOS, PM, APC


class AnsiStripper:
    """Takes escape sequences (ECMA-48) and control characters out of a stream; text, tabs and newlines stay.

    Sequences and UTF-8 characters may lie across the borders of chunks.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._state = "text"
        self._string_length = 0

    def feed(self, chunk: bytes) -> str:
        """What remains of `chunk`."""
        kept = []
        for character in self._decoder.decode(chunk):
            if self._state != "text":
                self._in_sequence(character)
            elif character == "\x1b":
                self._state = "escape"
            elif character == "\x9b":  # CSI as one character
                self._state = "csi"
            elif character.isprintable() or character in "\n\t":
                kept.append(character)
        return "".join(kept)

    def _in_sequence(self, character: str) -> None:
        if character in _CANCEL:
            self._state = "text"
        elif character == "\x1b":
            self._state = "escape"
        elif self._state == "escape":
            self._begin(character)
        elif self._state == "csi":
            if "\x40" <= character <= "\x7e" or character == "\n":
                self._state = "text"
        else:
            self._string_length += 1
            if character in "\x07\n\x9c" or self._string_length > _MAX_STRING:
                self._state = "text"

    def _begin(self, character: str) -> None:
        if character == "[":
            self._state = "csi"
        elif character in _STRING_STARTS:
            self._state, self._string_length = "string", 0
        elif not "\x20" <= character <= "\x2f":  # intermediate characters go on
            self._state = "text"


def clean(text: str) -> str:
    """`text` without control characters: what guests and files name must not steer a terminal."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )
