"""Keys that guests are to let in, and what guests say."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence

import pytest

from nagaya.daemon.login import HOST_KEYS_MAX, KEY_PATTERN, admit, host_keys
from nagaya.errors import NagayaError, NotFoundError, ProtocolError, UnavailableError
from nagaya.testing.stores import FakeAgent

KEY = "ssh-ed25519 " + "A" * 68
HOST_KEY = "ssh-ed25519 " + "B" * 68


class Guest(FakeAgent):
    """Its shell ends with `status` and prints `out`."""

    def __init__(self, status: int, out: bytes = b"") -> None:
        self.status, self.out = status, out
        self.stdin, self.argv = b"", [""]

    async def exec(
        self, argv: Sequence[str], *, env: Mapping[str, str], stdin: bytes, seconds: float
    ) -> tuple[int, bytes, bytes, bool]:
        """See the class."""
        self.argv, self.stdin = list(argv), stdin
        return self.status, self.out, b"cannot", False


def test_the_guest_is_given_the_key_and_tells_its_own() -> None:
    guest = Guest(0, f"{HOST_KEY} root@web\n".encode())
    answer = asyncio.run(admit(guest, "web", "root", KEY))
    assert answer.host_keys == [HOST_KEY]
    assert (guest.stdin, guest.argv[-1]) == (KEY.encode(), "root")


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (67, NotFoundError, "no user 'anna'"),
        (69, UnavailableError, "no ssh server"),
        (1, ProtocolError, "cannot"),
        (0, ProtocolError, "no host key"),
    ],
)
def test_what_a_guest_cannot_do_is_an_error_that_says_it(
    status: int, error: type[NagayaError], words: str
) -> None:
    with pytest.raises(error, match=words):
        asyncio.run(admit(Guest(status), "web", "anna", KEY))


def test_what_a_guest_prints_may_be_anything() -> None:
    hostile = (
        b'\xff\x00"; rm -rf /\nssh-ed25519 AAAA\nssh-ed25519 %h"' + b"A" * 40 + b"\n" + b"x" * 10_000_000
    )
    with pytest.raises(ProtocolError):
        host_keys("web", hostile)
    assert host_keys("web", hostile + b"\n" + HOST_KEY.encode() + b' "; $(x) %h') == [HOST_KEY]
    assert len(host_keys("web", (HOST_KEY.encode() + b"\n") * 100)) == HOST_KEYS_MAX


def test_what_is_no_public_key_is_refused() -> None:
    assert re.search(KEY_PATTERN, KEY)
    assert re.search(KEY_PATTERN, f"{KEY} me@here")
    for wrong in ("", "ssh-ed25519", f"{KEY}\nroot", f"{KEY} a\nb", f"command=x {KEY}", "-----BEGIN"):
        assert not re.search(KEY_PATTERN, wrong), wrong
