"""Machines of a user without root: a user namespace stands in for it, and what needs root is said."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from nagaya.abi import linux
from nagaya.engines import zygote
from nagaya.engines.engine import ExitReason
from nagaya.engines.seccomp import uml_filters
from nagaya.errors import UnsupportedError
from nagaya.kernel import Kernel
from nagaya.paths import Paths
from nagaya.testing.yard import Yard, said, wait_until

NOBODY = 65534
pytestmark = [pytest.mark.root, pytest.mark.uml, pytest.mark.images]


def test_a_user_without_root_runs_machines(paths: Paths, uml_kernel: Kernel, initrd: Path) -> None:
    kernel = paths.state / "vmlinux"
    shutil.copy(uml_kernel.path, kernel)
    disk = paths.state / "initrd"
    shutil.copy(initrd, disk)
    uml_filters()  # what is imported late is imported now: the interpreter may be out of a stranger's reach
    for directory in (paths.run, paths.state):
        os.chown(directory, NOBODY, NOBODY)
    for readable in (kernel, disk):
        readable.chmod(0o755)
    yard = Yard(paths, Kernel("uml", str(kernel)), disk)
    server = _as_nobody(lambda: _serve(paths))
    try:
        client = _as_nobody(lambda: asyncio.run(_use(yard)))
        assert os.waitstatus_to_exitcode(os.waitpid(client, 0)[1]) == 0
    finally:
        os.waitpid(server, 0)


def _serve(paths: Paths) -> None:
    os.environ.update(paths.environment())
    sys.argv = ["nagaya-zygote"]
    zygote.main()


async def _use(yard: Yard) -> None:
    await wait_until(yard.paths.zygote_socket.exists)
    try:
        info = await yard.engine.prepare()
        machine = yard.machine("cad")
        process = await yard.engine.start(machine)
        await said(machine, "TRAP-SET")
        if not info.base.groups:
            assert "Permission denied" in info.base.missing["memory"]
            with pytest.raises(UnsupportedError, match="cannot be paused: this host offers no freezer"):
                await yard.engine.pause(machine, process)
        await yard.engine.request_shutdown(machine, process)
        assert (await yard.engine.wait(machine, process)).reason is ExitReason.POWEROFF
        second = yard.machine("count")
        process = await yard.engine.start(second)
        await said(second, "COUNT 1")
        await yard.engine.kill(second, process)
        assert (await yard.engine.wait(second, process)).reason is ExitReason.KILLED
    finally:
        await yard.close()


def _as_nobody(work: Callable[[], None]) -> int:
    """Fork, give up root, do `work`; the pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        linux.prctl(linux.PR_SET_DUMPABLE, 1)  # as after exec: own /proc/self
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)
