"""Wires that remember."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nagaya.testing.wires import FakeBoard, FakeInterrupts


@pytest.fixture
def interrupts() -> Iterator[FakeInterrupts]:
    one = FakeInterrupts()
    yield one
    one.close()


@pytest.fixture
def board() -> FakeBoard:
    return FakeBoard()
