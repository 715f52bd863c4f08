"""The table of leases, against a model that is written the other way round."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nagaya.plane.imagelock import Access
from nagaya.resources.leases import (
    GRANT_S,
    Claim,
    Holder,
    Host,
    Lease,
    LeaseTable,
    Obstacle,
    inode_of,
)

HERE = Host("here", "h1", "b1")
WRITER, READER, SHARED = Access.WRITER, Access.READER, Access.SHARED


def claim(image: str, access: Access = WRITER, disk: str = "disk0") -> Claim:
    return Claim(f"/{image}", f"254:0:{image}", access, disk)


def holder(name: str) -> Holder:
    return Holder(name, name, HERE)


def took(table: LeaseTable, name: str, *claims: Claim) -> bool:
    return isinstance(table.take(holder(name), claims, 1.0), list)


def test_one_writer_or_many_readers_or_many_who_share() -> None:
    for access, together in ((WRITER, False), (READER, True), (SHARED, True)):
        table = LeaseTable()
        assert took(table, "a", claim("x", access))
        assert took(table, "b", claim("x", access)) is together
        for other in Access:
            if other is not access:
                assert not took(table, "c", claim("x", other))


def test_all_or_nothing() -> None:
    table = LeaseTable()
    assert took(table, "a", claim("x"))
    found = table.take(holder("b"), [claim("y"), claim("x")], 1.0)
    assert isinstance(found, Obstacle)
    assert found.lease is not None
    assert (found.claim.path, found.lease.holder.name) == ("/x", "a")
    assert took(table, "c", claim("y"))


def test_an_image_has_one_lease_under_all_its_names() -> None:
    table = LeaseTable()
    assert took(table, "a", claim("x"))
    assert not took(table, "b", Claim("/link-to-x", claim("x").inode, WRITER, "disk0"))
    assert took(table, "c", Claim("/x", "254:0:another file under that name", WRITER, "disk0"))


def test_one_machine_cannot_write_an_image_through_two_disks() -> None:
    found = LeaseTable().take(holder("a"), [claim("x"), claim("x", disk="disk1")], 1.0)
    assert isinstance(found, Obstacle)
    assert (found.lease, found.waiter, found.claim.disk) == (None, None, "disk1")
    assert took(LeaseTable(), "a", claim("x", READER), claim("x", READER, "disk1"))


def test_waiters_are_served_in_order_and_not_overtaken() -> None:
    table = LeaseTable()
    assert took(table, "a", claim("x"))
    for name in ("b", "c"):
        table.wait(holder(name), [claim("x")], 2.0, None)
    assert table.grant(3.0) == []
    table.drop(table.of("a"))
    assert not took(table, "d", claim("x")), "b waits"
    assert [one.holder.name for one in table.grant(4.0)] == ["b"]
    (lease,) = table.of("b")
    assert (lease.reserved, lease.expires_at) == (True, 4.0 + GRANT_S)
    assert not took(table, "c", claim("x")), "it is kept for b"
    assert took(table, "b", claim("x")), "which starts although c waits"
    assert not table.of("b")[0].reserved


def test_who_waits_for_two_images_holds_none_meanwhile_and_is_not_starved() -> None:
    table = LeaseTable()
    assert took(table, "a", claim("x"))
    table.wait(holder("b"), [claim("x"), claim("y")], 2.0, None)
    assert table.of("b") == []
    assert not took(table, "c", claim("y")), "b is before it"
    assert took(table, "c", claim("z"))


def test_readers_do_not_overtake_a_writer_that_waits() -> None:
    table = LeaseTable()
    assert took(table, "a", claim("x", READER))
    table.wait(holder("w"), [claim("x")], 2.0, None)
    assert not took(table, "b", claim("x", READER))
    table.drop(table.of("a"))
    assert [one.holder.name for one in table.grant(3.0)] == ["w"]


def test_first_is_before_all() -> None:
    table = LeaseTable()
    assert took(table, "a", claim("x"))
    table.wait(holder("b"), [claim("x")], 2.0, None)
    table.wait(holder("c"), [claim("x")], 2.0, None, first=True)
    assert [one.holder.name for one in table.queue()] == ["c", "b"]
    table.wait(holder("b"), [claim("x")], 3.0, None)
    assert [one.holder.name for one in table.queue()] == ["c", "b"], "asking again changes no place"


def test_what_is_overdue_is_told_but_never_a_lease_of_another_host() -> None:
    table = LeaseTable()
    far = Holder("m", "m", Host("far", "h2", "b2"))
    table.leases["r"] = Lease("r", claim("x"), far, 1.0, 5.0)
    table.wait(holder("b"), [claim("x")], 2.0, 7.0)
    table.wait(holder("c"), [claim("y")], 2.0, None)
    table.grant(3.0)
    assert table.next_event(HERE) == 7.0
    leases, waiters = table.overdue(3.0 + GRANT_S, HERE)
    assert [one.holder.name for one in leases] == ["c"]
    assert [one.holder.name for one in waiters] == ["b"]
    assert not took(table, "d", claim("x"))


def test_a_closed_disk_keeps_nobody_out_and_is_remembered() -> None:
    table = LeaseTable()
    assert took(table, "a", claim("x"))
    table.change(table.of("a")[0], closed=True)
    assert took(table, "b", claim("x"))
    assert took(table, "a", claim("y", disk="disk1"))
    assert [(one.claim.path, one.closed) for one in table.of("a")] == [("/x", True), ("/y", False)]


def test_what_a_holder_goes_on_using_keeps_its_lease() -> None:
    table = LeaseTable()
    base, old, new = claim("base", READER), claim("old"), claim("new")
    assert took(table, "a", old, base)
    first = {lease.claim: lease for lease in table.of("a")}
    taken = table.take(holder("a"), [new, base], 9.0)
    assert isinstance(taken, list)
    assert [lease.since for lease in taken] == [9.0, 1.0]
    assert taken[1] == first[base]
    assert took(table, "b", old)


def test_the_inode_is_the_images_own(tmp_path: Path) -> None:
    first, link, alias = tmp_path / "first", tmp_path / "link", tmp_path / "alias"
    first.write_bytes(b"")
    link.hardlink_to(first)
    alias.symlink_to(first)
    assert inode_of(str(first)) == inode_of(str(link)) == inode_of(str(alias)) != ""
    assert inode_of(str(tmp_path / "nothing")) == ""
    status = first.stat()
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    assert inode_of(str(first)) == f"{device}:{status.st_ino}"


NAMES = st.sampled_from("abcde")
CLAIMS = st.dictionaries(st.sampled_from("xyz"), st.sampled_from(list(Access)), min_size=1, max_size=3)
Wish = dict[str, Access]


class AgainstModel(RuleBasedStateMachine):
    """The model keeps who uses what as plain dictionaries, and the queue as a list of names."""

    def __init__(self) -> None:
        super().__init__()
        self.table = LeaseTable()
        self.now = 0.0
        self.has: dict[str, Wish] = {}
        self.until: dict[str, float] = {}  # of those who were granted and have not started
        self.queue: list[tuple[str, Wish]] = []

    @rule(name=NAMES, wish=CLAIMS)
    def start(self, name: str, wish: Wish) -> None:
        place = next((i for i, (who, _) in enumerate(self.queue) if who == name), len(self.queue))
        kept = self.has.get(name, {})
        open_wish = {image: access for image, access in wish.items() if kept.get(image) is not access}
        allowed = self.fits(name, wish) and not any(
            clash(open_wish, theirs) for who, theirs in self.queue[:place] if who != name
        )
        assert took(self.table, name, *claims_for(wish)) is allowed
        if allowed:
            self.has[name] = wish
            self.until.pop(name, None)
            self.queue = [entry for entry in self.queue if entry[0] != name]
        self.serve()

    @rule(name=NAMES)
    def end(self, name: str) -> None:
        self.table.drop(self.table.of(name))
        self.has.pop(name, None)
        self.until.pop(name, None)
        self.serve()

    @rule(name=NAMES, wish=CLAIMS, first=st.booleans())
    def wait(self, name: str, wish: Wish, first: bool) -> None:
        if name in self.has:
            return
        self.table.wait(holder(name), claims_for(wish), self.now, None, first=first)
        place = next((i for i, (who, _) in enumerate(self.queue) if who == name), None)
        if place is not None and not first:
            self.queue[place] = (name, wish)
        else:
            self.queue = [entry for entry in self.queue if entry[0] != name]
            self.queue.insert(0 if first else len(self.queue), (name, wish))
        self.serve()

    @rule(seconds=st.sampled_from([1.0, GRANT_S]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        leases, waiters = self.table.overdue(self.now, HERE)
        assert waiters == []
        late = {name for name, until in self.until.items() if until <= self.now}
        assert {lease.holder.name for lease in leases} == late
        self.table.drop(leases)
        for name in late:
            del self.has[name], self.until[name]
        self.serve()

    @invariant()
    def agrees(self) -> None:
        found: dict[str, Wish] = {}
        for lease in self.table.leases.values():
            found.setdefault(lease.holder.name, {})[lease.claim.path[1:]] = lease.claim.access
        assert found == self.has
        assert [one.holder.name for one in self.table.queue()] == [name for name, _ in self.queue]

    @invariant()
    def nobody_is_in_anothers_way(self) -> None:
        for name, wish in self.has.items():
            assert self.fits(name, wish)

    @invariant()
    def whoever_could_have_its_leases_does_not_wait(self) -> None:
        for place, (name, wish) in enumerate(self.queue):
            before = any(clash(wish, theirs) for _, theirs in self.queue[:place])
            assert before or not self.fits(name, wish)

    def serve(self) -> None:
        served = []
        left: list[tuple[str, Wish]] = []
        for name, wish in self.queue:
            if self.fits(name, wish) and not any(clash(wish, theirs) for _, theirs in left):
                self.has[name], self.until[name] = wish, self.now + GRANT_S
                served.append(name)
            else:
                left.append((name, wish))
        self.queue = left
        assert [one.holder.name for one in self.table.grant(self.now)] == served

    def fits(self, name: str, wish: Wish) -> bool:
        return not any(clash(wish, theirs) for who, theirs in self.has.items() if who != name)


def clash(one: Wish, other: Wish) -> bool:
    return any({one[image], other[image]} not in ({READER}, {SHARED}) for image in one.keys() & other.keys())


def claims_for(wish: Wish) -> list[Claim]:
    return [claim(image, access) for image, access in wish.items()]


TestAgainstModel = AgainstModel.TestCase
TestAgainstModel.settings = settings(max_examples=150, stateful_step_count=30)
