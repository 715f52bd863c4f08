"""What is counted with a machine, by whose account."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from nagaya.daemon import heldmemory
from nagaya.daemon.daemon import Daemon
from nagaya.daemon.heldmemory import Held, _private
from nagaya.errors import UnavailableError
from nagaya.spec import MachineSpec
from nagaya.testing import Stage, fake_parts

MIB = 2**20


def test_what_the_plane_touched_first_counts_with_the_machine() -> None:
    held = Held(guest=300 * MIB, charged=220 * MIB, shared=200 * MIB, helpers=5 * MIB)
    assert (held.own, held.by_plane) == (20 * MIB, 100 * MIB)
    assert (held.machine, held.total) == (320 * MIB, 325 * MIB)


def test_what_nobody_counts_is_not_made_up() -> None:
    assert Held().total is None
    assert Held(charged=MIB).total == MIB
    assert Held(guest=MIB, helpers=7).total == MIB + 7
    assert Held(guest=3 * MIB, charged=2 * MIB).machine == 3 * MIB
    assert Held(guest=3 * MIB, charged=2 * MIB).by_plane is None


def test_counters_that_were_read_one_after_the_other_give_no_negative_numbers() -> None:
    held = Held(guest=MIB, charged=MIB, shared=2 * MIB)
    assert (held.own, held.by_plane, held.machine) == (0, 0, MIB)


def test_who_may_not_look_at_guests_goes_by_their_control_groups(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_pid: int) -> None:
        raise UnavailableError("the memory of process 7 cannot be looked at")

    async def scene(daemon: Daemon) -> None:
        await daemon.supervisor.create(MachineSpec(name="db"))
        one = await daemon.supervisor.start("db")
        assert daemon.supervisor.memory.held.of(one) == Held(charged=7 * MIB)

    monkeypatch.setattr(heldmemory, "GuestMemory", refused)
    stage.play(scene, replace(fake_parts(stage.paths), usage=lambda _machine: (0, 7 * MIB)))
    stage.clear()


def test_a_process_has_private_memory_until_it_ends() -> None:
    assert _private(os.getpid()) > MIB
    assert _private(2**22 + 1) == 0
