"""Segments and control registers."""

from __future__ import annotations

from nagaya.abi import x86


def test_flat_descriptors_are_the_well_known_numbers() -> None:
    assert x86.CODE64 == 0x00AF_9B00_0000_FFFF
    assert x86.CODE32 == 0x00CF_9B00_0000_FFFF
    assert x86.DATA32 == 0x00CF_9300_0000_FFFF


def test_loading_a_flat_descriptor_reaches_4_gib() -> None:
    code = x86.segment(0x10, x86.CODE64)
    assert (code.base, code.limit, code.selector) == (0, 0xFFFF_FFFF, 0x10)
    assert (code.type, code.s, code.l, code.db, code.g, code.present) == (0xB, 1, 1, 0, 1, 1)


def test_a_limit_in_bytes_is_taken_as_it_is() -> None:
    assert x86.segment(8, x86.TSS32).limit == 0x67


def test_a_base_is_put_together() -> None:
    descriptor = x86.DATA32.replace(BASE_LOW=0x34_5678, BASE_HIGH=0x12)
    assert x86.segment(8, descriptor).base == 0x1234_5678


def test_a_real_mode_segment_is_its_selector() -> None:
    segment = x86.real_mode_segment(0x8000)
    assert (segment.base, segment.selector, segment.limit) == (0x8000, 0x800, 0xFFFF)


def test_control_registers_print_their_bits() -> None:
    assert str(x86.CR0(0x8000_0011)) == "0x80000011 (PE ET PG)"
    assert str(x86.EFER.of(LME=1, LMA=1)) == "0x500 (LME LMA)"
