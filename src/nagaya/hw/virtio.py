"""A virtio device without its transport: features, status, queues, configuration space (virtio 1.3, 2 and 3).

The device is a backend somewhere else; this is what its driver negotiates with. While the driver is at work
nothing here runs: kicks and interrupts are eventfds between guest and backend.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from nagaya.abi import virtio
from nagaya.abi.virtio import Status
from nagaya.errors import NagayaError, ResourceError, UsageError
from nagaya.hw.wires import Ram

log = logging.getLogger(__name__)

QUEUES_MAX: Final = 256  # vhost-user numbers queues in a byte
QUEUE_SIZE_MAX: Final = 32768  # (2.7)
_ADDRESS_MAX: Final = (1 << 64) - 1
# Of the transport's feature bits, those whose meaning is the backend's alone. Others (notification data, ring
# reset, platform access, ...) would need this side to do something.
_RING_FEATURES: Final = (
    1 << virtio.VIRTIO_RING_F_INDIRECT_DESC
    | 1 << virtio.VIRTIO_RING_F_EVENT_IDX
    | 1 << virtio.VIRTIO_F_VERSION_1
)
_TRANSPORT_FEATURES: Final = (1 << virtio.VIRTIO_TRANSPORT_F_END) - (1 << 24)


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of device."""

    name: str
    id: int  # VIRTIO_ID_*
    pci_class: int
    config_size: int  # bytes of configuration space that any feature needs
    written: tuple[tuple[int, range], ...] = ()  # (feature bit, bytes that a driver may write with it)
    live: bool = False  # what the driver asks for changes configuration space: it is read anew each time


