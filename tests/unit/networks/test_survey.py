"""What doctor says of this host's networks; tests/system/test_network_doctor.py makes a host worse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from nagaya.networks.names import Names
from nagaya.networks.survey import filters, pings, survey
from nagaya.paths import Paths

NAMES = Names(Path("/run/nagaya"))


def test_each_fact_has_a_name_of_its_own_and_what_is_not_well_a_way_to_mend_it(tmp_path: Path) -> None:
    facts = list(survey(Paths(tmp_path / "r", tmp_path / "s", tmp_path / "c")))
    assert len({fact.name for fact in facts}) == len(facts)
    for fact in facts:
        assert fact.found
        assert fact.well or (fact.meaning and fact.fix), fact
    assert not list(tmp_path.iterdir()), "nothing is made"


def test_without_programs_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_args, **_kwargs: None)
    facts = {fact.name: fact for fact in survey(Paths(tmp_path / "r", tmp_path / "s", tmp_path / "c"))}
    assert (facts["passt"].well, facts["passt"].fix) == (False, "apt-get install passt")
    assert not facts["default network"].well
    assert facts["default network"].fix.startswith("apt-get install")


@pytest.mark.parametrize(
    ("span", "well"),
    [("1\t0", False), ("0\t2147483647", True), ("1000\t1000", True), ("1001\t2000", False), ("", False)],
)
def test_who_may_send_pings(span: str, well: bool) -> None:
    assert pings(span, [1000, 7]).well is well


@pytest.mark.parametrize("said", ["", "{", "[]", '{"nftables": [{"metainfo": {}}]}'])
def test_what_nft_cannot_say_is_nothing_against_anybody(said: str) -> None:
    assert [fact.well for fact in filters(lambda _command: said, NAMES)] == [True]


def test_only_chains_that_decide_what_is_forwarded_matter() -> None:
    def chain(name: str, **parts: str) -> dict[str, object]:
        return {"chain": {"family": "inet", "table": "firewalld", "name": name, **parts}}

    said = [
        chain("in", hook="input", policy="drop"),
        chain("jumped-to"),
        chain("open", hook="forward", policy="accept"),
        chain("shut", hook="forward", policy="drop"),
    ]

    def run(command: Sequence[str]) -> str:
        return json.dumps({"nftables": said}) if command[-1] == "chains" else ""

    assert [fact.name for fact in filters(run, NAMES)] == ["forwarding (inet firewalld shut)"]
