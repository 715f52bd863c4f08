"""The last line of a machine's log says why it ended."""

from __future__ import annotations

import pytest

from nagaya.kvm.ending import STATUS, Ending, Reason, read_ending


@pytest.mark.parametrize("reason", Reason)
def test_an_ending_is_read_from_the_last_line(reason: Reason) -> None:
    ending = Ending(reason, "vCPU 0: triple fault\nat 0x1000")
    log = f"{Ending(Reason.QUIT).to_line()}\nsomething else\n{ending.to_line()}\n"
    assert read_ending(log) == ending


@pytest.mark.parametrize(
    "log", ["", "\n", "oops", "{}", "[]", "3", '{"ending": "x", "cause": ""}', '{"ending": 1']
)
def test_what_is_no_ending_is_none(log: str) -> None:
    assert read_ending(log) is None


def test_an_ending_is_the_last_line_or_none() -> None:
    assert read_ending(f"{Ending(Reason.QUIT).to_line()}\nTraceback") is None


def test_a_guest_that_asks_for_a_restart_is_told_from_one_that_powers_off() -> None:
    assert set(STATUS) == set(Reason)
    assert (
        len({STATUS[Reason.POWEROFF], STATUS[Reason.RESET], STATUS[Reason.PANIC], STATUS[Reason.FAULT]}) == 4
    )
