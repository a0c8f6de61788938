"""Forks that cannot have all that they need. In programs of their own: descriptors are taken from the whole process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def run(code: str) -> None:
    """Runs a program, where `support` is found; what it raises fails the test."""
    command, tests = [sys.executable, "-c", code], Path(__file__).parents[1]
    done = subprocess.run(command, cwd=tests, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.needs("uffd")
def test_a_fork_that_can_have_no_lease_is_right_and_counts_as_living_for_ever() -> None:
    code = """
import os, resource
from support.children import Child
from support.spaces import Bench, page_of

b = Bench(pages=8)
for page in range(8):
    b.put(page, page)
before = bytes(b.bytes)
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))   # none is left
pid = os.fork()
if pid == 0:
    same = bytes(b.bytes) == before
    b.put(1, 7)
    os._exit(0 if same else 1)
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert "a lease for a forked child" in b.space.fork_trouble()
assert b.space.fork_trouble() is None
for _ in range(3):
    assert b.space.thaw() is False
assert bytes(b.bytes) == before and b.space.counts().frozen == 8

# What is made since is not concerned, though later forks freeze it too.
segment = os.memfd_create("segment")
os.ftruncate(segment, 4 * 4096)
b.space.add_view(2, segment, 4)
new = b.space.block(2, 0, 4 * 4096)
memoryview(new)[:4] = b"late"
Child(lambda: b.put(1, 9)).go()
assert b.space.counts().frozen == 12
assert b.space.thaw() is False
assert b.space.counts().frozen == 8
assert bytes(memoryview(new)[:5]) == b"late\\0" and bytes(b.bytes) == before
b.close()
"""
    run(code)


@pytest.mark.needs("uffd")
def test_under_a_limit_a_child_gets_its_memory_where_what_is_used_cannot_be_asked() -> None:
    """Without a descriptor for /proc all of RLIMIT_DATA counted as used, and the child faulted."""
    code = """
import os, resource
from support.spaces import Bench

b = Bench(pages=8)
for page in range(8):
    b.put(page, page)
before = bytes(b.bytes)
kinds = resource.RLIMIT_DATA, resource.RLIMIT_NOFILE
limits = [resource.getrlimit(kind) for kind in kinds]
for kind, limit in zip(kinds, (1 << 33, 3)):     # room for everything; and no descriptor is left
    resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))
pid = os.fork()
if pid == 0:
    os._exit(0 if bytes(b.bytes) == before else 1)
for kind, limit in zip(kinds, limits):
    resource.setrlimit(kind, limit)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert bytes(b.bytes) == before and b.space.counts().frozen == 8
b.close()
"""
    run(code)


def test_a_signal_that_comes_when_a_fork_is_over_may_fork() -> None:
    """The handler of such a signal found the list of what is held back in use: SIGABRT."""
    code = """
import ctypes, os, signal, threading
import pagefold_core

libc = ctypes.PyDLL(None)
main, children = threading.get_ident(), []

@ctypes.CFUNCTYPE(None)
def prepare():
    if not children:
        children.append(0)
        signal.pthread_kill(main, signal.SIGUSR1)   # is held back until the fork is over

@ctypes.CFUNCTYPE(None, ctypes.c_int)
def handle(number):
    children[0] = libc.fork()
    if children[0] == 0:
        os._exit(0)

assert getattr(libc, "__register_atfork")(prepare, None, None, None) == 0
libc.signal(signal.SIGUSR1, handle)
pagefold_core.hold_signals_over_forks()             # encloses the handler above
children.append(os.fork())
if children[1] == 0:
    os._exit(0)
assert all(children), "the signal came"
for pid in children:
    assert os.waitpid(pid, 0) == (pid, 0)
"""
    run(code)


@pytest.mark.needs("uffd")
def test_memory_whose_take_over_is_refused_can_be_taken_over_later() -> None:
    """It was taken out of the books of the parent's space first, and was in none when the rest was refused."""
    code = """
import os
from support.children import Child
from support.spaces import Bench, page_of
from pagefold_core import Space

b = Bench(pages=8)
for page in range(8):
    b.put(page, page)
assert b.merge(0, 8, 0) == 8

def attach():
    [(address, pages)] = b.space.heritage()
    lease, segment = os.memfd_create("lease"), os.memfd_create("segment")
    os.ftruncate(segment, pages * 4096)
    small = os.memfd_create("small")
    os.ftruncate(small, 4096)
    mine = Space("uffd", lease, 1000)
    mine.add_view(7, segment, pages)
    for number, fd in ((7, segment), (8, small)):
        try:
            mine.take_over(b.space, address, number, fd)
        except ValueError:
            pass
        else:
            raise AssertionError("it is refused")
        assert b.space.heritage() == [(address, pages)]
        assert not mine.pending()
    assert mine.take_over(b.space, address, 8, segment)
    assert mine.counts().merged == 8 and b.space.heritage() == []
    assert not mine.take_over(b.space, address, 9, segment)
    assert all(b.get(page) == page_of(page) for page in range(8))

Child(attach).go()
assert all(b.get(page) == page_of(page) for page in range(8))
b.close()
"""
    run(code)


@pytest.mark.needs("uffd")
@pytest.mark.parametrize("readable", [True, False])
def test_a_fork_copies_what_is_pinned_and_allocates_none_of_its_holes(readable: bool) -> None:
    """Pinned pages were copied through their mapping: a fresh buffer of holes became as much memory, or SIGBUS where
    /dev/shm was full. Where the segment cannot be read, the kernel copies through the mapping after all."""
    code = f"""
import os
from support.children import Child
from support.faults import arm, disarm
from support.spaces import Bench, page_of

readable = {readable}
b = Bench(pages=1024)
b.put(5, 5)
b.put(700, 7)
before = bytes(page_of(5))
b.space.pin(1, 0, 1024)
held = b.allocated()
assert held == 2
if not readable:
    arm("freeze.read", "error:5")

def look():
    assert b.get(5) == page_of(5) and b.get(700) == page_of(7)
    assert not any(b.get(6)) and not any(b.get(1023))
    b.put(6, 1)
    b.put(5, 2)

Child(look).go()
disarm()
assert not readable or b.allocated() == held, b.allocated()
assert b.get(5) == before and not any(bytes(b.bytes[6 * 4096:7 * 4096]))
b.space.unpin(1, 0, 1024)
b.close()
"""
    run(code)


def test_a_child_of_a_program_without_a_space_knows_that_the_fork_is_over() -> None:
    """Its thread counted as one that forks: it could never connect."""
    code = """
import os
import pagefold
from pagefold_core import Turn, call, can_attach
pid = os.fork()
if pid == 0:
    try:
        assert call(lambda _: 7) == 7
        with Turn():
            os._exit(0 if can_attach() else 2)
    finally:
        os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert call(lambda _: 8) == 8
"""
    run(code)
