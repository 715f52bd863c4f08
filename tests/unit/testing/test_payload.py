"""Payload guests are built once for each content, and both boot protocols find their entry."""

from __future__ import annotations

from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment

from nagaya.errors import BuildError, NotFoundError
from nagaya.testing.payload import build, guests

MIB = 1 << 20


@pytest.fixture(autouse=True)
def cache(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NAGAYA_CACHE_DIR", str(directory))
    return directory


def test_an_elf_file_with_both_entries() -> None:
    with build("hello").open("rb") as file:
        elf = ELFFile(file)
        assert elf.header.e_entry == MIB
        (segment,) = elf.iter_segments("PT_NOTE")
        assert isinstance(segment, NoteSegment)
        (note,) = segment.iter_notes()
        assert (note["n_name"], note["n_descsz"]) == ("Xen", 8)
        entry32 = int.from_bytes(note["n_descdata"], "little")
        (load,) = elf.iter_segments("PT_LOAD")
        assert load["p_paddr"] == load["p_vaddr"] == MIB
        assert MIB < entry32 < MIB + load["p_filesz"]


def test_what_was_built_is_not_built_again(cache: Path) -> None:
    first = build("hello")
    made = first.stat().st_mtime_ns
    assert build("hello") == first
    assert first.stat().st_mtime_ns == made
    assert list(cache.rglob("*.elf")) == [first]


def test_another_content_is_another_file(directory: Path) -> None:
    source = directory / "mine.c"
    source.write_text('#include "payload.h"\nint main(void) { return STATUS; }\n')
    one, two = build(source, "STATUS=1"), build(source, "STATUS=2")
    source.write_text('#include "payload.h"\nint main(void) { return STATUS + 1; }\n')
    assert len({one, two, build(source, "STATUS=1")}) == 3


def test_an_error_of_the_compiler_is_told(directory: Path, cache: Path) -> None:
    source = directory / "wrong.c"
    source.write_text("int main(void) { return missing; }\n")
    with pytest.raises(BuildError, match=r"(?s)wrong\.c.*missing"):
        build(source)
    assert not list(cache.rglob("*.new"))


def test_an_unknown_name_tells_the_known() -> None:
    assert "hello" in guests()
    with pytest.raises(NotFoundError, match="hello"):
        build("nonesuch")
    with pytest.raises(NotFoundError, match="/nonexistent"):
        build(Path("/nonexistent/x.c"))
