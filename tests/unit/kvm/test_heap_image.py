"""A fork of Python gives back what it has copied in vain, and loses nothing of what it has changed."""

from __future__ import annotations

import subprocess
import sys

import pytest

# In a process of its own: an image is of all its memory.
PREPARE = """
import os, re
from nagaya._core import HeapImage
objects = [f"object {number}" for number in range(300_000)]
image = HeapImage()

def copied():
    rollup = open("/proc/self/smaps_rollup").read()
    return int(re.search(r"Private_Dirty: +(\\d+)", rollup)[1]) * 1024

def intact():
    return all(one == f"object {number}" for number, one in enumerate(objects))

def restore():
    maps = os.open("/proc/self/maps", os.O_RDONLY)
    try:
        return image.restore(maps)
    finally:
        os.close(maps)

def in_a_fork(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""


def python(program: str) -> str:
    """What a program prints, after `PREPARE`; it may not fail."""
    done = subprocess.run(
        [sys.executable, "-c", PREPARE + program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pages_that_are_as_before_are_shared_again() -> None:
    said = python("""
def work():
    for one in objects:
        pass  # a reference more, and one less
    before = copied()
    given = restore()
    print(before, copied(), given, intact(), restore(), flush=True)

in_a_fork(work)
""")
    before, after, given, intact, again = said.split()
    assert int(before) > 16 << 20
    assert int(after) < 6 << 20
    assert int(given) >= int(before) - int(after)
    assert intact == "True"
    assert again == "0"


def test_what_was_changed_stays_in_its_process() -> None:
    python("""
def work():
    objects[::100] = [number for number in range(3000)]
    kept = objects[50::100]  # a reference more each
    restore()
    assert objects[::100] == list(range(3000)) and len(kept) == 3000
    del kept
    objects[::100] = [f"object {number}" for number in range(0, 300_000, 100)]
    assert intact()

in_a_fork(work)
assert intact()
objects[7] = "other"  # after the image: forks from now on have it
in_a_fork(lambda: (restore(), objects.index("other", 7, 8)))
""")


def test_what_was_freed_since_and_is_another_mapping_now_is_left_alone() -> None:
    """Freed, a large object is no memory at all; and what is mapped there next may have the same content."""
    said = python("""
import ctypes, mmap
size = 8 << 20
big = bytearray(b"x" * size)
address = ctypes.addressof((ctypes.c_char * size).from_buffer(big))
page = -(-address // 4096) * 4096
image = HeapImage()

def freed():
    global big
    del big
    restore()

def another():
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    fixed = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10
    assert libc.mmap(page, 4096, mmap.PROT_READ | mmap.PROT_WRITE, fixed, -1, 0) == page
    ctypes.memset(page, ord("x"), 4096)
    restore()
    print(ctypes.string_at(page, 4096) == b"x" * 4096, flush=True)

in_a_fork(freed)
in_a_fork(another)
""")
    assert said == "True\n"


@pytest.mark.root
def test_nobody_can_change_an_image() -> None:
    """Not even root, whom the kernel lets open what others have mapped: all machines share it."""
    said = python("""
for line in open("/proc/self/maps"):
    if "heap-image" in line:
        break
file = os.open("/proc/self/map_files/" + line.split()[0], os.O_RDWR)
for change in (lambda: os.pwrite(file, b"x", 0), lambda: os.ftruncate(file, 0)):
    try:
        change()
    except PermissionError:
        print("refused")
""")
    assert said.split() == ["refused", "refused"]


def test_a_process_with_threads_is_refused() -> None:
    python("""
import threading
end = threading.Event()
other = threading.Thread(target=end.wait)
other.start()
try:
    HeapImage()
except OSError as error:
    assert "one thread" in str(error), error
else:
    raise AssertionError("made")
finally:
    end.set()
    other.join()
""")
