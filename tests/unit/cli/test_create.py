"""Options of `create` and `run` as a specification."""

from __future__ import annotations

import re
from typing import Any

import pytest

from nagaya.cli.create import spec_from_options
from nagaya.cli.terminal import parse_env, strip_dashes
from nagaya.errors import UsageError
from nagaya.spec import MachineSpec

NONE: dict[str, Any] = dict.fromkeys(("memory", "cpus", "disk", "engine", "kernel"))


def test_options_make_a_valid_specification() -> None:
    options = {"memory": "256MiB", "cpus": 2, "disk": "4GiB", "engine": "uml", "kernel": "uml"}
    settings = ["cpu.weight=200", "memory.limit=1GiB", "boot.cmdline=quiet", "autostart=true"]
    spec = MachineSpec.model_validate(spec_from_options("web", "w1", settings, **options))
    assert (spec.name, spec.cpus, spec.engine, spec.autostart) == ("w1", 2, "uml", True)
    assert (spec.memory.size, spec.memory.limit) == (256 * 2**20, 2**30)
    assert (spec.disks[0].image, spec.disks[0].size) == ("web", 4 * 2**30)
    assert (spec.boot.kernel, spec.boot.cmdline, spec.cpu.weight) == ("uml", "quiet", 200)


def test_only_an_image_is_enough_and_names_differ() -> None:
    first, second = (spec_from_options("busybox", None, [], **NONE) for _ in range(2))
    assert first["disks"] == [{"image": "busybox"}]
    assert first["name"] != second["name"]
    assert MachineSpec.model_validate(first).name.startswith("busybox-")


@pytest.mark.parametrize("setting", ["memory", "=1", "cpu..weight=1", "cpu.weight=[", ".=1"])
def test_a_malformed_setting_is_refused(setting: str) -> None:
    with pytest.raises(UsageError, match=re.escape(setting.removesuffix("=1") or setting)):
        spec_from_options("busybox", "b", [setting], **NONE)


def test_variables_and_dashes() -> None:
    assert parse_env(["A=1", "B=x=y", "C="]) == {"A": "1", "B": "x=y", "C": ""}
    for wrong in ("A", "=1"):
        with pytest.raises(UsageError, match="is not NAME=VALUE"):
            parse_env([wrong])
    assert strip_dashes(["--", "ls", "--"]) == ["ls", "--"]
    assert strip_dashes(["ls", "-l"]) == ["ls", "-l"]
    with pytest.raises(UsageError, match="after the machine's name"):
        strip_dashes(["-e", "A=1", "--", "env"])
