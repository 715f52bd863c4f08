"""What payloads rely on: their own start, all CPUs, and the report of a fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from nagaya.testing.bare import Bare
from nagaya.testing.payload import build

pytestmark = pytest.mark.kvm


def test_hello() -> None:
    with Bare(build("hello"), "a=1 b=2") as guest:
        assert guest.finish().startswith("HELLO from PVH, cmdline 'a=1 b=2'")


@pytest.mark.parametrize("cpus", [1, 2, 5])
def test_all_cpus_start(cpus: int) -> None:
    with Bare(build("smp"), f"cpus={cpus}", cpus=cpus) as guest:
        assert f"CPUS {cpus}\n" in guest.finish()


def test_a_fault_is_reported(tmp_path: Path) -> None:
    source = tmp_path / "faulty.c"
    source.write_text(
        '#include "payload.h"\nint main(void) { *(volatile int *)0x8000000000 = 1; return 0; }\n'
    )
    with Bare(build(source)) as guest:
        guest.said("EXIT 2\n")
        assert "FAULT vector 14 error 6" in guest.output and "cr2 8000000000" in guest.output


def test_a_failed_check_is_reported(tmp_path: Path) -> None:
    source = tmp_path / "checked.c"
    source.write_text('#include "payload.h"\nint main(void) { check(arg("n", 7) == 8); return 0; }\n')
    with Bare(build(source), "n=9") as guest:
        guest.said("EXIT 1\n")
        assert 'FAILED checked.c:2: arg("n", 7) == 8' in guest.output
    with Bare(build(source), "n=8") as guest:
        guest.finish()
