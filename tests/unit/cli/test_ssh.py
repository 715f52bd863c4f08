"""What `nagaya ssh` tells the ssh client."""

from __future__ import annotations

import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nagaya.cli.ssh import SSH_FAILED, endpoint, own_key, public_key, ssh_options
from nagaya.errors import NotFoundError, UnavailableError
from nagaya.models.machine import MachineInfo

KEYS = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKeyKeyKeyKey", "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQC"]


def machine(ports: list[str] = [], **nic: str) -> MachineInfo:  # noqa: B006
    nics = [{"ipv4": "", "ipv6": "", **nic}] if nic else []
    fields: dict[str, Any] = dict.fromkeys(MachineInfo.__dataclass_fields__, "")
    return MachineInfo(**fields | {"name": "web", "spec": {"ports": ports}, "nics": nics})


def test_it_connects_to_the_machines_own_address() -> None:
    assert endpoint(machine(ipv4="10.77.0.5", ipv6="fd00::5")) == ("10.77.0.5", 22)
    assert endpoint(machine(ipv6="fd00::5")) == ("fd00::5", 22)


def test_a_forward_to_port_22_goes_first() -> None:
    assert endpoint(machine(["8080:80", "2222:22"], ipv4="10.77.0.5")) == ("127.0.0.1", 2222)
    assert endpoint(machine(["192.0.2.1:2222:22"])) == ("192.0.2.1", 2222)
    assert endpoint(machine(["2222:22/udp"], ipv4="10.77.0.5")) == ("10.77.0.5", 22)


def test_without_an_address_it_says_what_does_not_need_one() -> None:
    with pytest.raises(UnavailableError, match=r"(?s)web has no address.*nagaya console web"):
        endpoint(machine())


def test_ssh_believes_the_keys_that_the_machine_told_and_no_others(tmp_path: Path) -> None:
    options = ssh_options("nagaya-0123", KEYS, tmp_path / "my key")
    listing = subprocess.run(
        ["ssh", "-G", "-F", "none", *options, "10.77.0.5"], capture_output=True, text=True, check=True
    ).stdout
    settings = dict(line.split(" ", 1) for line in listing.splitlines() if " " in line)
    assert settings["hostkeyalias"] == "nagaya-0123"
    assert settings["stricthostkeychecking"] == "true"
    assert settings["userknownhostsfile"] == settings["globalknownhostsfile"] == "none"
    assert settings["identityfile"] == str(tmp_path / "my key")
    assert settings["identitiesonly"] == "yes"


def test_its_command_prints_a_line_of_known_hosts_for_each_key(tmp_path: Path) -> None:
    options = ssh_options("nagaya-0123", KEYS, tmp_path / "key")
    (command,) = (one for one in options if one.startswith("-oKnownHostsCommand="))
    shown = command.partition("=")[2].replace("%%", "%")
    words = [quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|(\S+)', shown)]
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert printed == "".join(f"nagaya-0123 {key}\n" for key in KEYS)


def test_its_own_key_is_made_once_and_is_the_users_alone(tmp_path: Path) -> None:
    directory = tmp_path / "nagaya"
    key = own_key(directory)
    first = public_key(key)
    assert public_key(own_key(directory)) == first
    assert re.fullmatch(r"ssh-ed25519 \S+ nagaya", first)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [one.name for one in directory.iterdir()] == ["id_ed25519"]


def test_a_key_of_the_users_own(tmp_path: Path) -> None:
    key = tmp_path / "id"
    with pytest.raises(NotFoundError, match="there is no key"):
        public_key(key)
    (tmp_path / "id.pub").write_text("ssh-ed25519 AAAA me@here\n")
    assert public_key(key) == "ssh-ed25519 AAAA me@here"


def test_its_own_failures_have_the_status_of_ssh_and_make_no_key(
    invoke: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    outcome = invoke("ssh", "nobody")
    assert outcome.status == SSH_FAILED
    assert "nobody" in outcome.err
    assert not list(tmp_path.iterdir())
