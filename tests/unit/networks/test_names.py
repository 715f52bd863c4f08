"""How what a Nagaya makes on its host is called."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from nagaya.networks.names import Names

runs = st.binary(max_size=200).map(lambda raw: Path("/run", os.fsdecode(raw.replace(b"\0", b""))))
networks = st.from_regex(r"\A[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")


@given(runs, networks)
def test_names_fit_the_kernel_and_say_whose_they_are(run: Path, network: str) -> None:
    names = Names(run)
    interface = names.interface(network)
    assert interface.startswith(names.prefix) and interface.startswith("ngy-")
    assert len(interface.encode()) <= 15, "IFNAMSIZ holds 16 with the zero"
    assert len(names.alias(network)) <= 255
    assert names.table.replace("_", "").isalnum()
    first = int(names.mac(network)[:2], 16)
    assert first & 1 == 0 and first & 2, "of one machine, locally administered"


@given(st.lists(networks, min_size=2, max_size=30, unique=True))
def test_networks_of_one_host_have_different_names(found: list[str]) -> None:
    names, other = Names(Path("/run/nagaya")), Names(Path("/tmp/other"))
    assert len({names.interface(one) for one in found}) == len(found)
    assert len({names.mac(one) for one in found}) == len(found)
    assert not {names.interface(one) for one in found} & {other.interface(one) for one in found}
    assert names.table != other.table
