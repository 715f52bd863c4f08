"""Every command against a daemon on fakes."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nagaya.paths import Paths

Invoke = Callable[..., Any]  # the fixture's: an Outcome


def test_a_machine_from_image_to_deletion(invoke: Invoke) -> None:
    assert invoke("create", "busybox", "--name", "b1", "--memory", "64MiB").out == "b1\n"
    assert invoke("start", "b1").out == "b1 runs\n"
    assert invoke("list", "-q").out == "b1\n"
    assert invoke("pause", "b1").out == "b1 is paused\n"
    assert invoke("list", "--state", "paused", "-q").out == "b1\n"
    assert invoke("resume", "b1").out == "b1 runs\n"
    assert invoke("restart", "b1").status == 0
    assert invoke("stop", "b1").out == "b1 is stopped\n"
    assert invoke("delete", "b1").out == "b1 is deleted\n"
    assert invoke("list", "-q").out == ""


def test_list_is_a_table_json_yaml_and_csv(invoke: Invoke) -> None:
    invoke("create", "busybox", "--name", "b1", "--start")
    table = invoke("list").out.splitlines()
    assert table[0].split() == ["NAME", "STATE", "IMAGE", "CPUS", "MEMORY", "ENGINE", "ADDRESS", "UP"]
    assert table[1].split()[:6] == ["b1", "running", "busybox", "1", "512", "MiB"]
    assert invoke("list", "--format", "json").json[0]["name"] == "b1"
    assert yaml.safe_load(invoke("list", "--format", "yaml").out)[0]["memory"] == 512 * 2**20
    assert invoke("list", "--format", "csv").out.splitlines()[1].startswith("b1,running,busybox,1,536870912,")


def test_show_has_the_history(invoke: Invoke) -> None:
    invoke("create", "busybox", "--name", "b1", "--start")
    shown = yaml.safe_load(invoke("show", "b1").out)
    assert shown["memory"] == "512MiB"
    assert [line.split()[2] for line in shown["history"]][:2] == ["created", "starting"]
    assert {entry["event"] for entry in invoke("show", "b1", "--format", "json").json["journal"]} > {
        "created"
    }


def test_several_machines_at_once(invoke: Invoke) -> None:
    for name in ("b1", "b2", "b3"):
        invoke("create", "busybox", "--name", name)
    assert sorted(invoke("start", "b1", "b2", "b3", "b1").out.splitlines()) == [
        "b1 runs",
        "b2 runs",
        "b3 runs",
    ]
    assert invoke("start", "--all").status == 0
    assert len(invoke("stop", "--all", "--force").out.splitlines()) == 3
    assert invoke("stop", "--all").out == ""
    assert invoke("delete", "--all").status == 2, "nobody can be asked"
    assert len(invoke("delete", "--all", "--yes").out.splitlines()) == 3


def test_one_that_fails_does_not_stop_the_others(invoke: Invoke) -> None:
    for name in ("b1", "b2"):
        invoke("create", "busybox", "--name", name)
    invoke("start", "b1")
    done = invoke("delete", "b1", "b2")
    assert done.status == 4
    assert done.out == "b2 is deleted\n"
    assert "b1 is running" in done.err


def test_an_unknown_name_does_nothing_to_the_known(invoke: Invoke) -> None:
    invoke("create", "busybox", "--name", "batch", "--start")
    done = invoke("kill", "batch", "bacth")
    assert done.status == 3
    assert "no machine 'bacth'; nothing was done" in done.err
    assert "did you mean 'batch'?" in done.err
    assert invoke("list", "--state", "running", "-q").out == "batch\n"
    alone = invoke("kill", "bacth")
    assert alone.status == 3
    assert alone.err == "error: there is no machine 'bacth'\n  did you mean 'batch'?\n"


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["show", "nope"], 3, "there is no machine 'nope'"),
        (["create", "nope"], 3, "there is no image 'nope'"),
        (["create", "busybox", "--memory", "lots"], 2, "memory.size: 'lots' is not a size"),
        (["create", "busybox", "--engine", "xen"], 2, "engine: 'xen' is not one of"),
        (["create", "busybox", "--set", "cpus"], 2, "is not FIELD=VALUE"),
        (["start"], 2, "name at least one machine"),
        (["start", "x", "--all"], 2, "not both"),
        (["exec", "nope", "--", "true"], 125, "there is no machine 'nope'"),
        (["run", "nope"], 125, "there is no image 'nope'"),
        (["up", "-f", "/nonexistent.yaml"], 3, "there is no file /nonexistent.yaml"),
        (["image", "remove", "nope"], 3, "there is no image 'nope'"),
        (["image", "import", "x", "/nonexistent.raw"], 3, "there is no file"),
        (["operation", "show", "nope"], 3, "nope"),
    ],
)
def test_bad_input_gets_a_clear_error(
    invoke: Invoke, arguments: list[str], status: int, complaint: str
) -> None:
    done = invoke(*arguments)
    assert (done.status, done.out) == (status, "")
    assert complaint in done.err
    assert "Traceback" not in done.err


def test_a_taken_name_is_refused(invoke: Invoke) -> None:
    invoke("create", "busybox", "--name", "b1")
    done = invoke("create", "busybox", "--name", "b1")
    assert done.status == 4
    assert "'b1' is taken" in done.err


def test_exec_is_the_guests_command(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    invoke("create", "busybox", "--name", "b1", "--start")
    assert invoke("exec", "b1", "--", "echo", "-n", "--", "hi").out == "-n -- hi\n"
    assert invoke("exec", "b1", "false").status == 1
    assert invoke("exec", "b1", "nosuch").status == 127
    assert invoke("exec", "-e", "A=1", "b1", "env").out == "A=1\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\x00\xffpiped")))
    assert invoke("exec", "b1", "cat").out == "\x00\N{REPLACEMENT CHARACTER}piped"


def test_exec_in_a_stopped_machine_says_how_to_start_it(invoke: Invoke) -> None:
    invoke("create", "busybox", "--name", "b1")
    done = invoke("exec", "b1", "--", "true")
    assert done.status == 125
    assert "nagaya start b1" in done.err


def test_run_removes_the_machine_and_keeps_the_status(invoke: Invoke) -> None:
    assert invoke("run", "busybox", "--name", "r1", "--", "echo", "--", "x").out == "-- x\n"
    assert invoke("run", "busybox", "--", "false").status == 1
    assert invoke("list", "-q").out == ""
    assert invoke("run", "busybox", "--name", "r2", "--keep", "--", "echo", "x").status == 0
    assert invoke("list", "-q").out == "r2\n"


def test_logs_are_safe_and_end(invoke: Invoke) -> None:
    invoke("create", "busybox", "--name", "b1", "--start")
    assert "fake console" in invoke("logs", "b1", "--tail", "5").out
    assert invoke("logs", "b1", "--engine").status == 0


def test_console_detaches_and_leaves_the_machine_running(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    invoke("create", "busybox", "--name", "b1", "--start")
    master, slave = pty.openpty()
    with os.fdopen(slave, "r") as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        typist = threading.Thread(target=_detach_when_raw, args=(master,))
        typist.start()
        done = invoke("console", "b1")
        typist.join()
    os.close(master)
    assert done.status == 0
    assert "ctrl-] detaches" in done.err
    assert "Detached from b1" in done.err
    assert invoke("list", "--state", "running", "-q").out == "b1\n"


def _detach_when_raw(master: int) -> None:
    """What is typed before the terminal is raw is thrown away."""
    deadline = time.monotonic() + 60
    while termios.tcgetattr(master)[3] & termios.ICANON and time.monotonic() < deadline:
        time.sleep(0.01)
    os.write(master, b"\x1d")


FILE = """\
machines:
  web: {memory: 64MiB, disks: [{image: busybox}]}
  db: {memory: 64MiB, disks: [{image: busybox}]}
