"""An order to move memory is one thing, for a machine that runs."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from nagaya.daemon.daemon import Daemon
from nagaya.daemon.relocation import Order, relocate
from nagaya.errors import ConflictError, NotFoundError
from nagaya.spec import MachineSpec
from nagaya.testing import Stage


@pytest.mark.parametrize("body", [{"swap": "64MiB"}, {"resident": True}, {"huge": False}, {"node": 0}])
def test_one_thing_is_an_order(body: dict[str, object]) -> None:
    assert Order.model_validate(body).model_dump(exclude_defaults=True)


@pytest.mark.parametrize("body", [{}, {"resident": False}, {"huge": True, "node": 1}, {"swap": 0}, {"up": 1}])
def test_nothing_and_two_things_are_not(body: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Order.model_validate(body)


def test_only_a_machine_that_runs_and_has_memory_can_be_moved(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await daemon.supervisor.create(MachineSpec(name="db"))
        with pytest.raises(ConflictError, match="db is stopped, it cannot be relocated"):
            await relocate(daemon.supervisor, "db", Order(resident=True))
        await daemon.supervisor.start("db")
        with pytest.raises(NotFoundError, match="has no guest memory"):
            await relocate(daemon.supervisor, "db", Order(resident=True))

    stage.play(scene)
