"""A disk's record: what a command changes, what it leaves alone, and what a kill between two steps leaves."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.errors import ConflictError, NotFoundError, ResourceError, UnavailableError
from nagaya.images.chain import LAYERS_MOST, DiskFiles, Layer, Record, Snapshot

MIB = 2**20


def create(path: str, size: int, backing: str, _backing_format: str) -> None:
    """The head of a qcow2 file, and what it lies on."""
    with Path(path).open("xb") as file:
        file.write(b"QFI\xfb".ljust(24, b"\0") + size.to_bytes(8) + backing.encode())


def disk(directory: Path, base: str = "") -> DiskFiles:
    return DiskFiles(directory, "disk0", create, lambda digest: directory / f"{digest}.raw", base)


def named(record: Record, name: str) -> Record:
    """`record` with a snapshot of its top."""
    taken = Snapshot(name=name, layer=record.top, created_at=1.0, consistency="stopped")
    return record.model_copy(update={"snapshots": (*record.snapshots, taken)})


def test_a_disk_without_a_record_is_one_layer_on_its_base(tmp_path: Path) -> None:
    (tmp_path / "ab.raw").write_bytes(b"")
    files = disk(tmp_path, "ab")
    assert not files.exists()
    with pytest.raises(NotFoundError):
        files.record()
    files.make(MIB, "ab")
    record = files.record()
    assert record.layers == {"disk0.qcow2": Layer(size=MIB, base="ab")}
    assert [str(node.path.name) for node in files.nodes(record)] == ["disk0.qcow2", "ab.raw"]
    assert not files.record_file.exists()


def test_a_push_is_nothing_until_it_is_recorded(tmp_path: Path) -> None:
    files = disk(tmp_path)
    files.make(MIB)
    pushed = files.push(files.record(), 2 * MIB)
    assert files.record().top == "disk0.qcow2"
    files.write(pushed)
    assert files.record().chain() == ["disk0-1.qcow2", "disk0.qcow2"]
    assert files.record().layers["disk0-1.qcow2"].size == 2 * MIB


def test_files_that_no_record_needs_are_removed(tmp_path: Path) -> None:
    files = disk(tmp_path)
    files.make(MIB)
    bystanders = [tmp_path / name for name in ("disk0.raw", "disk00.qcow2", "disk1.qcow2", "xdisk0.qcow2")]
    leftovers = [tmp_path / name for name in ("disk0-7.qcow2", "disk0-8.qcow2.partial")]
    for path in (*bystanders, *leftovers):
        path.touch()
    files.write(files.record())
    assert all(path.exists() for path in bystanders)
    assert not any(path.exists() for path in leftovers)
    files.remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in bystanders)


def test_too_many_layers_and_a_damaged_record_are_said(tmp_path: Path) -> None:
    files = disk(tmp_path)
    files.make(MIB)
    for _ in range(LAYERS_MOST - 1):
        files.write(files.push(files.record()))
    with pytest.raises(ConflictError, match=f"{LAYERS_MOST} layers"):
        files.push(files.record())
    files.record_file.write_text('{"top": 3}')
    with pytest.raises(UnavailableError, match="is damaged"):
        files.record()


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    def full(path: str, *_: object) -> None:
        Path(path).touch()
        raise OSError(28, "No space left on device")

    files = DiskFiles(tmp_path, "disk0", full, Path)
    with pytest.raises(ResourceError, match="No space left on device"):
        files.make(MIB)
    assert list(tmp_path.iterdir()) == []


def test_only_a_nameless_layer_with_one_child_is_merged(tmp_path: Path) -> None:
    files = disk(tmp_path)
    files.make(MIB)
    first = named(files.record(), "a")
    second = named(files.push(first), "b")
    third = files.push(second)
    assert third.mergeable() is None
    assert not third.top_is_on_nameless()
    nameless = third.model_copy(update={"snapshots": third.snapshots[1:]})
    assert nameless.mergeable() == ("disk0-1.qcow2", "disk0.qcow2")
    only_top = third.model_copy(update={"snapshots": third.snapshots[:1]})
    assert only_top.mergeable() is None
    assert only_top.top_is_on_nameless()


@given(
    st.lists(st.tuples(st.sampled_from(["take", "revert", "forget", "grow"]), st.integers(0, 9)), max_size=25)
)
def test_whatever_is_done_every_snapshot_and_the_disk_stand_on_whole_chains(
    steps: list[tuple[str, int]],
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        files = disk(Path(directory))
        files.make(MIB)
        for number, (step, which) in enumerate(steps):
            record = files.record()
            names = [one.name for one in record.snapshots]
            if step == "take" and len(record.chain()) < LAYERS_MOST:
                files.write(files.push(named(record, f"s{number}")))
            elif step == "grow" and len(record.chain()) < LAYERS_MOST:
                files.grow(record.layers[record.top].size + MIB)
            elif names and step == "revert":
                layer = record.snapshot(names[which % len(names)]).layer
                if len(record.chain(layer)) < LAYERS_MOST:
                    files.write(files.push(record, parent=layer))
            elif names and step == "forget":
                kept = tuple(one for one in record.snapshots if one.name != names[which % len(names)])
                files.write(record.model_copy(update={"snapshots": kept}))
            after = files.record()
            on_disk = {path.name for path in Path(directory).glob("*.qcow2")}
            assert on_disk == set(after.layers) == set(after.needed().layers)
            for one in after.snapshots:
                assert after.chain(one.layer)
                assert one.layer != after.top, "the top is written, a snapshot is not"
            sizes = [after.layers[file].size for file in after.chain()]
            assert sizes == sorted(sizes, reverse=True)
