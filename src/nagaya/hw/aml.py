"""Writes AML, the bytecode of ACPI's namespace (ACPI 6.5, 20.2): each function returns the bytes of one term.

    device("RTC", name("_HID", eisa_id("PNP0B00")), name("_CRS", resources(io(0x70, 8), irq(8))))

Names are paths as in ASL: "PCI0", "\\\\_SB.PWRB". Segments shorter than four letters are padded.
"""

from __future__ import annotations

import struct
import uuid

from nagaya.abi import acpi

ZERO, ONE = acpi.ZERO_OP, acpi.ONE_OP


def local(number: int) -> bytes:
    """Local0 to Local7."""
    return bytes([acpi.LOCAL0_OP + number])


def arg(number: int) -> bytes:
    """Arg0 to Arg6."""
    return bytes([acpi.ARG0_OP + number])


def path(dotted: str) -> bytes:
    """A NameString (20.2.2)."""
    root = b"\\" if dotted.startswith("\\") else b""
    segments = [segment.ljust(4, "_").encode() for segment in dotted.removeprefix("\\").split(".") if segment]
    match len(segments):
        case 0:
            return root + b"\0"
        case 1:
            prefix = b""
        case 2:
            prefix = acpi.DUAL_NAME_PREFIX
        case count:
            prefix = acpi.MULTI_NAME_PREFIX + bytes([count])
    return root + prefix + b"".join(segments)


def integer(value: int) -> bytes:
    """The shortest constant (20.2.3)."""
    if value in (0, 1):
        return ONE if value else ZERO
    for prefix, size in ((acpi.BYTE_PREFIX, 1), (acpi.WORD_PREFIX, 2), (acpi.DWORD_PREFIX, 4)):
        if value < 1 << 8 * size:
            return prefix + value.to_bytes(size, "little")
    return acpi.QWORD_PREFIX + value.to_bytes(8, "little")


def string(text: str) -> bytes:
    """An ASCII string."""
    return acpi.STRING_PREFIX + text.encode("ascii") + b"\0"


def buffer(content: bytes) -> bytes:
    """A Buffer with `content`."""
    return _packaged(acpi.BUFFER_OP, integer(len(content)) + content)


def package(*elements: bytes) -> bytes:
    """A Package."""
    return _packaged(acpi.PACKAGE_OP, bytes([len(elements)]), *elements)


def name(dotted: str, value: bytes) -> bytes:
    """Name(dotted, value)."""
    return acpi.NAME_OP + path(dotted) + value


def scope(dotted: str, *terms: bytes) -> bytes:
    """Scope(dotted) {...}."""
    return _packaged(acpi.SCOPE_OP, path(dotted), *terms)


def device(dotted: str, *terms: bytes) -> bytes:
    """Device(dotted) {...}."""
    return _packaged(acpi.DEVICE_OP, path(dotted), *terms)


def method(dotted: str, arguments: int, *terms: bytes, serialized: bool = False) -> bytes:
    """Method(dotted, arguments) {...}."""
    return _packaged(acpi.METHOD_OP, path(dotted), bytes([arguments | serialized << 3]), *terms)


def memory_region(dotted: str, address: int, size: int) -> bytes:
    """OperationRegion(dotted, SystemMemory, address, size)."""
    space = bytes([acpi.SPACE_MEMORY])
    return acpi.OP_REGION_OP + path(dotted) + space + integer(address) + integer(size)


def dword_fields(region: str, *names: str) -> bytes:
    """Field(region, DWordAcc, NoLock, Preserve) of 32 bits each, one after the other."""
    fields = (path(field) + _package_length(32) for field in names)
    return _packaged(acpi.FIELD_OP, path(region), bytes([acpi.FIELD_DWORD_ACCESS]), *fields)


def create_dword_field(source: bytes, offset: int, dotted: str) -> bytes:
    """CreateDWordField(source, offset, dotted)."""
    return acpi.CREATE_DWORD_FIELD_OP + source + integer(offset) + path(dotted)


def store(value: bytes, target: bytes) -> bytes:
    """target = value."""
    return acpi.STORE_OP + value + target


def and_(left: bytes, right: bytes, target: bytes = ZERO) -> bytes:
    """left & right, also stored in `target` if there is one."""
    return acpi.AND_OP + left + right + target


def or_(left: bytes, right: bytes, target: bytes = ZERO) -> bytes:
    """left | right, also stored in `target` if there is one."""
    return acpi.OR_OP + left + right + target


def equal(left: bytes, right: bytes) -> bytes:
    """left == right."""
    return acpi.LEQUAL_OP + left + right


def not_equal(left: bytes, right: bytes) -> bytes:
    """left != right."""
    return acpi.LNOT_OP + equal(left, right)