KINDS: Final = {
    one.name: one
    for one in (
        Kind("net", virtio.VIRTIO_ID_NET, 0x0200, 24),
        Kind(
            "blk",
            virtio.VIRTIO_ID_BLOCK,
            0x0180,
            60,
            ((virtio.VIRTIO_BLK_F_CONFIG_WCE, range(virtio.VIRTIO_BLK_WCE, virtio.VIRTIO_BLK_WCE + 1)),),
        ),
        Kind(
            "console",
            virtio.VIRTIO_ID_CONSOLE,
            0x0780,
            12,
            (
                (
                    virtio.VIRTIO_CONSOLE_F_EMERG_WRITE,
                    range(virtio.VIRTIO_CONSOLE_EMERG_WR, virtio.VIRTIO_CONSOLE_EMERG_WR + 4),
                ),
            ),
        ),
        Kind("rng", virtio.VIRTIO_ID_RNG, 0x00FF, 0),
        Kind("mem", virtio.VIRTIO_ID_MEM, 0x00FF, 56, live=True),
        Kind(
            "balloon",
            virtio.VIRTIO_ID_BALLOON,
            0x00FF,
            16,
            (
                (
                    virtio.VIRTIO_F_VERSION_1,
                    range(virtio.VIRTIO_BALLOON_ACTUAL, virtio.VIRTIO_BALLOON_ACTUAL + 4),
                ),
                (
                    virtio.VIRTIO_BALLOON_F_PAGE_POISON,
                    range(virtio.VIRTIO_BALLOON_POISON_VAL, virtio.VIRTIO_BALLOON_POISON_VAL + 4),
                ),
            ),
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Ring:
    """A queue that a driver has set up; addresses are guest-physical and lie in RAM."""

    index: int
    size: int
    base: int  # the next available entry
    desc: int
    driver: int
    device: int
    kick: int  # eventfd
    call: int  # eventfd


class Backend(Protocol):
    """What does the device's work. Each method raises a `NagayaError` if it cannot, in bounded time."""

    features: int  # what it offers
    queues: int  # how many it has

    def start(self, features: int, rings: Sequence[Ring]) -> None:
        """Serve `rings` with the agreed `features`."""

    def stop(self) -> Sequence[int]:
        """Stop serving; nothing touches the guest's memory behind it. The rings' bases, in their order."""

    def read_config(self, offset: int, size: int) -> bytes:
        """`size` bytes of configuration space."""

    def write_config(self, offset: int, content: bytes) -> None:
        """The driver writes to configuration space."""

    def close(self) -> None:
        """Let go of the device."""


@dataclass(slots=True)
class Queue:
    """What a driver has said of a queue so far."""

    index: int
    kick: int  # eventfd, owned by the device
    size: int
    desc: int = 0
    driver: int = 0
    device: int = 0
    enabled: bool = False
    vector: int = virtio.VIRTIO_MSI_NO_VECTOR  # of MSI-X, on PCI


class VirtioDevice:
    """The state that a driver sees through a transport. Nothing that a driver does raises; what breaks the
    specification or the backend ends in the status bit NEEDS_RESET, with the reason in `cause`.
    """

    def __init__(
        self,
        kind: Kind,
        backend: Backend,
        ram: Ram,
        *,
        queue_size: int,
        call: Callable[[Queue], int],
        config_interrupt: Callable[[], None],
    ) -> None:
        """`call(queue)` is the eventfd that interrupts for a queue; both callables are the transport's."""
        if not 1 <= backend.queues <= QUEUES_MAX:
            raise ResourceError(
                f"virtio-{kind.name}: the backend has {backend.queues} queues, not 1 to {QUEUES_MAX}"
            )
        if not _power_of_two(queue_size) or queue_size > QUEUE_SIZE_MAX:
            raise UsageError(
                f"virtio-{kind.name}: {queue_size} is no size of a queue: 1, 2, 4, ... {QUEUE_SIZE_MAX}"
            )
        self.kind = kind
        self.queue_size = queue_size
        self.features = backend.features & (~_TRANSPORT_FEATURES | _RING_FEATURES)
        self.status = Status(0)
        self.driver_features = 0
        self.config_generation = 0
        self.cause = ""  # why the device needs a reset
        self._backend = backend
        self._ram = ram
        self._call = call
        self._config_interrupt = config_interrupt
        self._running: list[Ring] = []
        self._suspended = False
        self._config = self._read_config()
        self.queues = tuple(
            Queue(index, os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), queue_size)
            for index in range(backend.queues)
        )

    def close(self) -> None:
        """Stop the backend and give back what was taken from the host."""
        self._stop()
        self._backend.close()
        for queue in self.queues:
            if queue.kick >= 0:
                os.close(queue.kick)
                queue.kick = -1

    def set_status(self, value: int) -> None:
        """The driver writes the status register (3.1.1); 0 resets."""
        if value == 0:
            self.reset()
            return
        wanted = Status(
            self.status | value & 0xFF & ~Status.NEEDS_RESET.mask
        )  # bits are never taken back (2.1.1)
        if wanted.FEATURES_OK and not self.status.FEATURES_OK and not self._acceptable(self.driver_features):
            wanted = wanted.replace(FEATURES_OK=0)
        if wanted.DRIVER_OK and not wanted.FEATURES_OK:
            self.fail("the driver is ready without having agreed on features")
            return
        begins = wanted.DRIVER_OK and not self.status.DRIVER_OK
        self.status = wanted
        if begins:
            self._start()

    def set_driver_features(self, word: int, value: int) -> None:
        """The driver accepts 32 feature bits; `word` says which. Not once they are agreed on (3.1.1)."""
        if not self.status.FEATURES_OK and word < 2:
            self.driver_features = self.driver_features & ~(0xFFFFFFFF << 32 * word) | value << 32 * word

    def device_features(self, word: int) -> int:
        """32 of the feature bits that are offered."""
        return self.features >> 32 * word & 0xFFFFFFFF if word < 2 else 0

    def queue(self, index: int) -> Queue | None:
        """The queue `index` if there is one."""
        return self.queues[index] if index < len(self.queues) else None

    def enable(self, queue: Queue) -> None:
        """The driver has set up `queue`. What it says after DRIVER_OK comes too late (3.1.1)."""
        if not self.status.DRIVER_OK:
            queue.enabled = True

    def notify(self, index: int) -> None:
        """The driver kicks by a write that no ioeventfd has taken."""
        if index < len(self.queues) and self._running:
            os.eventfd_write(self.queues[index].kick, 1)

    def read_config(self, offset: int, size: int) -> int:
        """A driver reads configuration space."""
        if self.kind.live:
            try:
                self._config = self._read_config()
            except NagayaError as error:
                self.fail(f"configuration space cannot be read: {error.message}")
        return int.from_bytes(self._config[offset : offset + size], "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        """A driver writes to configuration space. Only fields that a feature makes writable take it."""
        agreed = self.driver_features if self.status.FEATURES_OK else 0
        if not any(agreed >> bit & 1 and offset in span for bit, span in self.kind.written):
            return
        try:
            self._backend.write_config(offset, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))
            self._config = self._read_config()
        except NagayaError as error:
            self.fail(f"configuration space cannot be written: {error.message}")

    def config_changed(self) -> None:
        """The backend says that its configuration space is another now."""
        try:
            self._config = self._read_config()
        except NagayaError as error:
            self.fail(f"configuration space cannot be read: {error.message}")
            return
        self.config_generation = (self.config_generation + 1) & 0xFF
        if self.status.DRIVER_OK:
            self._config_interrupt()

    def fail(self, cause: str) -> None:
        """Only a reset helps now (2.1.2)."""
        if not self.cause:
            log.warning("virtio-%s needs a reset: %s", self.kind.name, cause)
        self.cause = self.cause or cause
        driver_ok = self.status.DRIVER_OK
        self.status = self.status.replace(NEEDS_RESET=1)
        if driver_ok:
            self._config_interrupt()

    def reset(self) -> None:
        """As it was before a driver came. The guest's memory is its own again."""
        self._stop()
        self.cause = ""
        self.status = Status(0)
        self.driver_features = 0
        for queue in self.queues:
            queue.size = self.queue_size
            queue.desc = queue.driver = queue.device = 0
            queue.enabled = False
            queue.vector = virtio.VIRTIO_MSI_NO_VECTOR

    def suspend(self) -> None:
        """Let the backend finish what it has begun, and touch the guest's memory no more until `resume`."""
        if not self._running or self._suspended:
            return
        try:
            bases = self._backend.stop()
        except NagayaError as error:
            self._running = []
            self.fail(f"the backend does not stop: {error.message}")
            return
        self._suspended = True
        self._running = [replace(ring, base=base) for ring, base in zip(self._running, bases, strict=True)]

    def resume(self) -> None:
        """Go on after `suspend`."""
        if self._suspended:
            self._suspended = False
            self._serve(self._running)

    def _acceptable(self, features: int) -> bool:
        """A driver accepts what was offered, and is not of the days before 1.0 (6.1, 2.2.2)."""
        return not features & ~self.features and bool(features >> virtio.VIRTIO_F_VERSION_1 & 1)

    def _start(self) -> None:
        rings = []
        for queue in self.queues:
            if not queue.enabled:
                continue
            wrong = self._wrong(queue)
            if wrong:
                self.fail(f"queue {queue.index}: {wrong}")
                return
            rings.append(
                Ring(
                    queue.index,
                    queue.size,
                    0,
                    queue.desc,
                    queue.driver,
                    queue.device,
                    queue.kick,
                    self._call(queue),
                )
            )
        if rings:
            self._serve(rings)

    def _wrong(self, queue: Queue) -> str:
        """What is wrong with how a driver set up a queue; "" if nothing (2.7, 4.1.5.1.3)."""
        if not _power_of_two(queue.size) or queue.size > self.queue_size:
            return f"{queue.size} is no size: it is a power of two up to {self.queue_size}"
        areas = (
            ("descriptor table", queue.desc, 16 * queue.size, 16),
            ("available ring", queue.driver, 6 + 2 * queue.size, 2),
            ("used ring", queue.device, 6 + 8 * queue.size, 4),
        )
        for name, address, size, align in areas:
            if address % align:
                return f"its {name} at {address:#x} is not aligned to {align}"
            if not any(
                part.address <= address <= part.address + part.size - size for part in self._ram.regions
            ):
                return f"its {name}, {size} bytes at {address:#x}, is not in RAM"
        return ""

    def _serve(self, rings: list[Ring]) -> None:
        try:
            self._backend.start(self.driver_features, rings)
        except NagayaError as error:
            self._running = []
            self.fail(f"the backend does not start: {error.message}")
            return
        self._running = rings

    def _stop(self) -> None:
        if self._running and not self._suspended:
            try:
                self._backend.stop()
            except NagayaError as error:  # a reset goes on: what is gone serves no more
                log.warning(
                    "virtio-%s is reset, its backend does not stop: %s", self.kind.name, error.message
                )
        self._running = []
        self._suspended = False

    def _read_config(self) -> bytes:
        return self._backend.read_config(0, self.kind.config_size) if self.kind.config_size else b""


def _power_of_two(number: int) -> bool:
    return number > 0 and not number & (number - 1)
