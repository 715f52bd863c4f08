"""Records of networks on disk: what a crash leaves of one is in nobody's way."""

from __future__ import annotations

from pathlib import Path

import pytest

from nagaya.networks import records
from nagaya.networks.plan import Record
from nagaya.spec import NetworkSpec


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", '{"spec": {}}', '{"spec": {"name": "back", "mode": 7}}']
)
def test_a_network_whose_record_cannot_be_read_has_no_ranges(tmp_path: Path, text: str | None) -> None:
    (tmp_path / "back").mkdir()
    if text is not None:
        (tmp_path / "back" / records.FILE).write_text(text)
    (found,) = records.read_all(tmp_path)
    assert (found.spec.name, found.spec.ipv4, found.spec.ipv6, found.addresses()) == ("back", None, None, [])
    assert (found.reservations, found.forwards) == ((), ())


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "back").mkdir()
    record = Record(NetworkSpec(name="back", ipv4="10.9.0.0/24", ipv6=None))
    records.write(tmp_path / "back", record)
    assert records.read_all(tmp_path) == [record]
