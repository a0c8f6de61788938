"""Programs that close descriptors which they do not know, and open files of their own: those get the numbers.

3 MiB of array pages were written into such a file, which had got the segment's number; five descriptors were closed.
What gRPC does with its own sockets and epolls is not ours to mend: the program here leaves those open.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.server import Server

CODE = """
import os, sys, threading, gc, time
import pagefold
from support.worker import page_of

address, backing, directory = sys.argv[1:]
client = pagefold.connect(address, backing=backing, autostart=False)
PAGES = 256
first, second = client.allocate(PAGES * 4096), client.allocate(PAGES * 4096)
content = b"".join(page_of(n % 7 + 1) for n in range(PAGES))
model = bytearray(content)
for buffer in (first, second):
    memoryview(buffer)[:] = content
report = client.settle(timeout=20)
assert report.settled and client.stats().merged_bytes > PAGES * 4096, report

said = os.dup2(1, 250)  # the test hears of it by this one, which is above those that are closed
THEIRS = ("socket:", "pipe:", "anon_inode:[eventpoll]", "anon_inode:[eventfd]")
def is_grpcs(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith(THEIRS)
    except OSError:
        return False
closed = [n for n in range(3, 200) if not is_grpcs(n)]
for n in closed:
    os.closerange(n, n + 1)
files = {}
for n in closed:
    fd = os.open(f"{directory}/{n}", os.O_RDWR | os.O_CREAT)
    assert fd == n, (fd, n)
    files[fd] = os.fstat(fd).st_ino
    os.write(fd, b"mine")

def check():
    for fd, inode in files.items():
        found = os.fstat(fd)
        assert found.st_ino == inode, f"{fd} is another file"
        assert found.st_size == 4 and os.pread(fd, 9, 0) == b"mine", f"{fd} was written to"
    assert bytes(memoryview(first)) == bytes(model), "bytes of the first buffer"
    assert bytes(memoryview(second)) == content, "bytes of the second buffer"

check()
for page in range(0, PAGES, 3):  # they break, and would be adopted: written into the segment
    memoryview(first)[page * 4096 : page * 4096 + 4] = b"new!"
    model[page * 4096 : page * 4096 + 4] = b"new!"
check()
for act in (
    lambda: client.advise(first, mergeable=False),
    lambda: client.advise(first, mergeable=True),
    lambda: client.settle(timeout=2),
    lambda: client.allocate(1 << 20),
    lambda: client.stats(),
):
    try:
        act()
    except (pagefold.PagefoldError, OSError, RuntimeError) as error:
        assert not isinstance(error, MemoryError) or "memory" in str(error).lower()
    check()
child = os.fork()
if child == 0:
    check()
    memoryview(second)[:4] = b"kid!"
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
check()
view = memoryview(second)
view.release()
del second
gc.collect()
second = content
time.sleep(0.3)  # freed memory is given back by the session's thread, which nothing here can wait for
check()
closing = threading.Thread(target=client.close)
closing.daemon = True
closing.start()
closing.join(20)
for fd, inode in files.items():
    assert os.fstat(fd).st_ino == inode and os.pread(fd, 9, 0) == b"mine" and os.fstat(fd).st_size == 4
assert bytes(memoryview(first)) == bytes(model)
os.write(250, b"all is well")
os._exit(0)
"""


@pytest.mark.needs("uffd")
@pytest.mark.parametrize("backing", ["shm", "memfd"])
def test_files_that_got_our_numbers_are_neither_written_nor_closed(
    server: Server, tmp_path: Path, backing: str
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", CODE, server.address, backing, str(files)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "all is well", done.stdout + done.stderr
    assert {path.read_bytes() for path in files.iterdir()} == {b"mine"}
