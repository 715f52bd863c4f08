"""Layouts of arch/um/drivers/mconsole.h, version 2: all fields are 32 bits wide, data is 512 bytes."""

from __future__ import annotations

import ctypes

import pytest

from nagaya.abi.mconsole import MconsoleNotify, MconsoleReply, MconsoleRequest


@pytest.mark.parametrize(
    ("structure", "size", "offsets"),
    [
        (MconsoleRequest, 524, {"magic": 0, "version": 4, "len": 8, "data": 12}),
        (MconsoleReply, 524, {"err": 0, "more": 4, "len": 8, "data": 12}),
        (MconsoleNotify, 528, {"magic": 0, "version": 4, "type": 8, "len": 12, "data": 16}),
    ],
)
def test_layout_is_the_kernels(structure: type[ctypes.Structure], size: int, offsets: dict[str, int]) -> None:
    assert ctypes.sizeof(structure) == size
    assert {name: getattr(structure, name).offset for name in offsets} == offsets
