"""One command to a machine's monitor, whatever the machine does meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from qemu.qmp import QMPClient

from nagaya.engines.qmp import ask
from nagaya.errors import UnavailableError
from nagaya.plane.client import PlaneClient


def test_a_session_that_is_over_before_connect_returns_is_one_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """qemu.qmp asserts that it is not; a guest that powers off meets just that moment."""

    async def over(_self: QMPClient, _path: str) -> None:
        raise AssertionError

    monkeypatch.setattr(QMPClient, "connect", over)
    with pytest.raises(UnavailableError, match=r"query-status: it closed the connection"):
        asyncio.run(ask("db", tmp_path / "qmp", "query-status"))
    with pytest.raises(UnavailableError, match="hung up"):
        asyncio.run(PlaneClient.connect(tmp_path / "qmp"))
