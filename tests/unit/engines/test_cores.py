"""Cookies of core scheduling, of this very kernel: it has them, or says that it has none."""

from __future__ import annotations

import ctypes
import multiprocessing
from multiprocessing.connection import Connection

from nagaya.abi import linux
from nagaya.engines.cores import Cores, probe, separate


def cookie() -> int:
    """This process's; 0 for none."""
    found = ctypes.c_uint64()
    linux.prctl(linux.PR_SCHED_CORE, linux.PR_SCHED_CORE_GET, 0, 0, ctypes.addressof(found))
    return found.value


def _machine(answer: Connection) -> None:
    made = separate()
    answer.send((made, cookie() if made else 0))


def test_two_machines_have_different_cookies_or_the_kernel_has_none() -> None:
    answers = []
    for _ in range(2):
        mine, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("spawn").Process(target=_machine, args=(theirs,))
        child.start()
        answers.append(mine.recv())
        child.join()
        mine.close()
        theirs.close()
    if probe() is Cores.COOKIES:
        assert cookie() not in {one for _, one in answers}
        assert all(made for made, _ in answers)
        assert answers[0] != answers[1]
    else:
        assert answers == [(False, 0), (False, 0)]
