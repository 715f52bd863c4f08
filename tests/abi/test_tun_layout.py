"""The tap's constants against the system's headers, by its own compiler."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

from nagaya.abi import tun


def test_constants_are_the_headers(tmp_path: Path) -> None:
    names = [name for name in vars(tun) if name.startswith(("TUN", "IFF_", "IFNAMSIZ"))]
    known = [
        name for name in names if not name.startswith("TUN_F_USO")
    ]  # Linux 6.2; Debian 12 has 6.1's headers
    source = tmp_path / "tun.c"
    lines = "".join(f'printf("%ld\\n", (long){name});' for name in (*known, "sizeof(struct ifreq)"))
    includes = "".join(
        f"#include <{name}>\n" for name in ("stdio.h", "sys/ioctl.h", "linux/if.h", "linux/if_tun.h")
    )
    source.write_text(f"{includes}int main(void) {{ {lines} return 0; }}\n")
    subprocess.run(["cc", "-o", tmp_path / "tun", source], check=True)
    output = subprocess.run([tmp_path / "tun"], check=True, capture_output=True, text=True).stdout
    expected = [getattr(tun, name) for name in known]
    assert [int(line) for line in output.split()] == [*expected, struct.calcsize(f"{tun.IFNAMSIZ}sH22x")]
