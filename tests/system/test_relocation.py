"""Memory of real guests moves while they run, by the host's counters, and they find all of it as it was."""

from __future__ import annotations

import pytest

from nagaya.errors import UnsupportedError
from nagaya.sdk import Client, Machine
from nagaya.testing.swap import CONTROL, swap

MIB = 2**20
FILL = "mount -t tmpfs -o size=90% none /mnt && dd if=/dev/urandom of=/mnt/f bs=1M count=48 2>/dev/null"

pytestmark = [pytest.mark.uml, pytest.mark.root]


def digest(machine: Machine) -> bytes:
    done = machine.exec(["md5sum", "/mnt/f"])
    assert done.exit_code == 0, done
    return done.stdout


@pytest.fixture
def filled(client: Client) -> tuple[Machine, bytes]:
    """A machine with 48 MiB that it remembers, and their digest."""
    spec = {"name": "web", "memory": "96MiB", "disks": [{"image": "busybox"}]}
    machine = client.machines.create(spec, start=True).wait("agent", 60)
    done = machine.exec(["sh", "-c", FILL])
    assert done.exit_code == 0, done
    return machine, digest(machine)


def test_pages_become_huge_and_small_again(filled: tuple[Machine, bytes]) -> None:
    machine, before = filled
    answer = machine.relocate(huge=True)
    assert answer.after.huge >= 16 * MIB
    assert answer.done == answer.after.huge - answer.before.huge
    assert digest(machine) == before
    answer = machine.relocate(huge=False)
    assert answer.after.huge < 4 * MIB  # the guest runs on, and khugepaged does not
    assert digest(machine) == before


def test_pages_go_to_swap_and_come_back(filled: tuple[Machine, bytes]) -> None:
    if not CONTROL.exists():
        pytest.skip("needs zram in the host's kernel")
    machine, before = filled
    with swap(256 * MIB):
        answer = machine.relocate(swap=32 * MIB)
        assert answer.after.swapped >= 24 * MIB
        assert answer.after.resident <= answer.before.resident - 24 * MIB
        assert digest(machine) == before
        machine.relocate(swap=32 * MIB)
        answer = machine.relocate(resident=True)
        assert answer.done > 0
        assert answer.after.swapped < 4 * MIB
        assert digest(machine) == before
        machine.relocate(swap=16 * MIB)  # what is out when the swap goes away comes back with it
    assert digest(machine) == before
    assert "memory relocated" in [entry.event for entry in machine.journal()]


def test_pages_stay_on_the_only_node_and_another_is_refused(filled: tuple[Machine, bytes]) -> None:
    machine, before = filled
    answer = machine.relocate(node=0)
    assert sum(answer.after.nodes.values()) >= 32 * MIB
    with pytest.raises(UnsupportedError, match="no NUMA node 999"):
        machine.relocate(node=999)
    assert digest(machine) == before
