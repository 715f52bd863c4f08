"""A vhost-user backend of the plane, as the virtio devices of a machine see it (nagaya.hw.virtio.Backend)."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator, Sequence
from typing import Final

from nagaya._core import VhostFrontend
from nagaya.errors import ProtocolError, UnavailableError
from nagaya.hw.virtio import Ring, VirtioDevice
from nagaya.hw.wires import Ram, RamRegion

# A stop waits for the requests that the backend has begun, so this is more than a disk takes for a queue's
# worth. The machine's lock is held meanwhile: a hung backend costs the machine so long, not for ever.
TIMEOUT_S: Final = 10.0


class VhostUserBackend:
    """One device in the plane, at a unix socket.

    `fd` is readable when `attend` has something to do. A backend that hung up, or broke the protocol, is
    connected again when the driver next starts the device, which is after a reset.
    """

    def __init__(self, name: str, socket: str, ram: Ram, *, queues: int = 1) -> None:
        """Connect. `queues` is how many there are if the backend does not say. Raises `UnavailableError`."""
        self.name = name
        self._socket = socket
        self._ram = ram
        self._running: list[int] = []
        self._err = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.epoll()
        self._poll.register(self._err, select.EPOLLIN)
        self._frontend: VhostFrontend | None = None
        try:
            frontend = self._connect()
        except BaseException:
            self.close()
            raise
        self.features = frontend.features
        self.queues = frontend.queues or queues

    @property
    def fd(self) -> int:
        """For the main loop: an epoll of all that the backend may say."""
        return self._poll.fileno()

    def close(self) -> None:
        """Hang up."""
        if self._err >= 0:
            self._hang_up()
            self._poll.close()
            os.close(self._err)
            self._err = -1

    def start(self, features: int, rings: Sequence[Ring]) -> None:
        """Hand over memory and rings. Raises `UnavailableError`."""
        frontend = self._frontend or self._connect()
        lost = features & ~frontend.features
        if lost:
            raise UnavailableError(f"{self.name}: the backend is another now, without features {lost:#x}")
        regions = [(part.address, part.size, part.host, part.fd, part.offset) for part in self._ram.regions]
        setup = [
            (
                ring.index,
                ring.size,
                ring.base,
                self._host(ring.desc),
                self._host(ring.driver),
                self._host(ring.device),
                ring.kick,
                ring.call,
                self._err,
            )
            for ring in rings
        ]
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._err)  # what is left of a run before
        with self._told():
            frontend.start(features, regions, setup)
        self._running = [ring.index for ring in rings]

    def stop(self) -> Sequence[int]:
        """Returns when the backend is done with the rings. Raises `UnavailableError` if it is not."""
        running, self._running = self._running, []
        frontend = self._frontend
        if frontend is None:
            raise UnavailableError(f"{self.name}: the backend is gone")
        with self._told():
            return frontend.stop(running)

    def read_config(self, offset: int, size: int) -> bytes:
        """From the backend, for a driver reads what the device has cached."""
        frontend = self._frontend or self._connect()
        if not frontend.has_config:
            return bytes(size)
        with self._told():
            return frontend.read_config(offset, size)

    def write_config(self, offset: int, content: bytes) -> None:
        """What the backend refuses is ignored, as a device ignores writes to what is read-only."""
        frontend = self._frontend
        if frontend is None or not frontend.has_config:
            return
        with self._told(), contextlib.suppress(PermissionError):
            frontend.write_config(offset, content)

    def attend(self, device: VirtioDevice) -> None:
        """Tell `device` what the backend says. With the machine's lock held, when `fd` is readable."""
        for fd, _ in self._poll.poll(0):
            frontend = self._frontend
            if fd == self._err:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._err)
                    device.fail(f"{self.name}: the backend gave up a queue; the plane's log says why")
            elif frontend is None:
                continue
            elif fd == frontend.request_fd():
                self._take_request(frontend, device)
            else:
                self._hang_up()
                device.fail(f"{self.name}: the plane has hung up")

    def _take_request(self, frontend: VhostFrontend, device: VirtioDevice) -> None:
        try:
            changed = frontend.take_request()
        except OSError as error:
            self._hang_up()
            device.fail(f"{self.name}: {error}")
            return
        if changed:
            device.config_changed()

    def _connect(self) -> VhostFrontend:
        try:
            frontend = VhostFrontend(self._socket, TIMEOUT_S)
        except OSError as error:
            raise UnavailableError(
                f"{self.name}: the plane does not serve {self._socket}: {error}",
                hint="is the plane running? `nagaya doctor` says",
            ) from error
        self._frontend = frontend
        self._poll.register(frontend.socket_fd(), select.EPOLLIN)
        if frontend.request_fd() >= 0:
            self._poll.register(frontend.request_fd(), select.EPOLLIN)
        return frontend

    def _hang_up(self) -> None:
        frontend, self._frontend = self._frontend, None
        self._running = []
        if frontend is None:
            return
        self._poll.unregister(frontend.socket_fd())
        if frontend.request_fd() >= 0:
            self._poll.unregister(frontend.request_fd())
        frontend.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what a request raises into an error of ours, and forget the connection: it is closed."""
        try:
            yield
        except OSError as error:
            self._hang_up()
            raise UnavailableError(f"{self.name}: {error}") from error

    def _host(self, address: int) -> int:
        """Where guest-physical `address` is mapped here."""
        region = self._region(address)
        return region.host + address - region.address

    def _region(self, address: int) -> RamRegion:
        for region in self._ram.regions:
            if region.address <= address < region.address + region.size:
                return region
        raise ProtocolError(f"{self.name}: {address:#x} is not in RAM")
