"""What of the memory of guests the kernel would merge is tried, not believed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nagaya.resources.ksm import merges_at_all, merges_guests, vm_flags

SMAPS = (
    "1000-2000 rw-p 0 00:00 0\nRss: 4 kB\nVmFlags: rd wr mg\n2000-3000 rw-s 0 00:01 7 /x\nVmFlags: rd sh\n"
)


def test_flags_are_those_of_the_mapping_at_the_address() -> None:
    assert vm_flags(SMAPS, 0x1FFF) == ["rd", "wr", "mg"]
    assert vm_flags(SMAPS, 0x2000) == ["rd", "sh"]
    assert vm_flags(SMAPS, 0x3000) == []


@given(st.text(), st.integers(0, 2**64))
def test_no_text_breaks_them(text: str, address: int) -> None:
    vm_flags(text, address)


def test_what_guests_share_is_merged_only_where_private_memory_is() -> None:
    assert merges_at_all() or not merges_guests()
