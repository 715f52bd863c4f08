"""Image files of a disk: opened, checked and locked by the holder."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterable

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
from nagaya.plane.imagelock import lock_image, processes_using, unlock_image

ImageKey = tuple[int, int]  # st_dev, st_ino


class OpenImages(Closing):
    """The layers of `device`, open and locked: the top one as exclusive writer, the others as readers.

    `direct` is false if a file system under one of them refuses O_DIRECT. `users_of` names the devices of
    this holder that have an image open, for the message of a refusal. Raises a `NagayaError` that names the
    file.
    """

    def __init__(self, device: BlkDevice, users_of: Callable[[ImageKey], Iterable[str]]) -> None:
        self.fds: list[int] = []
        self.keys: list[ImageKey] = []
        self.direct = device.direct
        try:
            for index, layer in enumerate(device.layers):
                if layer.model is not None:
                    continue
                writer = index == 0 and not device.read_only
                fd = self._open(device.id, layer.path, writer)
                self.fds.append(fd)
                self.keys.append(_check_kind(device.id, layer.path, fd))
                if not lock_image(fd, writer=writer):
                    raise _in_use(device.id, layer.path, fd, list(users_of(self.keys[-1])), writer)
            if not self.direct:
                for fd in self.fds:  # one that opened before another refused
                    _clear_direct(fd)
            self.worker = _worker_of(self.fds[0]) if self.fds else _worker_of_model(device)
        except BaseException:
            self.close()
            raise

    def _open(self, device_id: str, path: str, writer: bool) -> int:
        flags = (os.O_RDWR if writer else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
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
                unlock_image(fd)
            finally:
                os.close(fd)


def _check_kind(device_id: str, path: str, fd: int) -> ImageKey:
    status = os.fstat(fd)
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        raise UsageError(f"image {path} of {device_id} is neither a file nor a block device")
    return status.st_dev, status.st_ino


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
    return ResourceError(message, path=path, errno=error.errno)


def _in_use(device_id: str, path: str, fd: int, devices: list[str], writer: bool) -> ConflictError:
    holders = ", ".join(devices or processes_using(fd)) or "a process that cannot be seen from here"
    purpose = "writing" if writer else "reading"
    return ConflictError(
        f"image {path} of {device_id} cannot be opened for {purpose}: in use by {holders}",
        hint="an image has one writer or many readers; stop the other user first",
        path=path,
        holders=devices,
    )
