"""All vCPUs of a machine: a thread each, started, paused, resumed and stopped together."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum

from nagaya.errors import MachineFailedError, TimeoutExpiredError
from nagaya.kvm.vcpu import Vcpu

KICK = signal.SIGRTMIN
LEAVE_S = 30.0  # a vCPU leaves the guest in microseconds, unless the host is swapping
STACK_BYTES = 256 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


class State(Enum):
    """What the vCPUs are to do."""

    PAUSED = "paused"
    RUNNING = "running"
    STOPPED = "stopped"


class Vcpus:
    """The vCPUs' threads. They begin paused, and a paused one is out of the guest, between two instructions.

    `failed` is called once, by the thread of the first vCPU that cannot go on, and without any lock; that one
    is parked for good, the others run until someone pauses them.
    """

    def __init__(self, vcpus: Sequence[Vcpu], failed: Callable[[MachineFailedError], None]) -> None:
        self.vcpus = tuple(vcpus)
        self.state = State.PAUSED
        self._failed = failed
        self._failure: MachineFailedError | None = None
        self._changed = threading.Condition(threading.Lock())
        self._inside: set[int] = set()  # indexes of the vCPUs that may be in the guest
        self._threads: list[threading.Thread] = []
        self._tids: dict[int, int] = {}

    def start(self) -> None:
        """Start the threads; the vCPUs stay paused."""
        _ignore_kicks()
        for vcpu in self.vcpus:
            vcpu.ask_to_leave(True)
        previous = threading.stack_size(STACK_BYTES)
        try:
            for vcpu in self.vcpus:
                thread = threading.Thread(
                    target=self._live, args=(vcpu,), name=f"vcpu{vcpu.index}", daemon=True
                )
                thread.start()
                self._threads.append(thread)
        finally:
            threading.stack_size(previous)

    @property
    def thread_ids(self) -> dict[int, int]:
        """The kernel's thread id of each vCPU that has begun, by index."""
        with self._changed:
            return dict(self._tids)

    def resume(self) -> None:
        """Let all vCPUs run."""
        with self._changed:
            if self.state is State.PAUSED:
                self.state = State.RUNNING
                for vcpu in self.vcpus:
                    vcpu.ask_to_leave(False)
                self._changed.notify_all()

    def request_pause(self) -> None:
        """Let all vCPUs leave the guest soon; does not wait. A device may call it during an access."""
        self._leave(State.PAUSED)

    def pause(self) -> None:
        """Return when all vCPUs have left the guest. Not with the machine's lock held: they may need it."""
        self._leave(State.PAUSED)
        self._wait()
        for vcpu in self.vcpus:
            vcpu.account_pause()

    def stop(self) -> None:
        """End the threads. The vCPUs can be closed then."""
        self._leave(State.STOPPED)
        for thread in self._threads:
            thread.join(LEAVE_S)
            if thread.is_alive():
                raise TimeoutExpiredError(f"{thread.name} did not leave the guest within {LEAVE_S:.0f} s")
        self._threads.clear()

    def _leave(self, state: State) -> None:
        with self._changed:
            if self.state is State.STOPPED:
                return
            self.state = state
            self._changed.notify_all()
            for vcpu in self.vcpus:
                vcpu.ask_to_leave(True)
                if vcpu.index in self._inside:
                    _libc.tgkill(os.getpid(), self._tids[vcpu.index], KICK)

    def _wait(self) -> None:
        deadline = time.monotonic() + LEAVE_S
        with self._changed:
            while self._inside and self.state is State.PAUSED:
                if not self._changed.wait(deadline - time.monotonic()):
                    stuck = ", ".join(str(index) for index in sorted(self._inside))
                    raise TimeoutExpiredError(f"vCPU {stuck} did not leave the guest within {LEAVE_S:.0f} s")

    def _live(self, vcpu: Vcpu) -> None:
        """A vCPU's thread."""
        others = signal.valid_signals() - {KICK}  # they are the main thread's
        signal.pthread_sigmask(signal.SIG_SETMASK, others)
        while self._enter(vcpu):
            try:
                vcpu.run()
            except MachineFailedError as error:
                self._left(vcpu)
                self._fail(error)
                return
            self._left(vcpu)

    def _enter(self, vcpu: Vcpu) -> bool:
        with self._changed:
            self._tids[vcpu.index] = threading.get_native_id()
            while self.state is State.PAUSED:
                self._changed.wait()
            if self.state is State.STOPPED:
                return False
            self._inside.add(vcpu.index)
            return True

    def _left(self, vcpu: Vcpu) -> None:
        with self._changed:
            self._inside.discard(vcpu.index)
            self._changed.notify_all()

    def _fail(self, error: MachineFailedError) -> None:
        with self._changed:
            first = self._failure is None
            self._failure = self._failure or error
        if first:
            self._failed(error)


def _ignore_kicks() -> None:
    """A kick is to interrupt KVM_RUN and do nothing else, not even wake the interpreter's main thread.

    So its handler is a C function without effect, abs(3), and not one of the signal module's.
    """
    _libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    _libc.signal.restype = ctypes.c_void_p
    _libc.signal(KICK, ctypes.cast(_libc.abs, ctypes.c_void_p))
