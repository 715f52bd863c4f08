"""What doctor says of a host's networks, in a namespace that is made worse step by step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nagaya.networks import records
from nagaya.networks.names import Names
from nagaya.networks.plan import Record
from nagaya.networks.survey import Fact, survey
from nagaya.paths import Paths
from nagaya.spec import NetworkSpec
from nagaya.testing.netns import Namespace

pytestmark = pytest.mark.root


@pytest.fixture
def host() -> Iterator[Namespace]:
    with Namespace() as place, Namespace() as world:
        place.wire("one", world, "world1")
        place.wire("two", world, "world2")
        place.run("ip address add 192.0.2.2/24 dev one && ip route add default via 192.0.2.1")
        place.run("ip address add 198.51.100.2/24 dev two")
        yield place


def find(host: Namespace, paths: Paths, name: str) -> list[Fact]:
    with host.entered():
        return [fact for fact in survey(paths) if fact.name.startswith(name)]


def unwell(host: Namespace, paths: Paths) -> set[str]:
    with host.entered():
        return {fact.name for fact in survey(paths) if not fact.well}


def test_a_chain_that_drops_is_found_and_what_is_said_mends_it(host: Namespace, paths: Paths) -> None:
    assert [fact.well for fact in find(host, paths, "forwarding")] == [True]
    host.run("nft add table ip filter; nft add chain ip filter DOCKER-USER")
    host.run("nft 'add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'")
    own = f"nft 'add table inet {Names(paths.run).table}; add chain inet {Names(paths.run).table} forward"
    host.run(own + " { type filter hook forward priority 0; policy drop; }'")
    (fact,) = find(host, paths, "forwarding")
    assert (fact.name, fact.well) == ("forwarding (ip filter FORWARD)", False)
    assert "DOCKER-USER" in fact.fix
    host.run(fact.fix.partition(" (")[0])
    shown = host.run("nft list chain ip filter FORWARD")
    assert 'iifname "ngy-*" accept' in shown and 'oifname "ngy-*" accept' in shown, shown


def test_strict_return_paths_matter_with_two_ways_out(host: Namespace, paths: Paths) -> None:
    host.run("sysctl -qw net.ipv4.conf.all.rp_filter=1")
    assert "rp_filter" not in unwell(host, paths)
    host.run("ip route add default via 198.51.100.1 metric 9")
    (fact,) = find(host, paths, "rp_filter")
    assert (fact.well, fact.found) == (False, "strict, with default routes by one and two")
    host.run(fact.fix)
    assert "rp_filter" not in unwell(host, paths)


def test_a_range_that_a_route_has_taken_since_is_found(host: Namespace, paths: Paths) -> None:
    spec = NetworkSpec(name="back", ipv4="10.77.0.0/24", ipv6="fd12::/64")
    directory = Names(paths.run).directory / "back"
    directory.mkdir(parents=True)
    records.write(directory, Record(spec))
    assert find(host, paths, "network ") == []
    host.run("ip route add 10.64.0.0/10 dev one; ip -6 route add fd12::/32 dev one")
    four, six = find(host, paths, "network back")
    assert four.found == "10.77.0.0/24 overlaps 10.64.0.0/10, which the host reaches by one"
    assert (six.well, six.fix[-9:]) == (False, "ipv6=auto")
