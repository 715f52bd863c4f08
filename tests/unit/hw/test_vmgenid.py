"""The generation id in guest memory."""

from __future__ import annotations

from nagaya.hw import layout
from nagaya.hw.ged import Event, Ged
from nagaya.hw.vmgenid import GenerationId
from nagaya.testing.kernels import FakeRam


class NoLine:
    """A line that leads nowhere."""

    def set(self, level: bool) -> None:
        """Nothing happens."""


def test_a_new_generation_is_another_and_announced_on_request() -> None:
    ram = FakeRam(layout.MIB)
    ged = Ged(NoLine())
    generation = GenerationId(ram, ged)
    generation.renew(announce=False)
    first = ram.read(layout.VMGENID_PAGE, 16)
    assert first != bytes(16)
    assert ged.read(0, 4) == 0
    generation.renew(announce=True)
    assert ram.read(layout.VMGENID_PAGE, 16) != first
    assert ged.read(0, 4) == Event.GENERATION
