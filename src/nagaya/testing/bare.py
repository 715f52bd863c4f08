"""A machine of the kvm engine in this very process, around a payload: no jail, no monitor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from nagaya.errors import MachineFailedError
from nagaya.kvm.config import DeviceConfig, MachineConfig, Transport
from nagaya.kvm.ending import Ending
from nagaya.kvm.machine import Machine
from nagaya.kvm.system import Kvm

MEMORY = 64 << 20


class Bare:
    """Runs a payload; a context manager. `output` is what it printed so far."""

    def __init__(
        self,
        kernel: Path,
        cmdline: str = "",
        *,
        devices: Sequence[DeviceConfig] = (),
        memory: int = MEMORY,
        hot_memory: int = 0,
        cpus: int = 1,
        cpu_model: str = "host",
        initrd: str = "",
        transport: Transport = "pci",
    ) -> None:
        """`kernel` is what `nagaya.testing.payload.build` returned, or any other kernel."""
        self.output = ""
        self.ending: Ending | None = None
        self.ejected_ids: list[str] = []
        self._changed = threading.Condition()
        config = MachineConfig(
            "bare",
            "",
            memory,
            cpus,
            cpu_model,
            kernel=str(kernel),
            initrd=initrd,
            cmdline=cmdline,
            devices=tuple(devices),
            transport=transport,
            hot_memory=hot_memory,
        )
        self._system = Kvm()
        try:
            self.machine = Machine(config, self._system, self)
        except BaseException:
            self._system.close()
            raise

    def __enter__(self) -> Self:
        self.machine.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.machine.close()
        self._system.close()

    def wait(self, until: Callable[[], bool], seconds: float = 60) -> None:
        """Until it is so. Raises `MachineFailedError` with the output if it does not come to that."""
        with self._changed:
            self._changed.wait_for(lambda: until() or self.ending is not None, seconds)
            if not until():
                raise MachineFailedError(f"the payload did not get there: {self.ending}\n{self.output}")

    def said(self, text: str, seconds: float = 60) -> None:
        """Until the payload has printed `text`."""
        self.wait(lambda: text in self.output, seconds)

    def finish(self, seconds: float = 60) -> str:
        """Until the payload has ended with success; all that it printed."""
        self.said("EXIT 0\n", seconds)
        return self.output

    # What the machine tells (nagaya.kvm.machine.Outside)

    def serial_output(self, content: bytes) -> int:
        """Collect it."""
        with self._changed:
            self.output += content.decode("ascii", "replace")
            self._changed.notify_all()
        return len(content)

    def serial_room(self) -> None:
        """Nobody types."""

    def ended(self, ending: Ending) -> None:
        """Note it."""
        with self._changed:
            self.ending = ending
            self._changed.notify_all()

    def crash_loaded(self) -> None:
        """Payloads do not."""

    def ejected(self, device_id: str) -> None:
        """Note it."""
        with self._changed:
            self.ejected_ids.append(device_id)
            self._changed.notify_all()