def if_(condition: bytes, *terms: bytes) -> bytes:
    """If (condition) {...}."""
    return _packaged(acpi.IF_OP, condition, *terms)


def else_(*terms: bytes) -> bytes:
    """Else {...}, behind an `if_`."""
    return _packaged(acpi.ELSE_OP, *terms)


def notify(dotted: str, value: int) -> bytes:
    """Notify(dotted, value)."""
    return acpi.NOTIFY_OP + path(dotted) + integer(value)


def return_(value: bytes) -> bytes:
    """Return(value)."""
    return acpi.RETURN_OP + value


def eisa_id(text: str) -> bytes:
    """EisaId("PNP0A08"): three letters and four digits in 32 bits (6.1.5, 19.3.4)."""
    letters = [ord(letter) - 0x40 for letter in text[:3]]
    value = letters[0] << 26 | letters[1] << 21 | letters[2] << 16 | int(text[3:], 16)
    return integer(int.from_bytes(value.to_bytes(4, "big"), "little"))


def to_uuid(text: str) -> bytes:
    """ToUUID(text) (19.6.142)."""
    return buffer(uuid.UUID(text).bytes_le)


def resources(*descriptors: bytes) -> bytes:
    """A resource template: a Buffer of descriptors (6.4)."""
    return buffer(b"".join(descriptors) + acpi.END_TAG)


def irq(number: int) -> bytes:
    """IRQNoFlags: a line of ISA, edge-triggered, active high (6.4.2.1)."""
    return struct.pack("<BH", acpi.IRQ_TAG, 1 << number)


def interrupt(gsi: int, *, edge: bool = False) -> bytes:
    """Extended interrupt, active high, exclusive (6.4.3.6)."""
    flags = acpi.INTERRUPT_CONSUMER | (acpi.INTERRUPT_EDGE if edge else 0)
    return struct.pack("<BHBBI", acpi.INTERRUPT_TAG, 6, flags, 1, gsi)


def io(base: int, size: int) -> bytes:
    """I/O ports, all 16 address bits decoded (6.4.2.5)."""
    return struct.pack("<BBHHBB", acpi.IO_TAG, 1, base, base, 1, size)


def memory32(base: int, size: int) -> bytes:
    """Fixed memory below 4 GiB, read and write (6.4.3.4)."""
    return struct.pack("<BHBII", acpi.MEMORY32_FIXED_TAG, 9, 1, base, size)


def bus_numbers(first: int, last: int) -> bytes:
    """PCI buses that a host bridge hands down (6.4.3.5.3)."""
    return _space(acpi.WORD_SPACE_TAG, "H", acpi.SPACE_TYPE_BUS, 0, (first, last))


def io_window(first: int, last: int) -> bytes:
    """I/O ports that a host bridge hands down."""
    return _space(acpi.WORD_SPACE_TAG, "H", acpi.SPACE_TYPE_IO, acpi.IO_ENTIRE_RANGE, (first, last))


def memory_window(first: int, last: int) -> bytes:
    """Memory that a host bridge hands down, in 32 bits where they suffice (6.4.3.5.1, 6.4.3.5.2)."""
    wide = last >= 1 << 32
    tag, letter = (acpi.QWORD_SPACE_TAG, "Q") if wide else (acpi.DWORD_SPACE_TAG, "I")
    return _space(tag, letter, acpi.SPACE_TYPE_MEMORY, acpi.MEMORY_READ_WRITE, (first, last))


def _space(tag: int, letter: str, kind: int, specific: int, place: tuple[int, int]) -> bytes:
    """An address space descriptor: granularity 0, range, translation 0, length (6.4.3.5)."""
    first, last = place
    body = struct.pack(
        f"<BBB5{letter}", kind, acpi.SPACE_FIXED, specific, 0, first, last, 0, last - first + 1
    )
    return struct.pack("<BH", tag, len(body)) + body


def _packaged(opcode: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    for size in (1, 2, 3, 4):
        if len(body) + size < _length_limit(size):
            return opcode + _encode_length(len(body) + size, size) + body
    raise ValueError(f"an AML term of {len(body)} bytes is longer than a package length can say")


def _package_length(value: int) -> bytes:
    """A PkgLength that counts not itself, as fields do for their bits."""
    size = next(size for size in (1, 2, 3, 4) if value < _length_limit(size))
    return _encode_length(value, size)


def _length_limit(size: int) -> int:
    return 1 << 6 if size == 1 else 1 << 4 + 8 * (size - 1)


def _encode_length(value: int, size: int) -> bytes:
    """PkgLength (20.2.4): the first byte says how many follow, and has the lowest four (alone six) bits."""
    if size == 1:
        return bytes([value])
    return bytes([size - 1 << 6 | value & 0xF]) + (value >> 4).to_bytes(size - 1, "little")
