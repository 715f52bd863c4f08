"""Image files of a disk: opened, checked and locked by the holder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator

from nagaya.closing import Closing
from nagaya.errors import (
    ConflictError,
    NagayaError,
    NotFoundError,
    PermissionDeniedError,
    ResourceError,
    UsageError,
)
from nagaya.plane.config import BlkDevice
from nagaya.plane.imagelock import (
    Access,
    downgrade_image,
    lock_image,
    unlock_image,
    upgrade_image,
    users_of,
)

ImageKey = tuple[int, int]  # st_dev, st_ino of a file; st_rdev, -1 of a block device


class OpenImages(Closing):
    """The layers of `device`, open and locked: the top one as `access_to` says, the others as readers.

    `unchanging`: what is written to the top one changes nothing of what it reads as, so there may be readers.
    `top`: a duplicate of the top layer's descriptor, which has its lock, to be used and owned from now on.

    `direct` is false if a file system under one of them refuses O_DIRECT. `devices_of` names the devices of
    this holder that have an image open, for the message of a refusal. Raises a `NagayaError` that names the
    file.
    """

    def __init__(
        self,
        device: BlkDevice,
        devices_of: Callable[[ImageKey], Iterable[str]],
        *,
        unchanging: bool = False,
        top: int = -1,
    ) -> None:
        self.fds: list[int] = []
        self.keys: list[ImageKey] = []
        self.direct = device.direct
        self._lent = top
        try:
            for index, layer in enumerate(device.layers):
                if layer.model is not None:
                    continue
                access = access_to(device, index)
                if unchanging and access is Access.WRITER:
                    access = Access.FILLER
                own = index > 0 or top < 0
                fd = self._open(device.id, layer.path, access, device.read_only) if own else top
                self.fds.append(fd)
                self.keys.append(_check_kind(device.id, layer.path, fd))
                if own and not lock_image(fd, access):
                    raise _in_use(device.id, layer.path, list(devices_of(self.keys[-1])), access)
            if not self.direct:
                for fd in self.fds:  # one that opened before another refused
                    _clear_direct(fd)
            self.worker = _worker_of(self.fds[0]) if self.fds else _worker_of_model(device)
        except BaseException:
            self.close()
            raise

    def _open(self, device_id: str, path: str, access: Access, read_only: bool) -> int:
        flags = os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        flags |= os.O_RDONLY if read_only or access is Access.READER else os.O_RDWR
        if access is Access.WRITER and _is_block_device(path):
            flags |= os.O_EXCL  # open(2): EBUSY while it is mounted, or open like this by another node
        try:
            if self.direct:
                try:
                    return os.open(path, flags | os.O_DIRECT)
                except OSError as error:
                    if error.errno != errno.EINVAL:  # open(2): the file system does not support O_DIRECT
                        raise
                    self.direct = False
            return os.open(path, flags)
        except OSError as error:
            raise _open_error(device_id, path, error) from error

    def close(self) -> None:
        """Release the locks, even if a worker still has a duplicate, and close the files. Idempotent."""
        while self.fds:
            fd = self.fds.pop()
            try:
                if fd != self._lent:
                    unlock_image(fd)
            finally:
                os.close(fd)

    def inherit(self, old: OpenImages) -> None:
        """The top layer's lock, which `old` has too, is ours."""
        old._lent, self._lent = old.fds[0], -1


@contextlib.contextmanager
def handed_over(
    old: OpenImages, device: BlkDevice, devices_of: Callable[[ImageKey], Iterable[str]]
) -> Iterator[OpenImages]:
    """The layers of `device`, opened while `old` is in use; its top may be theirs too, or only read now.

    At the end of the block `old` is closed; after an error the new ones are, and `old` is as it was.
    """
    same = bool(old.fds) and _is(device.layers[0].path, old.keys[0])
    writes = bool(old.fds) and not same and not device.read_only and not device.shared
    if writes:
        downgrade_image(old.fds[0])
    images = None
    try:
        images = OpenImages(device, devices_of, top=os.dup(old.fds[0]) if same else -1)
        if images.worker != old.worker:
            raise ConflictError(
                f"the top layer of {device.id} is on another device than before",
                hint="put it beside the layer below it",
            )
        yield images
    except BaseException:
        if images is not None:
            images.close()
        if writes:
            upgrade_image(old.fds[0])
        raise
    if same:
        images.inherit(old)
    old.close()


def access_to(device: BlkDevice, layer: int) -> Access:
    """What `device` opens its layer number `layer` for, 0 being the top one."""
    if device.shared and layer == 0:
        return Access.SHARED
    return Access.WRITER if layer == 0 and not device.read_only else Access.READER


def image_key(status: os.stat_result) -> ImageKey:
    """What is the same for all names of one image: links to a file, nodes of a device."""
    block = stat.S_ISBLK(status.st_mode)
    return (status.st_rdev, -1) if block else (status.st_dev, status.st_ino)


def _is(path: str, key: ImageKey) -> bool:
    """Whether the image at `path` is that one."""
    try:
        return image_key(os.stat(path)) == key  # noqa: PTH116
    except OSError:
        return False


def _is_block_device(path: str) -> bool:
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)  # noqa: PTH116  # a node that is not there is told by open
    except OSError:
        return False


def _check_kind(device_id: str, path: str, fd: int) -> ImageKey:
    status = os.fstat(fd)
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        raise UsageError(f"image {path} of {device_id} is neither a file nor a block device")
    return image_key(status)


def _clear_direct(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)


def _worker_of(fd: int) -> str:
    """One worker serves all images of one physical device, so that it can arbitrate between them."""
    status = os.fstat(fd)
    device = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
    return f"disk-{os.major(device)}:{os.minor(device)}"


def _worker_of_model(device: BlkDevice) -> str:
    model = device.layers[0].model
    return f"disk-model-{model.device if model is not None else ''}"


def _open_error(device_id: str, path: str, error: OSError) -> NagayaError:
    message = f"image {path} of {device_id} cannot be opened: {error.strerror}"
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"image {path} of {device_id} does not exist", path=path)
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return PermissionDeniedError(message, hint=f"the plane runs as uid {os.geteuid()}", path=path)
    if error.errno == errno.EBUSY:
        return ConflictError(
            f"block device {path} of {device_id} is in use by this host: mounted, or part of another one",
            hint="`lsblk` shows by what; unmount it first",
            path=path,
        )
    return ResourceError(message, path=path, errno=error.errno)


def _in_use(device_id: str, path: str, devices: list[str], access: Access) -> ConflictError:
    users = [] if devices else users_of(path)
    holders = ", ".join(devices or map(str, users)) or "a process that cannot be seen from here"
    purpose = "reading" if access is Access.READER else "writing"
    return ConflictError(
        f"image {path} of {device_id} cannot be opened for {purpose}: in use by {holders}",
        hint="an image has one writer or many readers; stop the other user first",
        path=path,
        holders=devices,
        users=[{"pid": user.pid, "name": user.name, "run": user.nagaya} for user in users],
    )
