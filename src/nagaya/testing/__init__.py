"""Fakes that are shipped: a whole Nagaya without guests, for tests of programs that use it."""

from nagaya.testing.engine import FakeEngine
from nagaya.testing.networks import FakeNetworks
from nagaya.testing.plane import FakePlane
from nagaya.testing.stage import Stage
from nagaya.testing.stores import FakeAgent, FakeImages, FakeKernels, fake_parts

__all__ = [
    "FakeAgent",
    "FakeEngine",
    "FakeImages",
    "FakeKernels",
    "FakeNetworks",
    "FakePlane",
    "Stage",
    "fake_parts",
]
