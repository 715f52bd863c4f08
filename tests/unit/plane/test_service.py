"""Devices are added whole or not at all, deleted without a trace. The files are real, the core is not."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nagaya.errors import (
    ConflictError,
    NagayaError,
    NotFoundError,
    ResourceError,
    UnavailableError,
    UsageError,
)
from nagaya.plane import storage
from nagaya.plane.client import PlaneClient, PlaneEvent
from nagaya.plane.conditions import DiskCondition
from nagaya.plane.config import BlkDevice, ConsoleDevice, Layer, Model, RngDevice
from nagaya.plane.holder import serve
from nagaya.plane.imagelock import Access, User, is_free, lock_image
from nagaya.plane.sockets import Listener

if TYPE_CHECKING:
    from tests.unit.plane.conftest import FakeCore

pytestmark = pytest.mark.anyio
MakeDisk = Callable[..., BlkDevice]


@contextlib.asynccontextmanager
async def plane(core: FakeCore, directory: Path) -> AsyncIterator[PlaneClient]:
    """A whole holder but for its process and its core."""
    path = str(directory / "plane.sock")
    with Listener(path) as listener:
        task = asyncio.create_task(serve(listener.socket, core, lambda: None))
        async with await PlaneClient.connect(path) as client:
            yield client
            with contextlib.suppress(UnavailableError):
                await client.quit()
        await task
    assert core.closed


def sockets_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.is_socket())


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_disk_is_opened_locked_and_listened_for(
    core: FakeCore, directory: Path, make_disk: MakeDisk
) -> None:
    async with plane(core, directory) as client:
        disk = make_disk(serial="s1", direct=False)
        await client.device_add(disk)
        config, fds = core.devices[disk.id]
        device = os.stat(directory).st_dev  # noqa: PTH116
        assert config == {
            "driver": "blk", "id": "m1/disk0", "worker": f"disk-{os.major(device)}:{os.minor(device)}",
            "queues": 1, "queue_size": 256, "read_only": False, "serial": "s1", "direct": False,
            "layers": [{"format": "raw"}, {"format": "raw"}],
        }  # fmt: skip
        flags = [flags_of(fd) & (os.O_ACCMODE | os.O_DIRECT) for fd in fds[1:]]
        assert flags == [os.O_RDWR, os.O_RDONLY]
        assert stat.S_ISSOCK(os.fstat(fds[0]).st_mode)
        with socket.socket(socket.AF_UNIX) as frontend:
            frontend.connect(disk.socket)
        (status,) = await client.query_devices()
        assert (status.device, status.reads, status.connected) == (disk, 7, True)


def flags_of(fd: int) -> int:
    text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("flags:")), 8)


async def test_a_disk_without_a_file_has_no_image_to_open(
    core: FakeCore, directory: Path, make_disk: MakeDisk
) -> None:
    layer = Layer("", "simulated", Model(2**20, "ssd", parallel=2, read_us=100))
    async with plane(core, directory) as client:
        disk = dataclasses.replace(make_disk(), layers=(layer,))
        await client.device_add(disk)
        config, fds = core.devices[disk.id]
        assert (config["worker"], len(fds)) == ("disk-model-ssd", 1)
        assert config["layers"][0]["model"]["parallel"] == 2
        (status,) = await client.query_devices()
        assert status.device == disk


async def test_direct_images_bypass_the_cache_where_the_file_system_can(
    core: FakeCore, directory: Path, make_disk: MakeDisk
) -> None:
    async with plane(core, directory) as client:
        await client.device_add(make_disk(direct=True))
        config, fds = core.devices["m1/disk0"]
        assert [bool(flags_of(fd) & os.O_DIRECT) for fd in fds[1:]] == [config["direct"]] * 2


async def test_a_base_is_shared_and_an_overlay_is_not(
    core: FakeCore, directory: Path, make_disk: MakeDisk
) -> None:
    async with plane(core, directory) as client:
        await client.device_add(make_disk("m1/disk0", ["top1", "base"]))
        await client.device_add(make_disk("m2/disk0", ["top2", "base"]))
        with pytest.raises(ConflictError, match="in use by device m1/disk0") as caught:
            await client.device_add(make_disk("m3/disk0", ["top1", "base"]))
        assert caught.value.facts["holders"] == ["device m1/disk0"]
        with pytest.raises(ConflictError, match="for writing: in use by device m1/disk0, device m2/disk0"):
            await client.device_add(make_disk("m3/disk0", ["base"]))
        await client.device_del("m1/disk0")
        await client.device_add(make_disk("m3/disk0", ["top1", "base"]))


async def test_a_long_look_for_the_holder_of_an_image_stops_nobody(
    core: FakeCore, directory: Path, make_disk: MakeDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, found = threading.Event(), threading.Event()

    def look(_path: str) -> list[User]:
        begun.set()
        assert found.wait(10), "nobody was served meanwhile"
        return [User(7, "holder")]

    monkeypatch.setattr(storage, "users_of", look)
    disk = make_disk("m1/disk0", ["top"])
    with (directory / "top").open("rb+") as file:
        assert lock_image(file.fileno(), Access.WRITER)
        async with plane(core, directory) as client:
            adding = asyncio.create_task(client.device_add(disk))
            await asyncio.to_thread(begun.wait, 10)
            async with await PlaneClient.connect(str(directory / "plane.sock")) as other:
                assert await other.query_devices() == []
            found.set()
            with pytest.raises(ConflictError, match=r"in use by holder \(pid 7\)"):
                await adding


async def test_the_same_image_twice_in_one_disk_is_refused(
    core: FakeCore, directory: Path, make_disk: MakeDisk
) -> None:
    async with plane(core, directory) as client:
        with pytest.raises(ConflictError):
            await client.device_add(make_disk("m1/disk0", ["a", "a"]))


async def test_an_id_is_taken_once(core: FakeCore, directory: Path, rng: RngDevice) -> None:
    async with plane(core, directory) as client:
        await client.device_add(rng)
        with pytest.raises(ConflictError, match="m1/rng exists"):
            await client.device_add(rng)
        assert sockets_in(directory) == ["plane.sock", "rng.sock"]


async def test_deleting_leaves_no_socket_no_fd_and_no_lock(
    core: FakeCore, directory: Path, make_disk: MakeDisk, console: ConsoleDevice, rng: RngDevice
) -> None:
    async with plane(core, directory) as client:
        await client.device_add(rng)  # the threads of the pools come with the first command
        await client.device_del("m1/rng")
        before = open_files()
        for device in (make_disk(), console, rng):
            await client.device_add(device)
        assert len(sockets_in(directory)) == 6
        assert [status.id for status in await client.query_consoles()] == ["m1/console"]
        for device_id in ("m1/disk0", "m1/console", "m1/rng"):
            await client.device_del(device_id)
        assert sockets_in(directory) == ["plane.sock"]
        assert open_files() == before
        with pytest.raises(NotFoundError, match="no device m1/rng"):
            await client.device_del("m1/rng")


@pytest.mark.parametrize(
    "failure", [OSError(24, "Too many open files"), ValueError("bad config"), KeyError("?")]
)
async def test_a_core_that_refuses_undoes_everything(
    core: FakeCore, directory: Path, make_disk: MakeDisk, console: ConsoleDevice, failure: Exception
) -> None:
    async with plane(core, directory) as client:
        await client.query_devices()
        core.fails = failure
        before = open_files()
        for device in (make_disk(), console):
            with pytest.raises(NagayaError) as caught:
                await client.device_add(device)
            expected = {OSError: ResourceError, ValueError: UsageError, KeyError: NagayaError}[type(failure)]
            assert type(caught.value) is expected
        assert sockets_in(directory) == ["plane.sock"]
        assert open_files() == before
        core.fails = None
        await client.device_add(make_disk())


async def test_what_is_wrong_with_an_image_is_said(
    core: FakeCore, directory: Path, make_disk: MakeDisk
) -> None:
    async with plane(core, directory) as client:
        disk = make_disk()
        os.mkfifo(directory / "fifo")
        for path, kind, words in (
            ("/nonexistent/i", NotFoundError, "/nonexistent/i of m1/disk0 does not exist"),
            (str(directory / "fifo"), UsageError, "neither a file nor a block device"),
            (str(directory), ResourceError, "Is a directory"),
        ):
            with pytest.raises(kind, match=words):
                await client.device_add(dataclasses.replace(disk, layers=(Layer(path, "raw"),)))
        with pytest.raises(ResourceError, match="No such file or directory"):
            await client.device_add(dataclasses.replace(disk, socket="/nonexistent/s"))


async def test_a_device_is_added_even_if_the_client_hangs_up_meanwhile(
    core: FakeCore, directory: Path, make_disk: MakeDisk
) -> None:
    async with plane(core, directory) as client:
        started, go_on = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        plain_add = core.device_add

        def slow_add(config: str, fds: Sequence[int]) -> None:
            loop.call_soon_threadsafe(started.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
            plain_add(config, fds)

        core.device_add = slow_add  # type: ignore[method-assign]
        async with await PlaneClient.connect(directory / "plane.sock") as other:
            task = asyncio.create_task(other.device_add(make_disk()))
            await started.wait()
            with pytest.raises(ConflictError, match="another command works on"):
                await client.device_add(make_disk())
        with pytest.raises(UnavailableError):
            await task
        go_on.set()
        while not await client.query_devices():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_events_of_the_core_reach_every_listener_and_end_with_the_plane(
    core: FakeCore, directory: Path, rng: RngDevice
) -> None:
    events: list[PlaneEvent] = []
    async with plane(core, directory) as client:

        async def listen() -> None:
            async for event in client.events():
                events.append(event)

        task = asyncio.create_task(listen())
        await asyncio.sleep(0)
        await client.device_add(rng)
        core.happen("WORKER_EXITED", name="chars", pid=7)
        await client.device_del("m1/rng")
        await client.quit()
        await asyncio.wait_for(task, 60)
        await client.wait_closed()
        assert not client.connected
        with pytest.raises(UnavailableError, match="connection is gone"):
            await client.query_workers()
    assert [event.name for event in events] == ["DEVICE_ADDED", "WORKER_EXITED", "DEVICE_DELETED", "SHUTDOWN"]
    assert events[1].facts == {"name": "chars", "pid": 7}


async def test_queries_answer(core: FakeCore, directory: Path, console: ConsoleDevice) -> None:
    async with plane(core, directory) as client:
        await client.device_add(console)
        (worker,) = await client.query_workers()
        assert (worker.name, worker.pid, worker.devices) == ("chars", 12, ("m1/console",))
        assert await client.pid() == os.getpid()
        (status,) = await client.query_consoles()
        assert status.pty.startswith("/dev/pts/")


async def test_nobody_there_is_said(directory: Path) -> None:
    with pytest.raises(UnavailableError, match="no plane on"):
        await PlaneClient.connect(directory / "plane.sock")


async def test_faults_are_passed_on_and_told(core: FakeCore, directory: Path, make_disk: MakeDisk) -> None:
    async with plane(core, directory) as client:
        disk = make_disk()
        await client.device_add(disk)
        conditions = client.conditions()
        assert await anext(conditions) == {}
        await client.set_faults(disk.id, {"stuck": True})
        assert core.devices[disk.id][0]["faults"] == {"stuck": True}
        assert await anext(conditions) == {disk.id: DiskCondition(faults={"stuck": True})}
        await client.set_faults(disk.id, None)
        assert core.devices[disk.id][0]["faults"] is None
        assert await anext(conditions) == {}
        core.happen("PORT_FAULTS", id="m1/net0", faults={"loss": 0.5})
        assert await anext(conditions) == {"m1/net0": DiskCondition(faults={"loss": 0.5})}
        with pytest.raises(UsageError, match=r"faults of m1/disk0: error_rate is too much"):
            await client.set_faults(disk.id, {"error_rate": 2})
        with pytest.raises(NotFoundError, match="there is no device m2/disk0"):
            await client.set_faults("m2/disk0", None)


async def test_what_is_the_matter_with_a_disk_is_followed(
    core: FakeCore, directory: Path, make_disk: MakeDisk
) -> None:
    async with plane(core, directory) as client:
        disk = make_disk()
        await client.device_add(disk)
        conditions = client.conditions()
        assert await anext(conditions) == {}
        core.happen("DEVICE_NO_SPACE", id=disk.id)
        assert await anext(conditions) == {disk.id: DiskCondition(spaceless=True)}
        core.happen("DEVICE_FLUSH_FAILED", id=disk.id, errno=5)
        assert await anext(conditions) == {disk.id: DiskCondition(spaceless=True, flush_failed=True)}
        core.happen("DEVICE_CONNECTED", id=disk.id)
        core.happen("DEVICE_SPACE", id=disk.id)
        assert await anext(conditions) == {disk.id: DiskCondition(flush_failed=True)}
        await client.device_del(disk.id)
        assert await anext(conditions) == {}


async def test_other_layers_take_over_the_locks_and_give_them_back_on_a_refusal(
    core: FakeCore, directory: Path, make_disk: MakeDisk
) -> None:
    async with plane(core, directory) as client:
        disk, fresh = make_disk(images=["top", "base"]), make_disk(images=["new", "top", "base"])
        await client.device_add(disk)
        before = open_files()
        core.fails = OSError(22, "no overlay of ours")
        with pytest.raises(ResourceError, match="no overlay of ours"):
            await client.set_layers(disk.id, fresh.layers)
        core.fails = None
        assert open_files() == before
        assert [is_free(layer.path, Access.READER) for layer in fresh.layers] == [True, False, True]
        await client.set_layers(disk.id, fresh.layers)
        assert [is_free(layer.path, Access.READER) for layer in fresh.layers] == [False, True, True]
        assert not is_free(disk.layers[0].path, Access.WRITER)
        (status,) = await client.query_devices()
        assert status.device == fresh
        assert len(core.devices[disk.id][1]) == len(fresh.layers)
        with pytest.raises(NotFoundError):
            await client.set_layers("m9/disk0", fresh.layers)
        with pytest.raises(UsageError, match="layers"):
            await client.set_layers(disk.id, [])
        await client.device_del(disk.id)
        assert all(is_free(layer.path, Access.WRITER) for layer in fresh.layers)
