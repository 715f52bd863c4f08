"""What the zygote is asked to launch: one message, JSON, checked where it enters."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

MAX_MESSAGE = 256 * 1024  # bytes; a plan is a few KiB, most of it the seccomp filter


@dataclass(frozen=True, slots=True)
class Bind:
    """A file or directory of the host that the jail shows at `target`."""

    source: str
    target: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """One jailed process. Paths are the host's unless they say "inside".

    The jail is an empty read-only tmpfs with `binds`, `files` and, if `ram_bytes` is not 0, a private tmpfs
    of that size at `ram_dir`. In it either `executable` is executed or, without exec, `call` is called.
    """

    machine: str  # id, for logs and `list`
    uid: int
    gid: int
    hostname: str
    exit_file: str
    log: str
    log_limit: int  # bytes
    executable: str = ""  # inside
    argv: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    call: str = ""  # a name in `zygote.CALLS`
    config: Mapping[str, Any] = field(default_factory=dict)  # its argument, JSON
    opens: Mapping[str, str] = field(default_factory=dict)  # files opened for it, read and write, by name
    reads: Mapping[str, str] = field(default_factory=dict)  # the same, to read
    listens: Mapping[str, str] = field(default_factory=dict)  # unix stream sockets made for it, 0600, by name
    ram_bytes: int = 0  # size of the tmpfs that holds guest memory
    ram_dir: str = "/ram"  # inside: a tmpfs of its own
    binds: tuple[Bind, ...] = ()
    files: Mapping[str, str] = field(
        default_factory=dict
    )  # inside: small read-only files by path, their text
    cgroup: str = ""  # v2 control group in which the process begins
    tasks: tuple[str, ...] = ()  # `tasks` files of v1 control groups to join
    cpu: int | None = None  # where there is no cpuset: the CPU to run on
    rlimits: Mapping[str, int] = field(default_factory=dict)  # "nofile": 1024; soft and hard
    seccomp: tuple[bytes, ...] = ()  # filters, arrays of struct sock_filter
    fixed_layout: bool = False  # no address space randomization

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        plan: dict[str, object] = {one.name: getattr(self, one.name) for one in fields(self)}
        plan["binds"] = [[bind.source, bind.target, bind.writable] for bind in self.binds]
        plan["seccomp"] = [base64.b64encode(program).decode() for program in self.seccomp]
        return plan

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> LaunchPlan:
        """The plan that `to_json` wrote. Raises `TypeError` or `ValueError` if it is not one."""
        plan = dict(body)
        for name in ("argv", "tasks"):
            plan[name] = tuple(str(item) for item in plan.get(name, ()))
        plan["binds"] = tuple(Bind(str(a), str(b), bool(c)) for a, b, c in plan.get("binds", ()))
        plan["seccomp"] = tuple(
            base64.b64decode(program, validate=True) for program in plan.get("seccomp", ())
        )
        made = cls(**plan)
        if any(len(program) % 8 for program in made.seccomp):
            raise ValueError("a seccomp program is an array of 8-byte instructions")
        return made


def encode(message: Mapping[str, object]) -> bytes:
    """One datagram."""
    return json.dumps(message, separators=(",", ":")).encode()
