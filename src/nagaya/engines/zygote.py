"""The zygote: a small process that forks every machine into its jail and outlives the daemon.

`python -m nagaya.engines.zygote [--ready-fd N] [--detach]` listens on `Paths.zygote_socket` (SOCK_SEQPACKET,
one JSON object a datagram, requests of the own uid only):

- `{"do": "launch", "plan": {...}}` -> `{"pid", "start_time"}` once it has executed, or its machine is set up,
  or `{"error", "step"}`, with the `NagayaError` in `"failure"` if it was one;
- `{"do": "list"}` -> `{"processes": [{"machine", "pid", "start_time"}]}`;
- `{"do": "ping"}` -> `{"pid", "cgroups": {controller: directory}, "missing": {controller: reason}}`.

When a process ends, its status goes to the plan's `exit_file`. Killing the zygote ends no machine; what
happens to them afterwards is then known from their logs alone. Imports are few: each fork inherits them. What
machines of the kvm engine run is imported once the socket listens: in their jails there is nothing to import.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nagaya import oom
from nagaya.abi import linux
from nagaya.engines import cores, jail
from nagaya.engines.enginelog import EngineLog
from nagaya.engines.plan import MAX_MESSAGE, LaunchPlan, encode
from nagaya.engines.procs import start_time_of
from nagaya.errors import NagayaError
from nagaya.paths import Paths
from nagaya.resources import cgroups

MAX_CLIENTS = 64
LAUNCH_TIMEOUT_S = 20.0
FLOOD_PAUSE_MS = 100  # a machine that floods its log is read this often
CALLS = {"kvm": "nagaya.kvm.process"}  # what a plan may call: `main` of that module
_REPORT_BYTES = 4096  # PIPE_BUF: written at once or not at all


@dataclass(slots=True)
class _Process:
    machine: str
    pid: int
    start_time: int
    exit_file: Path
    log: EngineLog
    report_fd: int  # -1 once it has executed
    client: socket.socket | None  # who waits for the launch
    deadline: float


class Zygote:
    """The event loop. Single-threaded; nothing in it blocks on a machine."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._mount_point = paths.run / "root"
        self._mount_point.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._base = cgroups.find_base(f"nagaya-{zlib.crc32(os.fsencode(paths.run)):08x}")
        self.image: object = None  # of this process, which machines share
        self._processes: dict[int, _Process] = {}
        self._clients: dict[int, socket.socket] = {}
        self._poll = select.poll()
        self._wake, wake = socket.socketpair()
        self._wake.setblocking(False)
        wake.setblocking(False)
        self._wake_writer = wake
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._listener = _listen(paths.zygote_socket)
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)

    def run(self) -> None:
        """Serve until SIGTERM, which leaves the machines running."""
        stopping = False

        def stop(*_: object) -> None:
            nonlocal stopping
            stopping = True

        signal.signal(signal.SIGTERM, stop)
        self._poll.register(self._listener, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)
        while not stopping:
            for fd, _ in self._poll.poll(self._timeout_ms()):
                self._handle(fd)
            self._drain_flooded()
            self._expire()
        self._paths.zygote_socket.unlink(missing_ok=True)
        cgroups.remove_base(self._base)

    def _handle(self, fd: int) -> None:
        if fd == self._listener.fileno():
            self._accept()
        elif fd == self._wake.fileno():
            with contextlib.suppress(BlockingIOError):
                self._wake.recv(4096)
            self._reap()
        elif fd in self._clients:
            self._serve(self._clients[fd])
        else:
            for process in list(self._processes.values()):
                if fd == process.report_fd:
                    self._launched(process)
                elif fd == process.log.fileno() and (not process.log.drain() or process.log.flooded):
                    self._poll.unregister(fd)

    # Clients

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        _, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != os.geteuid() or len(self._clients) >= MAX_CLIENTS:
            client.close()
            return
        client.setblocking(False)
        self._clients[client.fileno()] = client
        self._poll.register(client, select.POLLIN)

    def _serve(self, client: socket.socket) -> None:
        try:
            message = client.recv(MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._drop(client)
            return
        try:
            request = json.loads(message)
            action = request["do"]
            if action == "launch":
                self._launch(LaunchPlan.from_json(request["plan"]), client)
            elif action == "list":
                self._answer(client, {"processes": self._list()})
            elif action == "ping":
                groups = {name: str(path) for name, path in self._base.groups.items()}
                missing = dict(self._base.missing)
                self._answer(client, {"pid": os.getpid(), "cgroups": groups, "missing": missing})
            else:
                self._answer(client, {"error": f"unknown request {action!r}", "step": "read the request"})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            reason = f"malformed request: {type(error).__name__}: {str(error)[:200]}"
            self._answer(client, {"error": reason, "step": "read the request"})
        except OSError as error:
            self._answer(client, {"error": str(error), "step": "prepare the launch"})

    def _answer(self, client: socket.socket | None, message: dict[str, object]) -> None:
        if client is not None and client.fileno() >= 0:
            with contextlib.suppress(OSError):  # it went away; the exit file and `list` tell the next one
                client.send(encode(message))

    def _drop(self, client: socket.socket) -> None:
        self._poll.unregister(client)
        del self._clients[client.fileno()]
        client.close()

    def _list(self) -> list[dict[str, object]]:
        return [
            {"machine": one.machine, "pid": one.pid, "start_time": one.start_time}
            for one in self._processes.values()
        ]

    # Processes

    def _launch(self, plan: LaunchPlan, client: socket.socket) -> None:
        Path(plan.exit_file).unlink(missing_ok=True)
        log = EngineLog(Path(plan.log), plan.log_limit)
        report, report_writer = os.pipe2(os.O_CLOEXEC)
        try:
            pid = _fork(plan.cgroup)
            if pid == 0:
                _child(plan, str(self._mount_point), log.write_fd, report_writer, self.image)
        except OSError:
            log.close()
            os.close(report)
            raise
        finally:
            os.close(report_writer)
            log.close_writer()
        deadline = time.monotonic() + LAUNCH_TIMEOUT_S
        process = _Process(
            plan.machine, pid, start_time_of(pid), Path(plan.exit_file), log, report, client, deadline
        )
        self._processes[pid] = process
        self._poll.register(report, select.POLLIN)
        self._poll.register(log, select.POLLIN)

    def _launched(self, process: _Process) -> None:
        """The child executed or is set up (its report closed empty), or says which step failed."""
        report = os.read(process.report_fd, _REPORT_BYTES)
        self._poll.unregister(process.report_fd)
        os.close(process.report_fd)
        process.report_fd = -1
        if report:
            self._answer(process.client, json.loads(report))
        else:
            self._answer(process.client, {"pid": process.pid, "start_time": process.start_time})
        process.client = None

    def _expire(self) -> None:
        for process in self._processes.values():
            if process.report_fd >= 0 and time.monotonic() > process.deadline:
                process.deadline = float("inf")
                self._answer(
                    process.client, {"error": f"not set up in {LAUNCH_TIMEOUT_S:g} s", "step": "launch"}
                )
                process.client = None
                os.kill(process.pid, signal.SIGKILL)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            process = self._processes.pop(pid, None)
            if process is not None:
                self._ended(process, status)

    def _ended(self, process: _Process, status: int) -> None:
        if process.report_fd >= 0:
            self._launched(process)
        with contextlib.suppress(KeyError):
            self._poll.unregister(process.log)
        process.log.close()
        ended: dict[str, object] = {
            "pid": process.pid,
            "start_time": process.start_time,
            "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
            "at": time.time(),
        }
        draft = process.exit_file.with_suffix(".new")
        with contextlib.suppress(OSError):  # the machine's directory may be gone already
            draft.write_bytes(encode(ended))
            draft.replace(process.exit_file)

    # Time

    def _timeout_ms(self) -> int | None:
        if any(process.log.flooded for process in self._processes.values()):
            return FLOOD_PAUSE_MS
        return 1000 if any(process.report_fd >= 0 for process in self._processes.values()) else None

    def _drain_flooded(self) -> None:
        for process in self._processes.values():
            if process.log.flooded:
                process.log.drain()


def _fork(cgroup: str) -> int:
    """Fork process 1 of a new pid namespace, in the v2 control group `cgroup` if there is one."""
    fd = os.open(cgroup, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) if cgroup else -1
    try:
        return linux.fork(linux.CLONE_NEWPID, fd)
    finally:
        if fd >= 0:
            os.close(fd)


def _child(plan: LaunchPlan, mount_point: str, log_fd: int, report_fd: int, image: object) -> None:
    signal.set_wakeup_fd(-1)
    try:
        oom.set_score("self", oom.WITHIN)
        cores.separate()
        call = _entry(plan.call) if plan.call else None
        fds = jail.enter(plan, mount_point, log_fd, report_fd)
        if call is not None:
            call(plan.config, fds, lambda: os.close(report_fd), image)
        jail.execute(plan)
    except BaseException as error:  # nothing may return into the zygote's loop
        with contextlib.suppress(OSError):
            os.write(report_fd, _failure(error))
    os._exit(125)


def _entry(name: str) -> Callable[..., None]:
    """The function `main(config, fds, ready, image)` behind a name in `CALLS`; it does not return."""
    module = sys.modules.get(CALLS[name]) or importlib.import_module(CALLS[name])
    entry: Callable[..., None] = module.main
    return entry


def _failure(error: BaseException) -> bytes:
    """What the client is told; it fits into a pipe at once."""
    if isinstance(error, NagayaError):
        told = encode({"step": "set up the machine", "error": error.message, "failure": error.to_json()})
        if len(told) <= _REPORT_BYTES:
            return told
    step, _, text = str(error).partition(": ")
    if not isinstance(error, jail.StepError):
        step, text = "set up the machine", f"{type(error).__name__}: {error}"
    return encode({"step": step, "error": text[:1000]})


def _preload() -> bool:
    """Import what machines call, if this host can run them: in a jail there is nothing to import from."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    for module in CALLS.values():
        importlib.import_module(module)
    with contextlib.suppress(NagayaError, OSError):  # each start says what is wrong with this host
        importlib.import_module("nagaya.kvm.rehearsal").rehearse()
    return True


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)  # the lock says that no other zygote has it
    listener = socket.socket(
        socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    )
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(16)
    return listener


def _enter_user_namespace() -> None:
    """Without root: become root of a user namespace in which only the own uid and gid exist."""
    uid, gid = os.geteuid(), os.getegid()
    linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def main() -> int:
    """The program. Exit status 0 after SIGTERM, 1 if another zygote serves these directories."""
    parser = argparse.ArgumentParser(prog="nagaya-zygote", description="forks machines into their jails")
    parser.add_argument("--ready-fd", type=int, default=-1, help="gets a line once the socket listens")
    parser.add_argument(
        "--detach", action="store_true", help="go on in the background, in a session of its own"
    )
    options = parser.parse_args()
    if options.detach and os.fork():
        os._exit(0)
    if options.detach:
        os.setsid()
    oom.protect_self()
    paths = Paths.default()
    paths.run.mkdir(mode=0o711, parents=True, exist_ok=True)
    lock = os.open(paths.run / "zygote.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.stderr.write(f"another zygote serves {paths.run}\n")
        return 1
    if os.geteuid() != 0:
        _enter_user_namespace()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    zygote = Zygote(paths)
    if options.ready_fd >= 0:
        os.write(options.ready_fd, b"ready\n")
        os.close(options.ready_fd)
    preloaded = _preload()
    gc.freeze()  # so that a collection in a child does not copy the parent's pages
    gc.disable()
    if preloaded:
        zygote.image = importlib.import_module("nagaya.kvm.rehearsal").image()
    zygote.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
