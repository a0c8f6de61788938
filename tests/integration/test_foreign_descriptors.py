"""Programs that close descriptors which they do not know, and open files of their own: those get the numbers.

3 MiB of array pages were written into such a file, which had got the segment's number; five descriptors were closed.
gRPC compares nothing: it wrote 12,000 lines to stderr, 8 bytes into a file that had the number of its eventfd, and
closed one that had that of its socket. So it is not called any more where its descriptors were closed. What it does by
itself is not ours to mend: the programs here close its descriptors while no call is under way, and not within the
first moments of a forked child, where its threads begin to poll and abort the process if they cannot. Nor do they
fork afterwards: gRPC's handler waits for such a thread, for ever.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import kernel
from support.programs import PRELUDE
from support.server import Server
from support.waiting import until

CODE = """
import os, sys, threading, gc, time
import pagefold
import pagefold_core
from support.worker import page_of

address, backing, directory, which = sys.argv[1:]
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
THEIRS = ("socket:", "pipe:", "anon_inode:[eventpoll]", "anon_inode:[eventfd]", "/memfd:pagefold-witness")
def is_grpcs(fd):
    try:
        return which == "ours" and os.readlink(f"/proc/self/fd/{fd}").startswith(THEIRS)
    except OSError:
        return False
closed = [n for n in range(3, 200) if not is_grpcs(n)]
files = {}
pagefold_core.before_fork()  # no call is under way
for n in closed:
    os.closerange(n, n + 1)
for n in closed:
    fd = os.open(f"{directory}/{n}", os.O_RDWR | os.O_CREAT)
    assert fd == n, (fd, n)
    files[fd] = os.fstat(fd).st_ino
    os.write(fd, b"mine")
pagefold_core.after_fork_in_parent()

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
if which == "all":
    trouble = client.stats().trouble
    assert "before pagefold.connect()" in trouble and not client.stats().connected, trouble
    try:
        pagefold.connect(address, autostart=False)
    except pagefold.DescriptorsClosed as error:
        assert "before pagefold.connect()" in str(error)
    else:
        raise AssertionError("gRPC was used")
    check()
if which == "ours":
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
@pytest.mark.parametrize("which", ["ours", "all"])
@pytest.mark.parametrize("backing", ["shm", "memfd"])
def test_files_that_got_our_numbers_are_neither_written_nor_closed(
    server: Server, tmp_path: Path, backing: str, which: str
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", CODE, server.address, backing, str(files), which],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "all is well", done.stdout + done.stderr
    assert {path.read_bytes() for path in files.iterdir()} == {b"mine"}
    assert len(done.stderr.splitlines()) < 10, done.stderr[:2000]


DAEMON = """
said = os.dup(1)
one, two, own = table(64), table(64), table(64, seed=5)
assert client.settle(20).settled
wanted = [array.copy() for array in (one, two, own)]
if os.fork():
    os._exit(0)  # without a word: neither closed nor collected
os.setsid()
if os.fork():
    os._exit(0)
time.sleep(0.5)  # see the head of this file
os.dup2(said, 250)
grpcs = ("anon_inode:", "socket:", "pipe:", "/memfd:pagefold-witness")
def is_kept(n):
    try:
        return sys.argv[3] == "ours" and os.readlink(f"/proc/self/fd/{n}").startswith(grpcs)
    except OSError:
        return False
closed = [n for n in range(3, 200) if not is_kept(n)]
for n in closed:
    os.closerange(n, n + 1)
files = {os.open(f"{sys.argv[2]}/{n}", os.O_RDWR | os.O_CREAT): n for n in closed}
assert list(files) == closed
for n in files:
    os.write(n, b"mine")

def check():
    for n in files:
        assert os.readlink(f"/proc/self/fd/{n}") == f"{sys.argv[2]}/{n}"
        assert os.fstat(n).st_size == 4 and os.pread(n, 9, 0) == b"mine", n
    for array, bytes in zip((one, two, own), wanted):
        assert (array == bytes).all()

check()
outcome = "attached"
try:
    client.reattach()
    three = table(64)
    assert client.settle(20).settled and client.stats().merged_bytes
except pagefold.DescriptorsClosed as error:
    assert "before pagefold.connect()" in str(error)
    outcome = "told"
check()
one[:3] = 7
wanted[0][:3] = 7
check()
if outcome == "attached":
    assert client.settle(20).settled
    check()
    child = os.fork()
    if not child:
        check()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    check()
client.close()
check()
os.write(250, outcome.encode())
"""


@pytest.mark.needs("uffd")
@pytest.mark.usefixtures("no_names")
@pytest.mark.parametrize(("which", "outcome"), [("ours", "attached"), ("all", "told")])
def test_a_daemon_that_closes_all_descriptors_goes_on(
    serve: Callable[..., Server], tmp_path: Path, which: str, outcome: str
) -> None:
    pytest.importorskip("numpy")
    server = serve(sweep_seconds=0.5)
    files = tmp_path / "files"
    files.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + DAEMON, server.address, str(files), which],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.DEVNULL,
        capture_output=True,  # until the last process that has it is gone
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == outcome, done.stdout + done.stderr
    assert {path.read_bytes() for path in files.iterdir()} == {b"mine"}
    assert len(done.stderr.splitlines()) < 10, done.stderr[:2000]
    until(lambda: server.status().clients == 0, what="the server noticing that all are gone")
    until(lambda: not [name for name in kernel.names() if "pagefold-p-" not in name], what="the names going")
