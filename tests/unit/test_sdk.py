"""The client, against a daemon on fakes in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nagaya.errors import (
    BuildError,
    ConflictError,
    NagayaError,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    SpecError,
    TimeoutExpiredError,
    UnavailableError,
)
from nagaya.models.machine import MachineInfo
from nagaya.models.operation import OperationState
from nagaya.paths import Paths
from nagaya.sdk import Client, ensure_daemon
from nagaya.spec import MachineSpec
from nagaya.testing.scratch import make_directory

PROGRAM = ("-m", "nagaya.testing.daemon")


def short_directory() -> Paths:
    """Sockets need short paths."""
    top = make_directory()
    return Paths(top / "r", top / "s", top / "c")


@pytest.fixture
def own_paths() -> Iterator[Paths]:
    paths = short_directory()
    yield paths
    shutil.rmtree(paths.run.parent)


def end(pid: int) -> None:
    """Stop a daemon and wait for it."""
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}/stat").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.01)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """One daemon for all tests here; each cleans up its machines."""
    paths = short_directory()
    pid = ensure_daemon(paths, program=PROGRAM)
    with Client(paths) as client:
        yield client
    end(pid)
    shutil.rmtree(paths.run.parent)


@pytest.fixture(autouse=True)
def _no_machines(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "client" in request.fixturenames:
        for machine in request.getfixturevalue("client").machines.list():
            machine.delete(force=True)


def spec(name: str = "web", **parts: object) -> dict[str, object]:
    return {"name": name, "memory": "64MiB", **parts}


def test_a_machine_from_creation_to_deletion(client: Client) -> None:
    machine = client.machines.create(spec(), start=True)
    assert machine.state == "running"
    assert machine.exec(["echo", "hello"]).stdout == b"hello\n"
    assert machine.exec(["cat"], stdin=bytes(range(256))).stdout == bytes(range(256))
    assert machine.exec(["env"], env={"KEY": "value"}).stdout == b"KEY=value\n"
    assert machine.exec(["false"]).exit_code == 1
    assert machine.pause().info.state == "paused"
    assert machine.resume().info.state == "running"
    assert machine.logs() == b"fake console\n"
    assert machine.logs(raw=True) == b"fake console\r\n"
    assert machine.wait("agent", 5).stop().info.state == "stopped"
    assert [entry.event for entry in machine.journal()][:3] == ["created", "starting", "running"]
    assert [one.name for one in client.machines.list()] == ["web"]
    machine.delete()
    assert client.machines.list() == []


def test_a_machine_that_cannot_be_started_at_creation_is_not_kept(client: Client) -> None:
    with pytest.raises(UnavailableError):
        client.machines.create(spec(boot={"cmdline": "fake.refuse"}), start=True)
    assert client.machines.list() == []


def test_the_daemons_errors_come_out_as_the_same_classes(client: Client) -> None:
    machine = client.machines.create(spec())
    with pytest.raises(ConflictError, match="'web' is taken"):
        client.machines.create(spec())
    with pytest.raises(NotFoundError) as caught:
        client.machines.get("none")
    assert caught.value.facts == {"machine": "none"}
    assert "nagaya list" in caught.value.hint
    with pytest.raises(SpecError, match=r"memory\.size: 'lots' is not a size"):
        client.machines.create(spec(memory="lots"))
    with pytest.raises(TimeoutExpiredError):
        machine.wait("running", 0.05)


def test_a_machine_can_be_named_without_asking(client: Client) -> None:
    created = client.machines.create(MachineSpec(name="web"))
    named = client.machines.named("web")
    assert str(named) == "web"
    assert named.start().id == created.id
    assert client.machines.named(created.id).info.name == "web"
    nobody = client.machines.named("none")
    with pytest.raises(NotFoundError, match="there is no machine 'none'"):
        nobody.start()
    assert repr(nobody) == "<Machine none unseen>"


def test_the_console_carries_bytes_both_ways(client: Client) -> None:
    machine = client.machines.create(spec(), start=True)
    with machine.console() as console:
        assert console.recv(timeout=60) == b"fake console\r\n"
        console.send(b"\x00\xff\x1b")
        assert console.recv(timeout=60) == b"\x00\xff\x1b"


def test_a_console_that_cannot_be_had_is_an_error(client: Client) -> None:
    machine = client.machines.create(spec())
    with pytest.raises(ConflictError, match="web is stopped, it cannot be attached to"), machine.console():
        pytest.fail("attached")


def test_logs_are_followed_as_they_grow(client: Client) -> None:
    machine = client.machines.create(spec(), start=True)
    follower = machine.follow_logs()
    assert next(follower) == b"fake console\n"
    with client.paths.machine(machine.id).console_log.open("ab") as log:
        log.write(b"more\n")
    assert next(follower) == b"more\n"
    follower.close()  # type: ignore[attr-defined]


def test_an_operation_is_watched_to_its_end(client: Client) -> None:
    operation = client.images.build("img", {"kind": "fake", "seconds": 0.2})
    seen = [info.step for info in operation.watch()]
    assert seen[0] == "queued"
    assert "step 4" in seen
    assert operation.wait()["name"] == "img"
    assert client.operations.get(operation.info.id).info.state == OperationState.DONE
    assert [image.name for image in client.images.list()] == ["img"]
    client.images.remove("img")


def test_a_cancelled_operation_says_so(client: Client) -> None:
    operation = client.images.build("slow", {"kind": "fake", "seconds": 60})
    assert operation.cancel().state == "cancelled"
    with pytest.raises(ConflictError, match="image build slow was cancelled"):
        operation.wait()
    with pytest.raises(ConflictError, match="has ended"):
        operation.cancel()


def test_up_and_down(client: Client) -> None:
    done = client.apply([spec("a"), spec("b")], source="x.yaml").wait()
    assert [one["action"] for one in done["machines"]] == ["create", "create"]
    done = client.apply([spec("a")], source="x.yaml", prune=True).wait()
    assert {one["name"]: one["action"] for one in done["machines"]} == {"a": "unchanged", "b": "delete"}
    client.down(["a", "b"]).wait()
    assert client.machines.list() == []


def test_events_tell_what_happens(client: Client) -> None:
    seen: list[dict[str, object]] = []
    ready = threading.Event()

    def listen() -> None:
        with client.websocket("/v1/events") as events:
            ready.set()
            for message in events:
                seen.append(json.loads(message))
                if seen[-1]["event"] == "deleted":
                    return

    listener = threading.Thread(target=listen)
    listener.start()
    ready.wait(5)
    client.machines.create(spec(), start=True).delete(force=True)
    listener.join(10)
    states = [event["state"] for event in seen if event["event"] == "machine"]
    assert states == ["stopped", "starting", "running", "stopped", "deleting"]


def test_two_clients_that_start_a_daemon_get_the_same_one(own_paths: Paths) -> None:
    pids: list[int] = []
    starters = [
        threading.Thread(target=lambda: pids.append(ensure_daemon(own_paths, program=PROGRAM)))
        for _ in range(3)
    ]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join(60)
    assert len(set(pids)) == 1
    assert len(pids) == 3
    end(pids[0])


def test_a_stale_socket_does_not_keep_a_daemon_from_starting(own_paths: Paths) -> None:
    own_paths.run.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(own_paths.api_socket))
    with Client(own_paths) as client, pytest.raises(UnavailableError, match="no daemon answers"):
        client.version()
    end(ensure_daemon(own_paths, program=PROGRAM))
    assert not own_paths.api_socket.exists()


def test_a_client_may_start_the_daemon_that_it_finds_missing(own_paths: Paths) -> None:
    started: list[int] = []

    def start(paths: Paths) -> None:
        started.append(ensure_daemon(paths, program=PROGRAM))

    with Client(own_paths, start=start) as client:
        assert client.machines.list() == []
        assert client.host().daemon_pid == started[0]
    assert len(started) == 1, "only while none answers"
    end(started[0])


def test_a_daemon_that_cannot_start_says_why(own_paths: Paths) -> None:
    own_paths.state.parent.mkdir(exist_ok=True)
    own_paths.state.write_text("a file in the way")
    with pytest.raises(UnavailableError, match=r"the daemon did not start: .*cannot be made"):
        ensure_daemon(own_paths, program=PROGRAM)


def test_a_daemon_that_ends_after_it_opened_its_log_says_why(own_paths: Paths) -> None:
    own_paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    own_paths.database.write_text("not a database, but long enough to look like one" * 10)
    with pytest.raises(UnavailableError, match=r"the daemon did not start: .*state\.sqlite cannot be used"):
        ensure_daemon(own_paths, program=PROGRAM)


def test_a_daemon_that_is_not_ready_in_time_is_ended_and_said_so(
    own_paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nagaya.sdk.launch._START_TIME", 0.1)
    with pytest.raises(UnavailableError, match=r"the daemon did not start: it was not ready within 0\.1 s"):
        ensure_daemon(own_paths, program=["-c", "import signal; signal.pause()"])


def test_a_second_daemon_is_refused_with_the_first_ones_number(own_paths: Paths) -> None:
    first = ensure_daemon(own_paths, program=PROGRAM)
    second = subprocess.run(
        [sys.executable, *PROGRAM],
        env=os.environ | own_paths.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    end(first)
    assert second.returncode == ConflictError.exit_code
    assert f"another daemon, process {first}, uses {own_paths.state}" in second.stderr


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (
            b"HTTP/1.1 502 Bad\r\nContent-Length: 4\r\n\r\noops",
            ProtocolError,
            "answered 502 without saying why",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\noops", ProtocolError, "is not JSON"),
        (b"nonsense\r\n\r\n", UnavailableError, "no daemon answers"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", UnavailableError, "no daemon answers"),
        (b"", UnavailableError, "no daemon answers"),
    ],
)
def test_a_peer_that_is_no_daemon_is_told(
    own_paths: Paths, answer: bytes, error: type[NagayaError], text: str
) -> None:
    own_paths.run.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(own_paths.api_socket))
        listener.listen()

        def serve() -> None:
            asked = b""
            while not asked:  # the client looks whether somebody listens before it asks
                connection, _ = listener.accept()
                with connection:
                    asked = connection.recv(65536)
                    if asked:
                        connection.sendall(answer)

        server = threading.Thread(target=serve)
        server.start()
        with Client(own_paths) as client, pytest.raises(error, match=text):
            client.version()
        server.join(5)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_a_user_without_the_right_is_told_how_to_get_it(client: Client) -> None:
    program = (
        "import os, sys\n"
        "from nagaya.errors import PermissionDeniedError\n"
        "from nagaya.sdk import Client\n"
        "with Client() as root:\n    root.version()\n"  # imports all that is needed: others may not read it
        "os.setuid(65534)\n"
        "try:\n    Client().version()\n"
        "except PermissionDeniedError as error:\n    print(error)\n"
    )
    client.paths.run.parent.chmod(0o755)
    shown = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | client.paths.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "add you to the group nagaya" in shown.stdout


def test_an_answer_of_a_newer_daemon_is_understood() -> None:
    body = dict.fromkeys(MachineInfo.__dataclass_fields__, "x")
    assert MachineInfo.from_json({**body, "something_new": 1}).name == "x"


def test_every_error_travels() -> None:
    for kind in (BuildError, PermissionDeniedError, SpecError):
        again = NagayaError.from_json(json.loads(json.dumps(kind("what", hint="do", n=1).to_json())))
        assert (type(again), again.message, again.hint, again.facts) == (kind, "what", "do", {"n": 1})


def test_the_client_imports_neither_the_server_nor_pydantic() -> None:
    program = "import sys, nagaya.sdk; print([m for m in ('fastapi', 'pydantic') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


def test_knobs_are_set_and_tenants_listed(client: Client) -> None:
    web = client.machines.create({"name": "web", "memory": "64MiB", "tenant": "acme"}, start=True)
    answer = web.set({"disk.weight": 400, "disk.limit": "50MiB/s"})
    assert [(change.field, change.after) for change in answer.changes] == [
        ("disk.limit", "50MiB/s"),
        ("disk.weight", 400),
    ]
    assert answer.seconds < 60
    assert web.refresh().info.spec["disk"]["weight"] == 400
    assert web.set([("disk.limit", None)], dry_run=True).changes[0].after is None
    client.tenants.set("@acme", {"disk.weight": 300})
    (acme,) = client.tenants.list()
    assert (acme.name, client.tenants.get("acme").disk["weight"], acme.machines) == ("acme", 300, ["web"])
    client.tenants.set("acme", {"disk.weight": None})
    web.delete(force=True)
