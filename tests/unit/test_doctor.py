"""What doctor finds, on this host and on one that is broken."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator

import pytest

from nagaya import doctor
from nagaya.doctor import Finding, State
from nagaya.kvm.probe import HostKvm
from nagaya.paths import Paths
from nagaya.resources.pressure import HostPressure
from nagaya.testing.scratch import make_directory


@pytest.fixture
def paths() -> Iterator[Paths]:
    top = make_directory()
    (top / "r").mkdir()
    yield Paths(top / "r", top / "s", top / "c")
    shutil.rmtree(top)


def _find(paths: Paths, name: str) -> Finding:
    return next(finding for finding in doctor.examine(paths) if finding.name == name)


def test_every_finding_that_is_not_ok_says_what_it_means(paths: Paths) -> None:
    findings = doctor.examine(paths)
    assert len({finding.name for finding in findings}) == len(findings)
    for finding in findings:
        assert finding.found, finding.name
        assert finding.state == State.OK or finding.meaning, finding.name
        assert finding.to_json()["state"] in ("ok", "warn", "fail")


def test_nothing_is_made_or_started(paths: Paths) -> None:
    doctor.examine(paths)
    assert list(paths.run.iterdir()) == []
    assert not paths.state.exists()


def test_a_service_is_alive_stale_or_not_there(paths: Paths) -> None:
    assert _find(paths, "daemon").found == "not running"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(paths.api_socket))
        listener.listen()
        assert _find(paths, "daemon").found.startswith("answers")
    stale = _find(paths, "daemon")
    assert stale.state == State.WARN
    assert stale.found.startswith("stale socket")


def test_a_kernel_of_our_own_is_found(paths: Paths) -> None:
    (paths.kernels / "uml").mkdir(parents=True)
    (paths.kernels / "uml" / "vmlinux").touch()
    kernel = _find(paths, "kernel")
    assert (kernel.state, kernel.found) == (State.OK, str(paths.kernels / "uml"))


@pytest.mark.parametrize(
    ("host", "state", "kernel"),
    [
        (HostKvm(False, "there is no /dev/kvm", "load kvm_intel"), State.WARN, None),
        (HostKvm(True, virtualization="VT-x", ring0_mips=3000, max_vcpus=64), State.OK, State.WARN),
        (HostKvm(True, module="kvm_pvm", ring0_mips=1.5, max_vcpus=64), State.WARN, State.OK),
    ],
)
def test_kvm_is_judged_by_its_probe(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, host: HostKvm, state: State, kernel: State | None
) -> None:
    monkeypatch.setattr("nagaya.kvm.probe.probe", lambda: host)
    found = _find(paths, "kvm")
    assert (found.state, found.found) == (state, host.sentence)
    assert [one.state for one in doctor.examine(paths) if one.name == "kvm kernel"] == (
        [kernel] if kernel else []
    )
    (paths.kernels / "kvm").mkdir(parents=True)
    assert kernel is None or _find(paths, "kvm kernel").state == State.OK


def test_missing_programs_come_with_the_package(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_args, **_kwargs: None)
    assert _find(paths, "mmdebstrap").fix == "apt-get install mmdebstrap"
    kernel = _find(paths, "kernel")
    assert kernel.state == State.FAIL
    assert "nagaya kernel build uml" in kernel.fix


def test_io_uring_is_tried_and_its_descriptor_closed(paths: Paths) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    assert _find(paths, "io_uring").state in State
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_host_without_psi_is_told_how_to_get_it(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nagaya.resources.pressure.host_pressure", HostPressure)
    finding = _find(paths, "pressure")
    assert finding.state == State.WARN
    assert finding.fix == "boot the host with psi=1"
