"""Scores for the out-of-memory killer, on a tree of plain files."""

from __future__ import annotations

from pathlib import Path

from nagaya import oom
from nagaya.daemon.oomrank import score
from nagaya.resources.policy import HostPolicy
from nagaya.spec import MachineSpec

MIB = 2**20


def test_a_score_is_written_once(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/oom_score_adj").write_text("0\n")
    assert oom.set_score(7, oom.BEYOND, tmp_path)
    assert (tmp_path / "7/oom_score_adj").read_text() == "1000"
    assert not oom.set_score(7, oom.BEYOND, tmp_path)
    assert not oom.set_score(8, oom.BEYOND, tmp_path)


def test_no_memory_makes_up_for_being_within_a_promise() -> None:
    assert oom.BEYOND - oom.WITHIN >= oom.BEYOND - oom.ORDINARY >= 1000
    assert oom.HOST < oom.WITHIN < oom.ORDINARY < oom.BEYOND


def test_a_machine_is_beyond_its_promise_when_it_uses_more_than_it_reserves() -> None:
    spec = MachineSpec.model_validate({"name": "db", "memory": {"size": "512MiB", "reservation": "256MiB"}})
    fair = HostPolicy.model_validate({"memory": {"overcommit": "fair"}})
    assert score(fair, spec, 200 * MIB) == oom.WITHIN
    assert score(fair, spec, 300 * MIB) == oom.BEYOND
    assert score(fair, spec, None) == oom.WITHIN
    assert score(HostPolicy(), spec, 600 * MIB) == oom.WITHIN
