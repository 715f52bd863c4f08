"""Complaints in our words."""

from typing import Any

import pytest
from pydantic import ValidationError

from nagaya import validation
from nagaya.spec import MachineSpec


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"memroy": "1GiB"}, "memroy: unknown key 'memroy'; did you mean 'memory'?"),
        (
            {"disks": [{"imag": "x", "size": "1GiB"}]},
            "disks[0].imag: unknown key 'imag'; did you mean 'image'?",
        ),
        ({"memory": "lots"}, "memory.size: 'lots' is not a size; write for example 512MiB, 1.5GiB or 10GB"),
        ({"memory": "99TiB"}, "memory.size: '99TiB' must be at most 64TiB"),
        ({"memory": "1KiB"}, "memory.size: '1KiB' must be at least 16MiB"),
        ({"cpus": 0}, "cpus: 0 must be at least 1"),
        ({"cpus": "two"}, "cpus: 'two' is not a whole number"),
        ({"engine": "xen"}, "engine: 'xen' is not one of 'auto', 'kvm', 'uml' or 'qemu'"),
        ({"autostart": "maybe"}, "autostart: 'maybe' is not true or false"),
        ({"boot": 3}, "boot: 3 is not a mapping of keys to values"),
        ({"nics": [{}] * 9}, "nics: has 9 entries, 8 are allowed"),
        ({"name": "Web"}, "name: 'Web' is not allowed: lower-case letters, digits and hyphens, 63 at most"),
        ({"disks": [{}]}, "disks[0]: a disk needs `image`, `disk`, `path`, or `size` for an empty one"),
        ({"cpu": {"reservation": 2, "limit": 1}}, "cpu: reservation 2 is above limit 1"),
        ({"name": None}, "name: None is not text; put it in quotes"),
    ],
)
def test_a_complaint_has_field_value_and_remedy(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError) as caught:
        MachineSpec.model_validate({"name": "web", **given})
    assert str(validation.problems(caught.value, MachineSpec)[0]) == complaint


def test_all_problems_come_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        MachineSpec.model_validate({"cpus": -1, "memory": "1", "engine": 7})
    fields = [validation.dotted(problem.field) for problem in validation.problems(caught.value, MachineSpec)]
    assert fields == ["name", "engine", "cpus", "memory.size"]


def test_a_long_value_is_cut() -> None:
    assert len(validation.shown("x" * 10000)) < 80
    assert validation.unknown_key("x", ["a", "b"]) == "unknown key 'x'; allowed are a, b"
