"""What the metadata service says, path by path."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.errors import ResourceError
from nagaya.networks import documents
from nagaya.networks.config import Instance, Reservation

KEYS = ("ssh-ed25519 AAAA one", "ssh-ed25519 BBBB two")
WEB = Reservation("web", "52:54:00:00:00:05", "10.77.0.5", "fd77::5", instance=Instance("m1", KEYS, "#!"))


@pytest.fixture
def document(tmp_path: Path) -> Mapping[str, Any]:
    documents.write(tmp_path, "lan", [WEB], os.getegid())
    found = documents.read(tmp_path, "10.77.0.5")
    assert found is not None and found == documents.read(tmp_path, "fd77::5")
    return found


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/latest/meta-data/instance-id", "m1"),
        ("/2021-03-23/meta-data/local-hostname", "web.lan"),
        ("/1.0/meta-data/local-ipv4/", "10.77.0.5"),
        ("/latest/user-data", "#!"),
        ("/latest/meta-data/public-keys/", "0=nagaya-0\n1=nagaya-1"),
        ("/latest/meta-data/public-keys/1/openssh-key", KEYS[1]),
        ("/latest/meta-data/network/interfaces/macs", "52:54:00:00:00:05/"),
        ("/nocloud/user-data", "#!"),
        ("/nocloud/vendor-data", ""),
    ],
)
def test_what_is_asked_for(document: Mapping[str, Any], path: str, body: str) -> None:
    assert documents.answer(document, path) == body


@pytest.mark.parametrize(
    "path", ["/latest/none", "/0.9/meta-data", "/latest/meta-data/mac/x", "/nocloud/", "/nocloud/../x"]
)
def test_what_is_not_there(document: Mapping[str, Any], path: str) -> None:
    assert documents.answer(document, path) is None


def test_nocloud_is_yaml(document: Mapping[str, Any]) -> None:
    body = documents.answer(document, "/nocloud/meta-data")
    assert body is not None
    assert json.loads(body) == {"instance-id": "m1", "local-hostname": "web.lan", "public-keys": list(KEYS)}


def test_who_is_gone_is_told_nothing_and_who_has_no_instance_never(tmp_path: Path) -> None:
    quiet = Reservation("db", "52:54:00:00:00:06", "10.77.0.6")
    documents.write(tmp_path, "lan", [WEB, quiet], os.getegid())
    assert documents.read(tmp_path, "10.77.0.6") is None
    documents.write(tmp_path, "lan", [quiet], os.getegid())
    assert documents.read(tmp_path, "10.77.0.5") is None
    assert not list(tmp_path.iterdir())


def test_what_is_too_large_is_refused(tmp_path: Path) -> None:
    large = Reservation("web", WEB.mac, "10.77.0.5", instance=Instance("m1", (), "x" * 300_000))
    with pytest.raises(ResourceError, match="the metadata of web has 300"):
        documents.write(tmp_path, "lan", [large], os.getegid())


@given(st.text(max_size=100), st.text(max_size=200))
def test_no_path_is_too_odd_and_no_data_is_changed(path: str, data: str) -> None:
    document = {
        "instance_id": "m1",
        "hostname": "web.lan",
        "mac": WEB.mac,
        "ipv4": "10.77.0.5",
        "ipv6": "",
        "public_keys": [],
        "user_data": data,
    }
    documents.answer(document, path)
    documents.answer(document, f"/latest/meta-data/{path}")
    assert documents.answer(document, "/latest/user-data") == (data or None)
