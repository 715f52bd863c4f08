"""Settings of the host are put back, whoever dies in between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from nagaya.networks import sysctls
from nagaya.networks.sysctls import Sysctls
from nagaya.testing.netns import Namespace

pytestmark = pytest.mark.root
ONE, TWO = "ipv4/conf/lo/forwarding", "ipv4/conf/lo/rp_filter"


@pytest.fixture(autouse=True)
def inside() -> Iterator[None]:
    """This thread is in a namespace of its own, where both are 0."""
    with Namespace() as place, place.entered():
        for name in (ONE, TWO):
            sysctls.write_own(name, "0")
        yield


def test_what_is_not_wanted_any_more_is_what_it_was(tmp_path: Path) -> None:
    record = tmp_path / "s.json"
    settings = Sysctls(record)
    settings.apply({ONE: "1", TWO: "2"})
    assert (sysctls.read(ONE), sysctls.read(TWO)) == ("1", "2")
    assert (settings.before(ONE), settings.before(TWO)) == ("0", "0")
    after = Sysctls(record)
    after.apply({ONE: "1"})
    assert (sysctls.read(ONE), sysctls.read(TWO)) == ("1", "0")
    after.apply({})
    assert (sysctls.read(ONE), record.exists()) == ("0", False)


def test_what_is_so_already_is_not_ours(tmp_path: Path) -> None:
    sysctls.write_own(ONE, "1")
    settings = Sysctls(tmp_path / "s.json")
    settings.apply({ONE: "1", "ipv4/conf/none/forwarding": "1"})
    settings.apply({})
    assert sysctls.read(ONE) == "1"
    assert (sysctls.read("ipv4/conf/none/forwarding"), sysctls.has(ONE)) == (None, True)


@pytest.mark.parametrize(
    "text", ["", "{", "{}", json.dumps({"where": ["other boot", "net:[1]"], "before": {ONE: "1"}})]
)
def test_a_record_of_another_boot_or_namespace_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.json").write_text(text)
    settings = Sysctls(tmp_path / "s.json")
    assert settings.before(ONE) == "0"
    settings.apply({})
    assert sysctls.read(ONE) == "0"
