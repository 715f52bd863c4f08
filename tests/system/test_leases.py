"""Leases with the real plane: locks on real inodes, real guests, processes that are killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nagaya.errors import ConflictError, NagayaError
from nagaya.images.store import Image
from nagaya.kernel import Kernel
from nagaya.paths import Paths
from nagaya.plane.imagelock import Access, is_free
from nagaya.sdk import Client, Machine, ensure_daemon
from nagaya.testing.scratch import make_directory

pytestmark = [pytest.mark.root, pytest.mark.uml, pytest.mark.images]

MIB = 2**20


def end(pid: int, number: signal.Signals) -> None:
    """Signal a process and wait until it is gone."""
    os.kill(pid, number)
    wait_until(lambda: _is_gone(pid))


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(true: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@contextlib.contextmanager
def nagaya(shared: Paths) -> Iterator[Client]:
    """A Nagaya of its own that sees the shared kernels and images; all its processes end afterwards."""
    top = make_directory()
    top.chmod(0o755)
    own = Paths(top / "r", top / "s", shared.cache)
    for directory in (own.run, own.state):
        directory.mkdir(mode=0o755)
    own.images.symlink_to(shared.images)
    own.kernels.symlink_to(shared.kernels)
    ensure_daemon(own)
    with Client(own) as client:
        yield client
        ensure_daemon(own)
        host = client.host()
    for pid in (host.daemon_pid, host.plane_pid, host.zygote_pid):
        if pid is not None:
            end(pid, signal.SIGTERM)
    shutil.rmtree(top)


def empty(client: Client) -> None:
    """No machine of a test is left for the next."""
    ensure_daemon(client.paths)
    for machine in client.machines.list():
        machine.delete(force=True)


@pytest.fixture(scope="module")
def first(shared_paths: Paths, uml_kernel: Kernel, busybox_image: Image) -> Iterator[Client]:
    with nagaya(shared_paths) as client:
        yield client


@pytest.fixture(scope="module")
def second(shared_paths: Paths, first: Client) -> Iterator[Client]:
    with nagaya(shared_paths) as client:
        yield client


@pytest.fixture
def client(first: Client) -> Iterator[Client]:
    """The first Nagaya."""
    yield first
    empty(first)


@pytest.fixture
def neighbour(second: Client) -> Iterator[Client]:
    """A second Nagaya on this host, with directories of its own."""
    yield second
    empty(second)


@pytest.fixture
def image(directory: Path) -> Path:
    """A raw disk image that machines fight over."""
    path = directory / "data.img"
    with path.open("wb") as file:
        file.truncate(16 * MIB)
    return path


def make(client: Client, name: str, image: Path, **disk: object) -> Machine:
    disks = [{"image": "busybox"}, {"path": str(image), **disk}]
    return client.machines.create({"name": name, "memory": "64MiB", "disks": disks})


def test_the_lock_outlives_the_daemon_and_the_next_one_knows_whose_it_is(client: Client, image: Path) -> None:
    make(client, "a", image).start()
    b = make(client, "b", image)
    (before,) = client.leases.list(str(image))
    assert (before.state, before.pid) == ("held", client.host().plane_pid)
    end(client.host().daemon_pid, signal.SIGKILL)
    assert not is_free(str(image), Access.READER), "the plane holds it"
    refused = subprocess.run(
        ["qemu-img", "resize", "-f", "raw", str(image), "32M"], capture_output=True, text=True, check=False
    )
    assert "lock" in refused.stderr
    ensure_daemon(client.paths)
    assert client.leases.list(str(image)) == [before]
    with pytest.raises(ConflictError, match=r"b cannot write .* a on host"):
        b.start()
    client.machines.get("a").kill()
    assert is_free(str(image), Access.WRITER)
    b.start()


def test_a_daemon_that_finds_its_machine_dead_frees_the_image(client: Client, image: Path) -> None:
    a = make(client, "a", image).start()
    b = make(client, "b", image)
    end(client.host().daemon_pid, signal.SIGKILL)
    assert a.info.pid is not None
    os.kill(a.info.pid, signal.SIGKILL)
    ensure_daemon(client.paths)
    a.wait("stopped", 20)
    b.start()


def test_another_nagaya_on_this_host_is_refused_by_the_lock(
    client: Client, neighbour: Client, image: Path
) -> None:
    make(client, "a", image).start()
    other = make(neighbour, "b", image)
    with pytest.raises(ConflictError) as caught:
        other.start()
    plane = client.host().plane_pid
    assert f"the plane of another Nagaya (pid {plane}, {client.paths.run})" in caught.value.message
    assert "a has it since" in caught.value.message
    assert neighbour.leases.list() == []
    client.machines.get("a").kill()
    other.start()


def test_two_nagayas_that_race_for_one_file_have_one_winner_each_time(
    client: Client, neighbour: Client, image: Path
) -> None:
    machines = [make(one, f"m{number}", image) for one in (client, neighbour) for number in range(2)]

    def start(machine: Machine) -> bool:
        try:
            machine.start()
        except ConflictError:
            return False
        return True

    for _ in range(3):
        with ThreadPoolExecutor(len(machines)) as threads:
            assert sum(threads.map(start, machines)) == 1
        for machine in machines:
            if machine.refresh().state == "running":
                machine.kill()


def test_what_is_taken_away_from_a_running_guest_was_written_before(client: Client, image: Path) -> None:
    a = make(client, "a", image).start().wait("agent", 60)
    assert a.exec(["sh", "-c", "echo from-a | dd of=/dev/vdb conv=notrunc"]).exit_code == 0
    make(client, "b", image)
    client.leases.transfer(str(image), "b", way="detach")
    assert image.read_bytes()[:6] == b"from-a"
    b = client.machines.get("b").start().wait("agent", 60)
    assert b.exec(["head", "-c", "6", "/dev/vdb"]).stdout == b"from-a"
    assert a.refresh().state == "running"
    assert a.exec(["true"]).exit_code == 0, "its root file system is its own still"
    assert a.exec(["dd", "if=/dev/vdb", "of=/dev/null", "count=1"]).exit_code != 0


def test_a_forced_break_ends_a_paused_holder(client: Client, image: Path) -> None:
    a = make(client, "a", image).start()
    a.pause()
    b = make(client, "b", image)
    (lease,) = client.leases.list(str(image))
    assert client.leases.break_(lease.id, force=True).fenced == "a was killed and its disks closed"
    assert is_free(str(image), Access.WRITER)
    b.start()


def test_a_shared_disk_is_written_by_both(client: Client, image: Path) -> None:
    for name in ("a", "b"):
        make(client, name, image, shared=True).start()
    one, two = (client.machines.get(name).wait("agent", 60) for name in ("a", "b"))
    assert one.exec(["sh", "-c", "echo hello | dd of=/dev/vdb conv=notrunc oflag=direct"]).exit_code == 0
    assert two.exec(["sh", "-c", "dd if=/dev/vdb iflag=direct count=1 | head -c 5"]).stdout == b"hello"
    with pytest.raises(ConflictError, match="shares it"):
        make(client, "c", image).start()


def test_a_waiter_on_the_command_line_outlives_the_daemon(client: Client, image: Path) -> None:
    make(client, "a", image).start()
    make(client, "b", image)
    command = [sys.executable, "-m", "nagaya.cli", "lease", "wait", "b", "--start"]
    settings = os.environ | client.paths.environment()
    with subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, text=True) as waiter:
        wait_until(lambda: client.leases.list(str(image))[0].waiting == ["b"])
        end(client.host().daemon_pid, signal.SIGKILL)
        ensure_daemon(client.paths)
        assert client.leases.list(str(image))[0].waiting == ["b"]
        client.machines.get("a").kill()
        assert waiter.communicate(timeout=60)[0] == "b runs\n"


def test_a_daemon_that_dies_before_it_answers_has_queued_a_waiter_once(
    client: Client, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(client, "a", image).start()
    make(client, "b", image)
    end(client.host().daemon_pid, signal.SIGKILL)
    monkeypatch.setenv("NAGAYA_FAILPOINT", "wait:queued")
    doomed = ensure_daemon(client.paths)
    monkeypatch.delenv("NAGAYA_FAILPOINT")
    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(client.leases.wait, "b", 60)
        wait_until(lambda: _is_gone(doomed))
        ensure_daemon(client.paths)
        wait_until(lambda: client.leases.list(str(image))[0].waiting == ["b"])
        client.machines.get("a").kill()
        assert waiter.result(60).state == "granted"
    assert client.leases.list(str(image))[0].waiting == []


def test_a_daemon_killed_again_and_again_never_lets_two_write(client: Client, image: Path) -> None:
    """Starts and stops of two machines while the daemon is killed at random: one lock holder at most."""
    for name in ("a", "b"):
        make(client, name, image)
    stop = threading.Event()
    seen: list[set[str]] = []

    def fight(name: str) -> None:
        with Client(client.paths, start=ensure_daemon) as mine:
            while not stop.is_set():
                for act in ("start", "kill"):
                    try:
                        getattr(mine.machines.get(name), act)()
                    except NagayaError:
                        time.sleep(0.02)

    fighters = [threading.Thread(target=fight, args=(name,)) for name in ("a", "b")]
    for fighter in fighters:
        fighter.start()
    for number in range(3):
        time.sleep(0.15 + 0.2 * number)
        end(client.host().daemon_pid, signal.SIGKILL)
        ensure_daemon(client.paths)
        seen.append({lease.machine for lease in client.leases.list(str(image))})
    stop.set()
    for fighter in fighters:
        fighter.join()
    assert all(len(machines) <= 1 for machines in seen)
    for name in ("a", "b"):
        client.machines.get(name).refresh()
        if client.machines.get(name).state == "running":
            client.machines.get(name).kill()
    assert client.leases.list(str(image)) == []
    assert is_free(str(image), Access.WRITER)


@pytest.fixture
def block_device(image: Path) -> Iterator[str]:
    """The image as a block device."""
    found = subprocess.run(
        ["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=True
    ).stdout.strip()
    yield found
    subprocess.run(["losetup", "--detach", found], check=True)


def test_a_block_device_is_one_image_under_all_its_nodes(
    client: Client, image: Path, block_device: str, directory: Path
) -> None:
    alias = directory / "alias"
    os.mknod(alias, 0o600 | 0o060000, Path(block_device).stat().st_rdev)
    a = make(client, "a", Path(block_device)).start().wait("agent", 60)
    assert a.exec(["sh", "-c", "echo on-a-device | dd of=/dev/vdb conv=notrunc; sync"]).exit_code == 0
    with pytest.raises(ConflictError, match="a on host"):
        make(client, "b", alias).start()
    a.stop()
    assert Path(block_device).read_bytes()[:11] == b"on-a-device"
    client.machines.get("b").start()


def test_a_block_device_that_the_host_has_mounted_is_refused(
    client: Client, block_device: str, directory: Path
) -> None:
    subprocess.run(["mke2fs", "-q", "-t", "ext4", block_device], check=True)
    point = directory / "mnt"
    point.mkdir()
    subprocess.run(["mount", block_device, point], check=True)
    try:
        with pytest.raises(ConflictError, match=f"{block_device} .* is in use by this host"):
            make(client, "a", Path(block_device)).start()
    finally:
        subprocess.run(["umount", point], check=True)
    client.machines.get("a").start()
