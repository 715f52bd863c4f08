"""/dev/kvm itself: opened, checked, asked what it can do. And the one function that makes ioctls."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence

from nagaya.abi import kvm, x86
from nagaya.closing import Closing
from nagaya.errors import PermissionDeniedError, UnavailableError, UnsupportedError

DEVICE = "/dev/kvm"

# What a machine cannot do without. All are there since Linux 4.12.
REQUIRED = {
    "IRQCHIP": kvm.KVM_CAP_IRQCHIP,
    "PIT2": kvm.KVM_CAP_PIT2,
    "IRQFD": kvm.KVM_CAP_IRQFD,
    "IOEVENTFD": kvm.KVM_CAP_IOEVENTFD,
    "IRQ_ROUTING": kvm.KVM_CAP_IRQ_ROUTING,
    "IMMEDIATE_EXIT": kvm.KVM_CAP_IMMEDIATE_EXIT,
    "VCPU_EVENTS": kvm.KVM_CAP_VCPU_EVENTS,
    "MP_STATE": kvm.KVM_CAP_MP_STATE,
}

_CPUID_ENTRIES = 256  # the kernel's KVM_MAX_CPUID_ENTRIES

_libc_ioctl = ctypes.CDLL(None, use_errno=True).ioctl
_libc_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)


def ioctl(fd: int, request: int, argument: ctypes._CData | int = 0) -> int:
    """ioctl(2) without the interpreter's lock; a structure is passed by address. Raises `OSError`."""
    pointer = argument if isinstance(argument, int) else ctypes.addressof(argument)
    result: int = _libc_ioctl(fd, request, pointer)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"KVM ioctl {request:#x}: {os.strerror(number)}")
    return result


def array(header: ctypes.Structure, entries: Sequence[ctypes.Structure]) -> ctypes.Array[ctypes.c_char]:
    """`header` and the flexible array behind it in one buffer."""
    content = b"".join((header, *entries))
    return ctypes.create_string_buffer(content, len(content))


def cpuid_entries(fd: int, request: int) -> tuple[kvm.CpuidEntry, ...]:
    """What a KVM_GET_*CPUID* answers."""
    size = ctypes.sizeof(kvm.Cpuid)
    buffer = ctypes.create_string_buffer(size + _CPUID_ENTRIES * ctypes.sizeof(kvm.CpuidEntry))
    header = kvm.Cpuid.from_buffer(buffer)
    header.nent = _CPUID_ENTRIES
    ioctl(fd, request, buffer)
    return tuple((kvm.CpuidEntry * header.nent).from_buffer_copy(buffer, size))


class Kvm(Closing):
    """The open /dev/kvm. A context manager."""

    def __init__(self, fd: int = -1) -> None:
        """Take over `fd`, or open the device. Raises a `NagayaError` that says what to do."""
        self.fd = fd if fd >= 0 else _open()
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the device. VMs live on."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def check_extension(self, capability: int) -> int:
        """What KVM_CHECK_EXTENSION says of a KVM_CAP_*: 0 is no, and a number may be a limit."""
        return ioctl(self.fd, kvm.KVM_CHECK_EXTENSION, capability)

    @property
    def max_vcpus(self) -> int:
        """The most vCPUs that a VM may have."""
        return self.check_extension(kvm.KVM_CAP_MAX_VCPUS) or self.check_extension(kvm.KVM_CAP_NR_VCPUS)

    def run_size(self) -> int:
        """The bytes of a vCPU's shared page(s)."""
        return ioctl(self.fd, kvm.KVM_GET_VCPU_MMAP_SIZE)

    def create_vm(self) -> int:
        """The fd of a new VM. Raises `OSError`."""
        while True:
            try:
                return ioctl(self.fd, kvm.KVM_CREATE_VM)
            except InterruptedError:
                continue  # a signal while the kernel set up its MMU notifier

    def supported_cpuid(self) -> tuple[kvm.CpuidEntry, ...]:
        """The CPUID leaves that this host can give to a guest with an in-kernel irqchip."""
        entries = cpuid_entries(self.fd, kvm.KVM_GET_SUPPORTED_CPUID)
        if self.check_extension(kvm.KVM_CAP_TSC_DEADLINE_TIMER):  # older kernels say it here alone
            for entry in entries:
                if entry.function == x86.LEAF_FEATURES:
                    entry.ecx |= x86.Leaf1Ecx.TSC_DEADLINE.mask
        return entries

    def msr_indices(self) -> tuple[int, ...]:
        """The MSRs that belong to a vCPU's state (KVM_GET_MSR_INDEX_LIST)."""
        count = kvm.MsrList(nmsrs=0)
        try:
            ioctl(self.fd, kvm.KVM_GET_MSR_INDEX_LIST, count)
        except OSError as error:
            if error.errno != errno.E2BIG:  # which says how many there are
                raise
        buffer = ctypes.create_string_buffer(bytes(count) + bytes(4 * count.nmsrs), 4 + 4 * count.nmsrs)
        ioctl(self.fd, kvm.KVM_GET_MSR_INDEX_LIST, buffer)
        return tuple((ctypes.c_uint32 * count.nmsrs).from_buffer_copy(buffer, 4))

    def _check(self) -> None:
        version = ioctl(self.fd, kvm.KVM_GET_API_VERSION)
        if version != kvm.API_VERSION:
            raise UnsupportedError(
                f"{DEVICE} has API version {version}, the kvm engine needs {kvm.API_VERSION}",
                hint="use a newer kernel, or engine: uml",
            )
        missing = [name for name, capability in REQUIRED.items() if not self.check_extension(capability)]
        if missing:
            raise UnsupportedError(
                f"{DEVICE} lacks KVM_CAP_{', KVM_CAP_'.join(missing)}",
                hint="use Linux 4.12 or newer with KVM's in-kernel irqchip, or engine: uml",
            )


def _open() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise UnavailableError(
            f"there is no {DEVICE}",
            hint="enable virtualization in the firmware, load kvm_intel or kvm_amd; or use engine: uml",
        ) from error
    except PermissionError as error:
        raise PermissionDeniedError(
            f"uid {os.geteuid()} may not open {DEVICE}: {error.strerror}",
            hint="join the group kvm (usermod -aG kvm USER) and log in again, or run as root",
        ) from error
    except OSError as error:
        raise UnavailableError(
            f"{DEVICE} does not open: {error.strerror}", hint="is a KVM module for this CPU loaded? see dmesg"
        ) from error
