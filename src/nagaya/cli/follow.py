"""Waiting for the daemon: long jobs with their progress, and several machines at once."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from nagaya.cli.progress import GRACE_S, view
from nagaya.errors import NagayaError, TimeoutExpiredError

if TYPE_CHECKING:
    from nagaya.cli.session import Session
    from nagaya.models.host import StartWait
    from nagaya.sdk import Machine
    from nagaya.sdk.operations import Operation

TICK_S = 0.2  # how soon ctrl-C is noticed
AT_ONCE = 16  # requests in flight; more would only queue in the daemon


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; the message says what state is left."""


def follow(session: Session, operation: Operation, title: str) -> dict[str, Any]:
    """Wait for a long job and show how far it is. Ctrl-C cancels it. Returns its result."""
    with view(session, title) as shown:
        try:
            return operation.wait(lambda info: shown.update(info.step, info.fraction))
        except KeyboardInterrupt:
            shown.update("cancelling; ctrl-C again leaves it to the daemon", None)
            message = _cancel(operation, title)
    raise Interrupted(message)


def _cancel(operation: Operation, title: str) -> str:
    try:
        state = operation.cancel().state
    except KeyboardInterrupt:
        return f"{title} goes on in the daemon: `nagaya operation show {operation.info.id}`"
    except TimeoutExpiredError:
        return f"{title} is cancelled, the daemon cleans up: `nagaya operation show {operation.info.id}`"
    except NagayaError as error:
        return f"{title} could not be cancelled: {error.message}"
    return {
        "cancelled": f"{title} is cancelled, nothing half made is left",
        "done": f"{title} had already ended well",
    }.get(state, f"{title} has {state}")


@contextmanager
def waiting(session: Session, title: str) -> Iterator[None]:
    """Show that we wait for something that cannot say how far it is."""
    with view(session, title) as shown:
        shown.update("", None)
        yield


class Places:
    """Where machines are in the queue for room on the host."""

    def __init__(self) -> None:
        self._waiting: dict[Machine, StartWait] = {}
        self._given_up = False

    def queue(self, machine: Machine, timeout: float | None) -> None:
        """Have a machine started as soon as there is room."""

        def watch(place: StartWait) -> None:
            if self._given_up:
                raise Interrupted(place.machine)
            self._waiting[machine] = place

        try:
            machine.queue(timeout, watch)
        finally:
            self._waiting.pop(machine, None)

    def __str__(self) -> str:
        first = min(self._waiting.values(), key=lambda place: place.position, default=None)
        return "" if first is None else f"number {first.position}: {first.reason}"

    def give_up(self) -> list[str]:
        """Take those that wait out of the queue; their names."""
        self._given_up = True
        waiting = list(self._waiting)
        for machine in waiting:
            machine.leave_queue()
        return [str(machine) for machine in waiting]


def each(
    session: Session,
    machines: Sequence[Machine],
    act: Callable[[Machine], object],
    doing: str,
    done: str,
    *,
    places: Places | None = None,
) -> None:
    """Do `act` with all `machines` at once. All errors are printed; the first one is raised at the end."""
    todo: queue.SimpleQueue[Machine] = queue.SimpleQueue()
    ended: queue.SimpleQueue[tuple[Machine, BaseException | None]] = queue.SimpleQueue()
    for machine in machines:
        todo.put(machine)

    def work() -> None:
        while True:
            try:
                machine = todo.get_nowait()
            except queue.Empty:
                return
            try:
                act(machine)
            except Exception as error:  # goes to the main thread, which raises it
                ended.put((machine, error))
            else:
                ended.put((machine, None))

    for _ in range(min(len(machines), AT_ONCE)):
        threading.Thread(target=work, daemon=True).start()
    errors = _gather(session, machines, ended, (doing, done), places or Places())
    if errors:
        for error in errors[:-1]:
            click.echo(f"error: {error}", err=True)
        raise errors[-1]


def _gather(
    session: Session,
    machines: Sequence[Machine],
    ended: queue.SimpleQueue[tuple[Machine, BaseException | None]],
    words: tuple[str, str],
    places: Places,
) -> list[BaseException]:
    waited_for = list(machines)
    errors = []
    doing, done = words
    with view(session, doing) as shown:
        try:
            show_at = time.monotonic() + GRACE_S
            while waited_for:
                if time.monotonic() >= show_at:
                    ended_part = 1 - len(waited_for) / len(machines) if len(machines) > 1 else None
                    shown.update(" ".join(filter(None, (_listed(waited_for), str(places)))), ended_part)
                try:
                    machine, error = ended.get(timeout=TICK_S)
                except queue.Empty:
                    continue
                waited_for.remove(machine)
                if error is not None:
                    errors.append(error)
                elif not session.quiet:
                    click.echo(f"{machine} {done}")
        except KeyboardInterrupt:
            gone = places.give_up()
            left = [machine for machine in waited_for if str(machine) not in gone]
            message = (
                f"the daemon goes on with {_listed(left)}; `nagaya list` shows their state" if left else ""
            )
            given_up = f"{', '.join(gone)} does not wait for room any more" if gone else ""
            raise Interrupted("; ".join(filter(None, (given_up, message)))) from None
    return errors


def _listed(machines: Sequence[Machine]) -> str:
    return ", ".join(str(machine) for machine in machines)
