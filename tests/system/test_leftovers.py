"""A test run that is killed in the middle: the next one ends its daemon, plane, zygote and guests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nagaya.engines.procs import start_time_of
from nagaya.images.store import Image
from nagaya.kernel import Kernel
from nagaya.paths import Paths
from nagaya.testing import scratch

pytestmark = [pytest.mark.root, pytest.mark.uml, pytest.mark.images]

RUN = """
import json, sys, time
from pathlib import Path
from nagaya.paths import Paths
from nagaya.sdk import Client, ensure_daemon
from nagaya.testing import scratch
shared = Path(sys.argv[1])
scratch.begin_run()
top = scratch.make_directory()
top.chmod(0o755)
paths = Paths(top / "r", top / "s", top / "c")
for directory in (paths.run, paths.state, paths.cache):
    directory.mkdir(mode=0o755)
paths.images.symlink_to(shared / "images")
paths.kernels.symlink_to(shared / "kernels")
ensure_daemon(paths)
with Client(paths) as client:
    spec = {"name": "box", "memory": "48MiB", "disks": [{"image": "busybox"}], "restart": "always"}
    box = client.machines.create(spec, start=True)
    host = client.host()
    pids = [host.daemon_pid, host.plane_pid, host.zygote_pid, box.refresh().info.pid]
print(json.dumps([str(top), pids, box.id]), flush=True)
time.sleep(600)
"""


def test_a_killed_run_leaves_nothing(shared_paths: Paths, uml_kernel: Kernel, busybox_image: Image) -> None:
    command = [sys.executable, "-c", RUN, str(shared_paths.state)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        directory, pids, machine = json.loads(run.stdout.readline())
        run.kill()
    began = {pid: start_time_of(pid) for pid in pids}  # all of them outlive the run
    groups = json.loads((Path(directory) / f"r/machines/{machine}/cgroups.json").read_text())
    assert any(Path(group).exists() for group in groups.values())
    scratch.sweep()
    assert not Path(directory).exists()
    assert not [pid for pid in pids if _runs(pid, began[pid])]
    assert not [group for group in groups.values() if Path(group).parent.exists()]
    assert Path(uml_kernel.path).exists() and os.listdir(shared_paths.images)  # noqa: PTH208


def _runs(pid: int, began: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
        return start_time_of(pid) == began and status.rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
