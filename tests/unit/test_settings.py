"""Settings as people write them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya import settings
from nagaya.errors import NagayaError, SpecError, UsageError
from nagaya.spec import MachineSpec

DB = {"name": "db", "disks": [{"size": "1MiB"}], "disk": {"limit": "9MiB/s", "limit_iops": 70}}


def after(*texts: str) -> MachineSpec:
    """The machine `db` with these settings."""
    spec: dict[str, Any] = MachineSpec.model_validate(DB).to_json()
    for text in texts:
        settings.put(spec, *settings.parse(text))
    return MachineSpec.model_validate(spec)


def test_each_setting_changes_its_field_and_nothing_else() -> None:
    spec = after("disk.weight=400", "cpu.limit=1.5", "disks[0].share.weight=50", "disk.latency_p99=5ms")
    assert (spec.disk.weight, spec.cpu.limit, spec.disks[0].share.weight) == (400, 1.5, 50)
    assert (spec.disk.latency_p99, spec.disk.limit, spec.disk.limit_iops) == (5000, 9 * 2**20, 70)


def test_the_unit_says_which_of_two_limits_is_meant() -> None:
    spec = after("disk.limit=100iops", "disk.reservation=10iops", "disk.reservation=1MiB/s")
    assert (spec.disk.limit_iops, spec.disk.limit) == (100, 9 * 2**20)
    assert (spec.disk.reservation_iops, spec.disk.reservation) == (10, 2**20)


@pytest.mark.parametrize("nothing", ["none", "null", ""])
def test_none_takes_a_limit_away_in_both_units(nothing: str) -> None:
    spec = after(f"disk.limit={nothing}")
    assert (spec.disk.limit_iops, spec.disk.limit) == (None, None)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("disk.weight", UsageError, "is not FIELD=VALUE"),
        ("=5", UsageError, "is not FIELD=VALUE"),
        ("disk..weight=5", UsageError, "names no field"),
        ("disk[x].weight=5", UsageError, "names no field"),
        ("disks[0]=5", UsageError, "whole entry"),
        ("disks[1].share.weight=5", SpecError, "there are 1 entries"),
        ("disk[0].weight=5", SpecError, "there are 0 entries"),
        ("disk.weight=[", UsageError, "disk.weight=["),
    ],
)
def test_what_is_no_setting_is_refused(text: str, error: type[NagayaError], words: str) -> None:
    with pytest.raises(error) as caught:
        after(text)
    assert words in caught.value.message


def test_a_specification_is_flattened_by_the_names_that_settings_have() -> None:
    flat = settings.flatten(MachineSpec.model_validate(DB).to_json())
    assert flat["disk.limit"] == "9MiB/s"
    assert flat["disks[0].share.weight"] == 100
    spec: dict[str, Any] = MachineSpec.model_validate(DB).to_json()
    for field, value in flat.items():
        settings.put(spec, field, value)
    assert MachineSpec.model_validate(spec) == MachineSpec.model_validate(DB)


@given(st.text(max_size=30), st.none() | st.integers() | st.text(max_size=10))
def test_any_text_is_put_or_refused(field: str, value: object) -> None:
    spec: dict[str, Any] = MachineSpec.model_validate(DB).to_json()
    try:
        settings.put(spec, field, value)
    except NagayaError as error:
        assert error.message
