"""What a probe of the host finds, and what it says about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nagaya.errors import MachineFailedError
from nagaya.kvm import probe, system
from nagaya.kvm.probe import HostKvm
from nagaya.kvm.system import Kvm


@pytest.mark.kvm
def test_the_probe_agrees_with_the_cpus_flags() -> None:
    found = probe.probe()
    assert found.usable
    assert found.ring0_mips > 0
    assert found.native == bool({"vmx", "svm"} & probe.cpu_flags())
    assert "host" in found.models


@pytest.mark.kvm
def test_a_guest_that_does_not_come_back_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(probe, "_program", lambda: b"\xeb\xfe")  # jmp to itself
    with Kvm() as device, pytest.raises(MachineFailedError, match="did not end within"):
        probe.ring0_speed(device)


def test_a_host_without_kvm_is_an_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(system, "DEVICE", str(tmp_path / "kvm"))
    found = probe.probe()
    assert (found.usable, found.native) == (False, False)
    assert found.problem.startswith("there is no")
    assert found.hint
    assert found.sentence == found.problem


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (
            HostKvm(True, virtualization="VT-x", module="kvm_intel", ring0_mips=4000, max_vcpus=1024),
            "VT-x, kvm_intel: guest kernels run natively, up to 1024 vCPUs",
        ),
        (
            HostKvm(True, virtualization="AMD-V", nested=True, ring0_mips=4000, max_vcpus=288),
            "AMD-V, inside another virtual machine: guest kernels run natively, up to 288 vCPUs",
        ),
        (
            HostKvm(True, module="kvm_pvm", nested=True, ring0_mips=1.26),
            "no VT-x or AMD-V, kvm_pvm: guest kernels are emulated (1.3 million instructions a second)",
        ),
    ],
)
def test_sentences(found: HostKvm, sentence: str) -> None:
    assert found.sentence.startswith(sentence)
