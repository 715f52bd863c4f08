"""The host's mirrors are found in both formats of apt; other archives are left out."""

from __future__ import annotations

from pathlib import Path

from nagaya.images.apt import mirror_lines

DEB822 = """\
Types: deb deb-src
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
 contrib

Types: deb
URIs: http://other.example/tools
Suites: bookworm
Components: stable

Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
Enabled: no
"""


def write(directory: Path, name: str, text: str) -> None:
    (directory / "sources.list.d").mkdir(exist_ok=True)
    (directory / name).write_text(text)


def test_deb822(tmp_path: Path) -> None:
    write(tmp_path, "sources.list.d/debian.sources", DEB822)
    assert mirror_lines("bookworm", tmp_path) == [
        "deb http://mirror.example/debian bookworm main contrib",
        "deb http://mirror.example/debian bookworm-updates main contrib",
    ]


def test_one_line(tmp_path: Path) -> None:
    write(
        tmp_path,
        "sources.list",
        "# deb http://no.example x main\ndeb [arch=amd64] http://a.example/debian bookworm main # yes\n"
        "deb-src http://a.example/debian bookworm main\ndeb http://a.example/sec bookworm-security main\n",
    )
    assert mirror_lines("bookworm", tmp_path) == [
        "deb http://a.example/debian bookworm main",
        "deb http://a.example/sec bookworm-security main",
    ]


def test_a_host_of_another_release_gives_no_mirror(tmp_path: Path) -> None:
    write(tmp_path, "sources.list", "deb http://a.example/debian trixie main\n")
    assert mirror_lines("bookworm", tmp_path) == []
    assert mirror_lines("bookworm", tmp_path / "missing") == []
