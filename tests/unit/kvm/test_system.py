"""/dev/kvm, and the hosts that lack it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nagaya.abi import kvm
from nagaya.errors import PermissionDeniedError, ResourceError, UnavailableError, UnsupportedError
from nagaya.hw.wires import RamRegion
from nagaya.kvm import system
from nagaya.kvm.memory import GuestMemory
from nagaya.kvm.system import Kvm, array, ioctl
from nagaya.kvm.vm import MAX_VCPUS, Vm


def test_no_device_says_what_to_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(system, "DEVICE", str(tmp_path / "kvm"))
    with pytest.raises(UnavailableError, match="there is no /") as caught:
        Kvm()
    assert "kvm_intel" in caught.value.hint


@pytest.mark.root
def test_no_permission_says_which_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch(0o000)
    monkeypatch.setattr(system, "DEVICE", str(device))
    tmp_path.chmod(0o755)
    tmp_path.parent.chmod(0o755)
    pid = os.fork()
    if pid == 0:
        os.setuid(65534)
        try:
            Kvm()
        except PermissionDeniedError as error:
            os._exit(10 + ("group kvm" in error.hint))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 11


def test_another_file_is_no_kvm(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    fd = os.open(path, os.O_RDWR)
    with pytest.raises(OSError, match="KVM ioctl"):
        Kvm(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)  # it was the Kvm's to close


def test_header_and_entries_are_one_buffer() -> None:
    buffer = array(kvm.Msrs(nmsrs=2), [kvm.MsrEntry(index=1), kvm.MsrEntry(index=2, data=3)])
    assert bytes(buffer) == bytes(kvm.Msrs(nmsrs=2)) + bytes(kvm.MsrEntry(index=1)) + bytes(
        kvm.MsrEntry(index=2, data=3)
    )


@pytest.mark.kvm
def test_the_device_is_checked_and_closed() -> None:
    with Kvm() as device:
        assert device.check_extension(kvm.KVM_CAP_IRQCHIP)
        assert device.max_vcpus >= 1
        assert device.run_size() >= 4096
        assert 0x174 in device.msr_indices()
        assert {entry.function for entry in device.supported_cpuid()} >= {0, 1, 0x40000000, 0x80000001}
    assert device.fd == -1
    device.close()


@pytest.mark.kvm
@pytest.mark.parametrize("deadline", [0, 1])
def test_the_tsc_deadline_timer_is_there_if_the_capability_is(
    monkeypatch: pytest.MonkeyPatch, deadline: int
) -> None:
    bare = (kvm.CpuidEntry(function=0), kvm.CpuidEntry(function=1, ecx=1))
    with Kvm() as device:
        monkeypatch.setattr(system, "cpuid_entries", lambda *_: bare)
        monkeypatch.setattr(device, "check_extension", lambda _: deadline)
        assert [entry.ecx for entry in device.supported_cpuid()] == [0, 1 | deadline << 24]


@pytest.mark.kvm
def test_a_host_that_lacks_a_capability_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(system.REQUIRED, "S390_PSW", 42)
    with pytest.raises(UnsupportedError, match="lacks KVM_CAP_S390_PSW"):
        Kvm()


@pytest.mark.kvm
def test_a_vm_closes_with_all_that_it_has() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with Kvm() as device, GuestMemory(1 << 20) as memory, Vm(device, memory.regions) as vm:
        os.close(vm.create_vcpu(0))
        assert len(list(Path("/proc/self/fd").iterdir())) > before
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.kvm
def test_memory_that_kvm_refuses_is_an_error_with_its_address() -> None:
    with Kvm() as device, Vm(device) as vm, pytest.raises(ResourceError, match="at 0x1001"):
        vm.add_memory(RamRegion(0x1001, 4096, -1, 0, 0))


@pytest.mark.kvm
def test_too_many_vcpus_are_refused_with_the_bound() -> None:
    with Kvm() as device, Vm(device) as vm, pytest.raises(UnsupportedError, match="at most"):
        vm.create_vcpu(MAX_VCPUS)


@pytest.mark.kvm
def test_a_capability_that_is_not_there_is_not_enabled() -> None:
    with Kvm() as device, Vm(device) as vm:
        assert not vm.enable(42)  # KVM_CAP_S390_PSW


@pytest.mark.kvm
def test_an_ioctl_that_fails_says_which() -> None:
    with Kvm() as device, pytest.raises(OSError, match="KVM ioctl 0xae80"):
        ioctl(device.fd, kvm.KVM_RUN)
