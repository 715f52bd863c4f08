"""An ext4 image from a directory, the same bytes each time."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from nagaya.images.tools import Runner

_CONFIG = Path(__file__).parent / "data" / "mke2fs.conf"  # not the host's: the same image everywhere
_FIRST_INODE = 11  # lost+found; the files follow in the order in which mke2fs copies them
_ROOT_INODE = 2
_JOURNAL_MIB = 16


def make_ext4(
    runner: Runner,
    root: Path,
    image: Path,
    *,
    size: int,
    label: str,
    epoch: int,
    journal: bool,
    all_root: bool = False,
) -> None:
    """Write `image`, a sparse file of `size` bytes with the files of `root`, all owned by root if `all_root`.

    `epoch` (seconds) stands for every time that the file system itself records; the UUID and the hash seed
    follow from the label. Raises `BuildError`; a tree that does not fit says so.
    """
    identity = uuid.uuid5(uuid.NAMESPACE_DNS, f"{label}.nagaya")
    with image.open("wb") as file:
        file.truncate(size)
    extended = f"hash_seed={identity},assume_storage_prezeroed=1,nodiscard"
    runner.run(
        "write the file system",
        [
            *(
                "mke2fs",
                "-q",
                "-F",
                "-t",
                "ext4",
                "-m",
                "0",
                "-L",
                label,
                "-U",
                str(identity),
                "-E",
                extended,
            ),
            *(("-J", f"size={_JOURNAL_MIB}") if journal else ("-O", "^has_journal")),
            *("-d", root, image),
        ],
        env={"E2FSPROGS_FAKE_TIME": str(epoch), "MKE2FS_CONFIG": str(_CONFIG)},
    )
    _fix_inodes(runner, root, image, epoch, all_root)


def _fix_inodes(runner: Runner, root: Path, image: Path, epoch: int, all_root: bool) -> None:
    """mke2fs copies ctime and atime from the host, where nobody can set a ctime: overwrite both."""
    copied = {
        (Path(directory) / name).lstat().st_ino
        for directory, directories, files in os.walk(root)
        for name in (*directories, *files)
    }
    fields = dict.fromkeys(("ctime", "atime", "crtime"), f"@{epoch}")
    fields |= dict.fromkeys(("ctime_extra", "atime_extra", "crtime_extra", "mtime_extra"), "0")
    fields |= dict.fromkeys(("uid", "gid"), "0") if all_root else {}
    commands = [
        f"set_inode_field <{inode}> {field} {value}"
        for inode in (_ROOT_INODE, *range(_FIRST_INODE, _FIRST_INODE + len(copied) + 1))
        for field, value in fields.items()
    ]
    script = image.with_suffix(".debugfs")
    script.write_text("\n".join(commands) + "\n")
    runner.run(
        "fix the times", ["debugfs", "-w", "-f", script, image], env={"E2FSPROGS_FAKE_TIME": str(epoch)}
    )
    script.unlink()
