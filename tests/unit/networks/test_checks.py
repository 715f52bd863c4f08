"""Why a host cannot have a network, and what to do."""

from __future__ import annotations

import os
import shutil

import pytest

from nagaya.networks import checks
from nagaya.spec import NetworkSpec


def network(mode: str, **parts: object) -> NetworkSpec:
    return NetworkSpec.model_validate({"name": "n", "mode": mode, **parts})


@pytest.mark.root
def test_the_ci_host_can_have_all() -> None:
    for spec in (network("nat"), network("user"), network("isolated"), network("bridge", uplink="br0")):
        assert checks.refusal(spec) == ""


def test_who_is_not_root_is_shown_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert checks.refusal(network("nat")).endswith("or use mode user")
    assert "root" not in checks.refusal(network("user"))


@pytest.mark.root
def test_what_is_missing_is_named_with_its_package_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_args, **_kwargs: None)
    said = "passt and setpriv and prlimit not installed: apt-get install passt util-linux"
    assert checks.refusal(network("user")) == said
    assert checks.refusal(network("nat", dhcp=False, dns=False)).endswith("apt-get install nftables")
