"""Every error that Nagaya raises on purpose.

A message carries the facts: what, which machine, the value, the bound, and what to do next.
`code` is stable, travels through the REST API, and comes out of the SDK as the same class again.
`exit_code` is the status with which the command line ends (docs/cli.md, "Exit codes").
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar


class NagayaError(Exception):
    """Base of the tree.

    `hint` says what the reader can do next; `facts` are machine-readable and JSON-serialisable.
    """

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.facts = facts

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message

    def to_json(self) -> dict[str, object]:
        """The body of an error answer: `{"code", "message", "hint", "facts"}`."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "facts": self.facts}

    @staticmethod
    def from_json(body: dict[str, object]) -> NagayaError:
        """Rebuild the error that the daemon sent; an unknown code becomes a plain `NagayaError`."""
        cls = _BY_CODE.get(str(body.get("code")), NagayaError)
        facts = body.get("facts")
        error = cls.__new__(cls)
        NagayaError.__init__(
            error,
            str(body.get("message", "the daemon sent an error without a message")),
            hint=str(body.get("hint", "")),
            **(facts if isinstance(facts, dict) else {}),
        )
        return error


class UsageError(NagayaError):
    """The command line or the request is malformed."""

    code = "usage"
    http_status = 400
    exit_code = 2


class SpecError(NagayaError):
    """A machine specification is wrong: file, line, field, value and what is allowed."""

    code = "spec"
    http_status = 422
    exit_code = 2


class NotFoundError(NagayaError):
    """No such machine, image, operation or kernel."""

    code = "not-found"
    http_status = 404
    exit_code = 3


class ConflictError(NagayaError):
    """A name is taken, or the state of the machine does not allow the request."""

    code = "conflict"
    http_status = 409
    exit_code = 4


class UnsupportedError(NagayaError):
    """The engine or the host cannot do what the specification asks for."""

    code = "unsupported"
    http_status = 501
    exit_code = 5


class ResourceError(NagayaError):
    """Memory, disk space, CPUs or another resource of the host does not suffice."""

    code = "resource"
    http_status = 507
    exit_code = 6


class PermissionDeniedError(NagayaError):
    """The caller or the process lacks a right; says which one, and who has it."""

    code = "permission"
    http_status = 403
    exit_code = 7


class UnavailableError(NagayaError):
    """A part of Nagaya (daemon, plane, guest agent) or a facility of the host does not answer."""

    code = "unavailable"
    http_status = 503
    exit_code = 8


class TimeoutExpiredError(NagayaError):
    """Something did not happen before its deadline."""

    code = "timeout"
    http_status = 504
    exit_code = 9


class MachineFailedError(NagayaError):
    """The machine ended in a way that nobody asked for; the message has the cause."""

    code = "machine-failed"
    exit_code = 10


class BuildError(NagayaError):
    """An image or a kernel could not be built; the message has the step and the log's end."""

    code = "build"
    exit_code = 11


class ProtocolError(NagayaError):
    """A peer (guest, engine, plane, client) broke a protocol."""

    code = "protocol"
    http_status = 502
    exit_code = 12


def _tree(cls: type[NagayaError]) -> Iterator[type[NagayaError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from _tree(child)


_BY_CODE = {cls.code: cls for cls in _tree(NagayaError)}