"""


def test_up_is_idempotent_and_down_removes(invoke: Invoke, tmp_path: Path) -> None:
    file = tmp_path / "nagaya.yaml"
    file.write_text(FILE)
    first = invoke("up", "-f", str(file))
    assert first.status == 0
    assert [line.split()[:2] for line in first.out.splitlines()[1:]] == [
        ["db", "running"],
        ["web", "running"],
    ]
    ids = {row["name"]: row["id"] for row in invoke("list", "--format", "json").json}
    second = invoke("up", "-f", str(file), "--format", "json")
    assert {row["name"]: row["id"] for row in second.json} == ids
    file.write_text(FILE.replace("web: {memory: 64MiB", "web: {memory: 65MiB"))
    refused = invoke("up", "-f", str(file))
    assert refused.status == 4
    assert "web" in refused.err
    assert invoke("up", "-f", str(file), "--recreate").status == 0
    assert invoke("show", "web", "--format", "json").json["memory"] == 65 * 2**20
    assert invoke("down", "-f", str(file)).out == "web, db: removed\n"
    assert invoke("list", "-q").out == ""
    assert invoke("down", "-f", str(file)).status == 0, "what is gone already is fine"


def test_up_from_standard_input_prunes_what_the_same_source_made(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    def up(text: str, *options: str) -> Any:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        return invoke("up", "-f", "-", *options)

    refused = up(FILE, "--prune")
    assert refused.status == 2
    assert "--prune needs --source" in refused.err
    assert up(FILE, "--source", "house").status == 0
    without = "".join(line for line in FILE.splitlines(keepends=True) if "db:" not in line)
    assert up(without, "--source", "house", "--prune").status == 0
    assert invoke("list", "-q").out == "web\n"


def test_a_wrong_file_is_told_with_its_lines(invoke: Invoke, tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("machines:\n  web:\n    memory: lots\n    enginee: 1\n")
    done = invoke("up", "-f", str(file))
    assert done.status == 2
    assert f"{file}:3: machines.web.memory: 'lots' is not a size" in done.err
    assert f"{file}:4: machines.web.enginee: unknown key 'enginee'; did you mean 'engine'?" in done.err


def test_images_kernels_and_jobs_are_listed(invoke: Invoke) -> None:
    assert invoke("image", "list", "-q").out == "busybox\n"
    assert "fake" in invoke("kernel", "list").out
    job = invoke("operation", "list", "--format", "json").json[0]
    assert job["kind"] == "image build"
    assert invoke("operation", "show", job["id"], "--format", "json").json["state"] == "done"
    assert invoke("operation", "cancel", job["id"]).status in (0, 4)


def test_a_build_shows_lines_in_a_pipe_and_prints_the_name(
    invoke: Invoke, tmp_path: Path, daemon_paths: Paths
) -> None:
    raw = tmp_path / "x.raw"
    raw.write_bytes(b"\0" * 2**20)
    done = invoke("image", "import", "mine", str(raw))
    assert (done.status, done.out) == (0, "mine\n")
    assert done.err.startswith("import mine")
    assert invoke("image", "remove", "mine").out == "mine is removed\n"


def test_ctrl_c_cancels_a_job_and_says_so(
    invoke: Invoke, daemon_paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nagaya.cli.images._build_image", _slow_build)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        done = invoke("image", "build", "busybox", "--name", "slow")
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.status == 130
    assert "interrupted: image slow is cancelled, nothing half made is left" in done.err
    assert "slow" not in invoke("image", "list", "-q").out


def _slow_build(session: object, name: str, _options: object) -> None:
    from nagaya.cli.follow import follow

    client = session.client  # type: ignore[attr-defined]
    job = client.images.build(name, {"kind": "fake", "seconds": 200})
    threading.Timer(0.3, _interrupt_main).start()
    follow(session, job, f"image {name}")  # type: ignore[arg-type]


def _interrupt_main() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def test_version_and_status_speak_of_the_daemon(
    invoke: Invoke, daemon_paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in daemon_paths.environment().items():
        monkeypatch.setenv(name, value)
    assert re.fullmatch(r"client: (\S+)\ndaemon: \1\n", invoke("version").out)
    assert invoke("daemon", "status", "--format", "json").json["machines"] == 0
    invoke("create", "busybox", "--name", "b1", "--start")
    refused = invoke("daemon", "stop", "--all")
    assert refused.status == 4
    assert "1 machines run" in refused.err
    assert invoke("version").status == 0, "it still runs"


def test_no_daemon_is_told_where_none_is_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, invoke: Invoke
) -> None:
    monkeypatch.setenv("NAGAYA_RUN_DIR", str(tmp_path))
    assert invoke("daemon", "status").status == 8
    assert invoke("daemon", "stop").out == "no daemon runs\n"
    assert "daemon: not running" in invoke("version").out


def test_faults_of_a_disk_are_set_shown_and_cleared(invoke: Invoke) -> None:
    invoke("create", "busybox", "--name", "box", "--start")
    assert invoke("disk", "fault", "box", "--latency", "5ms", "--error-rate", "0.01").status == 0
    shown = invoke("disk", "fault", "box").out.splitlines()
    assert [line.split() for line in shown] == [
        ["DISK", "FAULTS", "MET"],
        ["0", "latency", "5ms,", "errors", "0.01", "(EIO)", "3"],
    ]
    told = invoke("show", "box", "--format", "json").json
    assert (told["faults"][0]["latency_us"], told["state"]) == (5000, "running")
    assert "faults on purpose on disk0" in invoke("list").out
    assert invoke("disk", "fault", "box", "--clear").status == 0
    assert invoke("disk", "fault", "box", "--format", "json").json == []
    assert [entry["event"] for entry in invoke("show", "box", "--format", "json").json["journal"]][-2:] == [
        "faults",
        "faults over",
    ]
    assert invoke("disk", "fault", "box", "--clear", "--stuck").status == 2
    assert "0.25x" in invoke("disk", "fault", "box", "--latency", "0.25x").err
