"""Wires that remember."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.unit.hw.virtio_slot import Slot

from nagaya.testing.wires import FakeBoard, FakeInterrupts


@pytest.fixture
def interrupts() -> Iterator[FakeInterrupts]:
    one = FakeInterrupts()
    yield one
    one.close()


@pytest.fixture
def board() -> FakeBoard:
    return FakeBoard()


@pytest.fixture
def slot() -> Iterator[Slot]:
    one = Slot()
    yield one
    one.close()
