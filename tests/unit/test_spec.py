"""The specification of a machine."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nagaya.spec import Disk, MachineSpec, check_name


def test_a_name_is_enough() -> None:
    spec = MachineSpec(name="web")
    assert (spec.engine, spec.cpus, spec.memory.size, spec.disks) == ("auto", 1, 512 * 2**20, ())


def test_memory_may_be_a_size_or_the_triple() -> None:
    short = MachineSpec.model_validate({"name": "web", "memory": "1GiB"})
    full = MachineSpec.model_validate({"name": "web", "memory": {"size": "1GiB", "weight": 100}})
    assert short == full
    assert short.memory.size == 2**30


def test_a_specification_cannot_be_changed() -> None:
    spec = MachineSpec(name="web")
    with pytest.raises(ValidationError, match="frozen"):
        spec.cpus = 2  # type: ignore[misc]  # that is the point


def test_json_has_sizes_as_text_and_reads_back_the_same() -> None:
    spec = MachineSpec.model_validate(
        {
            "name": "web",
            "memory": "1.5GiB",
            "disks": [{"image": "web", "size": "4GiB"}],
            "disk": {"limit": "9MiB"},
        }
    )
    body = json.loads(json.dumps(spec.to_json()))
    assert body["memory"]["size"] == "1536MiB"
    assert body["disks"][0]["size"] == "4GiB"
    assert MachineSpec.model_validate(body) == spec


@pytest.mark.parametrize(
    ("disk", "complaint"),
    [
        ({"image": "a", "path": "/b"}, "not both"),
        ({"path": "b"}, "is not absolute"),
        ({}, "needs `image`, `path`, or `size`"),
        ({"size": 1000}, "at least 1MiB and a multiple of 512"),
        ({"size": 2**20 + 1}, "at least 1MiB and a multiple of 512"),
    ],
)
def test_a_disk_has_one_source_and_a_sound_size(disk: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Disk.model_validate(disk)


@pytest.mark.parametrize("part", ["cpu", "memory", "network"])
def test_a_reservation_above_its_limit_is_refused(part: str) -> None:
    with pytest.raises(ValidationError, match=f"{part}: reservation .* is above limit"):
        MachineSpec.model_validate({"name": "web", part: {"reservation": 64, "limit": 32}})


def test_a_command_line_stays_on_one_line() -> None:
    with pytest.raises(ValidationError, match="control character"):
        MachineSpec.model_validate({"name": "web", "boot": {"cmdline": "quiet\ninit=/bin/sh"}})


@given(st.text(max_size=70))
def test_a_name_is_a_host_name(name: str) -> None:
    try:
        check_name(name)
    except ValueError:
        with pytest.raises(ValidationError):
            MachineSpec(name=name)
    else:
        assert MachineSpec(name=name).name == name
        assert name.isascii() and name == name.lower() and 1 <= len(name) <= 63
