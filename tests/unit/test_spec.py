"""The specification of a machine."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nagaya.spec import Disk, MachineSpec, NetworkSpec, SecurityGroup, check_name


def test_a_name_is_enough() -> None:
    spec = MachineSpec(name="web")
    assert (spec.engine, spec.cpus, spec.memory.size, spec.disks) == ("auto", 1, 512 * 2**20, ())


def test_memory_may_be_a_size_or_the_triple() -> None:
    short = MachineSpec.model_validate({"name": "web", "memory": "1GiB"})
    full = MachineSpec.model_validate({"name": "web", "memory": {"size": "1GiB", "weight": 100}})
    assert short == full
    assert short.memory.size == 2**30


def test_a_specification_cannot_be_changed() -> None:
    spec = MachineSpec(name="web")
    with pytest.raises(ValidationError, match="frozen"):
        spec.cpus = 2  # type: ignore[misc]  # that is the point


def test_json_has_sizes_as_text_and_reads_back_the_same() -> None:
    spec = MachineSpec.model_validate(
        {
            "name": "web",
            "memory": "1.5GiB",
            "disks": [{"image": "web", "size": "4GiB"}],
            "disk": {"limit": "9MiB"},
        }
    )
    body = json.loads(json.dumps(spec.to_json()))
    assert body["memory"]["size"] == "1536MiB"
    assert body["disks"][0]["size"] == "4GiB"
    assert MachineSpec.model_validate(body) == spec


@pytest.mark.parametrize(
    ("disk", "complaint"),
    [
        ({"image": "a", "path": "/b"}, "one of `image`, `path` and `disk`"),
        ({"path": "b"}, "is not absolute"),
        ({}, "needs `image`, `disk`, `path`, or `size`"),
        ({"size": 1000}, "at least 1MiB and a multiple of 512"),
        ({"size": 2**20 + 1}, "at least 1MiB and a multiple of 512"),
    ],
)
def test_a_disk_has_one_source_and_a_sound_size(disk: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Disk.model_validate(disk)


@pytest.mark.parametrize("part", ["cpu", "memory", "network"])
def test_a_reservation_above_its_limit_is_refused(part: str) -> None:
    with pytest.raises(ValidationError, match=rf"{part}\W.*reservation .* is above limit"):
        MachineSpec.model_validate({"name": "web", part: {"reservation": 64, "limit": 32}})


def test_a_machine_reserves_no_more_memory_than_it_has() -> None:
    memory = {"size": "512MiB", "max": "2GiB", "reservation": "1GiB"}
    with pytest.raises(ValidationError, match=r"memory\W.*reservation 1GiB is above size 512MiB"):
        MachineSpec.model_validate({"name": "web", "memory": memory})


@pytest.mark.parametrize(
    ("knobs", "complaint"),
    [
        ({"reservation": "10iops", "limit": "5iops"}, "reservation 10iops is above limit 5iops"),
        ({"reservation": "2MiB/s", "limit": "1MiB/s"}, "reservation 2MiB/s is above limit 1MiB/s"),
        ({"reservation": "10iops", "reservation_iops": 10}, "given twice"),
        ({"latency_p99": 5}, "5 is not a time; write for example 5ms"),
        ({"latency_p99": "0ms"}, "greater than or equal to 1"),
        ({"weight": 0}, "greater than or equal to 1"),
    ],
)
def test_a_disks_knobs_are_sound(knobs: dict[str, object], complaint: str) -> None:
    for spec in ({"disk": knobs}, {"disks": [{"size": "1MiB", "share": knobs}]}):
        with pytest.raises(ValidationError, match=complaint):
            MachineSpec.model_validate({"name": "db", **spec})


def test_the_unit_says_whether_requests_or_bytes_are_meant() -> None:
    knobs = {"reservation": "2000iops", "limit": "50MiB/s", "limit_iops": 9000, "latency_p99": "5ms"}
    disk = MachineSpec.model_validate({"name": "db", "disk": knobs}).disk
    assert (disk.reservation_iops, disk.reservation, disk.limit_iops) == (2000, 0, 9000)
    assert (disk.limit, disk.latency_p99) == (50 * 2**20, 5000)
    body = disk.model_dump(mode="json")
    assert (body["limit"], body["latency_p99"]) == ("50MiB/s", "5ms")


def test_disks_reserve_no_more_than_their_machine_may_have() -> None:
    spec = {
        "name": "db",
        "disk": {"limit": "100iops"},
        "disks": [{"size": "1MiB", "share": {"reservation": "60iops"}}] * 2,
    }
    with pytest.raises(ValidationError, match=r"they reserve 120iops, above disk\.limit 100iops"):
        MachineSpec.model_validate(spec)


def test_nics_of_a_network_reserve_no_more_than_their_machine_may_have() -> None:
    nics = [{"network": name, "share": {"reservation": "6MiB/s"}} for name in ("back", "front", "back")]
    spec = {"name": "web", "network": {"limit": "10MiB/s"}, "nics": nics}
    with pytest.raises(ValidationError, match=r"on back they reserve 12MiB/s, above network\.limit 10MiB/s"):
        MachineSpec.model_validate(spec)
    MachineSpec.model_validate({**spec, "nics": nics[:2]})


def test_a_command_line_stays_on_one_line() -> None:
    with pytest.raises(ValidationError, match="control character"):
        MachineSpec.model_validate({"name": "web", "boot": {"cmdline": "quiet\ninit=/bin/sh"}})


@given(st.text(max_size=70))
def test_a_name_is_a_host_name(name: str) -> None:
    try:
        check_name(name)
    except ValueError:
        with pytest.raises(ValidationError):
            MachineSpec(name=name)
    else:
        assert MachineSpec(name=name).name == name
        assert name.isascii() and name == name.lower() and 1 <= len(name) <= 63


def test_no_nics_and_none_said_are_two_things() -> None:
    assert MachineSpec(name="web").nics is None
    alone = MachineSpec.model_validate({"name": "web", "nics": []})
    assert alone.nics == ()
    assert MachineSpec.model_validate(alone.to_json()).nics == ()
    assert MachineSpec.model_validate(MachineSpec(name="web").to_json()).nics is None


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ({"ports": ["80"]}, "'80' is no port forward; write .* for example 8080:80"),
        ({"ports": ["8080:80"], "nics": []}, "it has no NIC that they could lead to"),
        ({"ports": ["80:80", "127.0.0.1:80:81"]}, "80:80 and 127.0.0.1:80:81 are the same port of the host"),
        ({"nics": [{"mac": "01:00:5e:00:00:01"}]}, "mac"),
        ({"nics": [{"ipv4": "fd00::1"}]}, "fd00::1 is not an IPv4 address"),
        ({"nics": [{"ipv6": "fe80::1%eth0"}]}, "not an IP address"),
        ({"nics": [{"mac": "52:54:00:00:00:01"}] * 2}, "two have the same mac"),
    ],
)
def test_nics_and_ports_are_sound(parts: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        MachineSpec.model_validate({"name": "web", **parts})


def test_ports_of_different_addresses_and_protocols_do_not_clash() -> None:
    spec = MachineSpec.model_validate(
        {
            "name": "web",
            "ports": ["127.0.0.1:53:53", "127.0.0.2:53:53", "0.0.0.0:53:53/udp", "[::1]:53:53/tcp"],
        }
    )
    assert spec.ports == ("127.0.0.1:53:53", "127.0.0.2:53:53", "53:53/udp", "[::1]:53:53")


@pytest.mark.parametrize(
    ("network", "complaint"),
    [
        ({"mode": "bridge"}, "mode bridge needs `uplink`"),
        ({"vlan": 5}, "mode nat has no `vlan`"),
        ({"mode": "bridge", "uplink": "br0", "ipv4": "10.0.0.0/24"}, "come from the uplink's network"),
        ({"mode": "isolated", "uplink": "br0"}, "mode isolated has no `uplink`"),
        ({"ipv4": None, "ipv6": None}, "mode nat needs `ipv4` or `ipv6`"),
        ({"ipv4": "10.0.0.1/24"}, "host bits set"),
        ({"ipv4": "10.0.0.0/30"}, "with /8 to /29"),
        ({"ipv6": "fd00::/56"}, "with /64"),
        ({"domain": "Example.org"}, "domain"),
    ],
)
def test_a_network_is_sound(network: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        NetworkSpec.model_validate({"name": "back", **network})


def test_a_limit_of_nothing_is_none() -> None:
    with pytest.raises(ValidationError, match=r"network\.limit"):
        MachineSpec.model_validate({"name": "web", "network": {"limit": 0}})


def test_the_host_has_the_first_address_of_a_network() -> None:
    network = NetworkSpec(name="back", ipv4="10.77.0.0/24", ipv6="fd00:1::/64")
    assert (network.gateway4, network.gateway6) == ("10.77.0.1", "fd00:1::1")
    assert NetworkSpec(name="back", ipv4="10.77.0.0/24", ipv6=None).gateway6 == ""


def test_a_group_has_its_rules_by_the_words_of_files() -> None:
    group = SecurityGroup.model_validate({"name": "web", "in": ["tcp:80", "tcp:22-22@10.0.0.0/8"]})
    assert group.to_json() == {"name": "web", "in": ["tcp:80", "tcp:22@10.0.0.0/8"], "out": ["any"]}
    assert SecurityGroup.model_validate(group.to_json()) == group
