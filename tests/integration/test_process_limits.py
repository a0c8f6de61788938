"""A process runs into the kernel's limits in the middle of its work: mappings, descriptors, address space, memory.

The rule: the program keeps its bytes; what cannot be done is refused with an error that says what to do, or left
undone; and when there is room again, work goes on.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pagefold_proto.v1 import admin_pb2
from support import kernel
from support.server import Server
from support.waiting import until
from support.worker import PAGE, Worker, page_of

pytestmark = pytest.mark.needs("uffd")

Work = Callable[..., Worker]
PAGES = 512

# Uses up all mappings but so many: neighbours that differ in their protection cannot become one.
USE_UP = """
import ctypes, mmap
def run(remote, left):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    page = mmap.PAGESIZE
    with open("/proc/sys/vm/max_map_count") as file:
        size = 2 * (int(file.read()) + 100) * page
    base = libc.mmap(None, size, 0, 0x4022, -1, 0)  # PROT_NONE; MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
    remote.filler = (base, size)
    made = 1  # the first would only move the border to its neighbour
    while libc.mprotect(base + made * page, page, 1) == 0:
        made += 2  # a mapping of its own, and the rest behind it
    for _ in range((left + 1) // 2):
        made -= 2
        assert libc.mprotect(base + made * page, page, 0) == 0
"""
# Without mappings malloc cannot make any either: it is to take its memory from the heap that it has. What is tested is
# what pagefold does, not what a program without memory does.
FRUGAL = {
    "PYTHONMALLOC": "malloc",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
GIVE_BACK = """
import ctypes
def run(remote):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    assert libc.munmap(*remote.filler) == 0
"""


def differing(work: Work, **options: object) -> tuple[Worker, Worker]:
    """Two workers that share every second page: each merged page is isolated, and costs two mappings."""
    one, two = work(**options), work(**options)
    for n, w in enumerate((one, two)):
        w.call("allocate", "a", PAGES * PAGE)
        w.call("fill_pages", "a", [p + 1 if p % 2 else 10_000 * (n + 1) + p for p in range(PAGES)])
    return one, two


def content(w: Worker) -> list[bytes]:
    whole = w.call("read", "a", 0, PAGES * PAGE)
    return [whole[p * PAGE : (p + 1) * PAGE] for p in range(PAGES)]


@pytest.mark.parametrize("left", [0, 2, 20])
def test_merging_runs_out_of_mappings(left: int, server: Server, work: Work) -> None:
    server.configure(run=0)
    one, two = differing(work, env=FRUGAL, mapping_budget=1_000_000)  # so that pagefold's own guard does not come first
    before = content(one), content(two)
    one.call("execute", USE_UP, left)
    server.configure(run=1)
    report = two.call("settle", 20)
    assert report.pages_over_budget > 0
    assert "vm.max_map_count" in server.status().trouble
    assert (content(one), content(two)) == before
    assert one.call("stats").merged_bytes < PAGES // 2 * PAGE
    assert server.status().counters.pages_declined > 0
    one.call("write", "a", PAGE, b"writable")
    assert one.call("read", "a", PAGE, 8) == b"writable"
    one.call("execute", GIVE_BACK)
    one.call("fill_pages", "a", [p + 1 if p % 2 else 10_000 + p for p in range(PAGES)])
    until(
        lambda: two.call("settle", 20).settled and one.call("stats").merged_bytes == PAGES // 2 * PAGE,
        30,
        "merging with mappings again",
    )
    assert (content(one), content(two)) == before


ADVISE_SCATTERED = """
import mmap
def run(remote):
    whole = memoryview(remote.buffers["a"])
    for at in range(mmap.PAGESIZE, len(whole), 4 * mmap.PAGESIZE):
        remote.client.advise(whole[at : at + mmap.PAGESIZE], mergeable=False)
"""


@pytest.mark.parametrize("left", [0, 1])
def test_adopting_runs_out_of_mappings(left: int, server: Server, work: Work) -> None:
    one, two = work(env=FRUGAL, mapping_budget=1_000_000), work()
    for w in (one, two):
        w.call("allocate", "a", PAGES * PAGE)
        w.call("fill_pages", "a", list(range(1, PAGES + 1)))
    assert one.call("settle").settled
    before = content(two)
    one.call("execute", USE_UP, left)
    # Copies in the middle of one long mapping: to adopt one of them takes two more mappings.
    for page in range(1, PAGES, 4):
        one.call("write", "a", page * PAGE, b"written")
    with pytest.raises(MemoryError, match=r"max_map_count"):
        one.call("execute", ADVISE_SCATTERED)
    now = [b"written" + was[7:] if page % 4 == 1 else was for page, was in enumerate(before)]
    assert content(one) == now
    two.call("settle", 20)
    assert content(one) == now
    assert content(two) == before
    one.call("execute", GIVE_BACK)
    one.call("advise", "a", False)
    assert one.call("stats").owned_bytes == PAGES * PAGE
    assert content(one) == now


# Descriptors

LIMIT_FILES = """
import os, resource
def run(remote, more):
    used = len(os.listdir("/proc/self/fd")) - 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    remote.plugs = []
    while not more:  # numbers below the limit may be free while there are descriptors above it
        try:
            remote.plugs.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            break
"""
UNLIMIT_FILES = """
import os, resource
def run(remote):
    for fd in remote.plugs:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
"""


@pytest.mark.parametrize("backing", ["shm", "memfd"])
def test_a_client_without_descriptors_goes_on(backing: str, server: Server, work: Work, no_names: None) -> None:
    server.configure(run=0)
    one, two = work(backing=backing), work(backing=backing)
    one.call("allocate", "a", PAGES * PAGE)
    one.call("execute", LIMIT_FILES, 0)
    with pytest.raises(MemoryError, match="ulimit -n"):
        one.call("allocate", "b", 1 << 30)
    one.call("fill_pages", "a", list(range(1, PAGES + 1)))
    one.call("allocate", "c", PAGE)  # out of the segment that is there
    one.call("write", "c", 0, b"fine")
    two.call("allocate", "a", PAGES * PAGE)
    two.call("fill_pages", "a", list(range(1, PAGES + 1)))
    digest = two.call("digest", "a")
    server.configure(run=1)
    one.call("settle", 10)
    assert one.call("digest", "a") == digest
    one.call("execute", UNLIMIT_FILES)
    one.call("fill_pages", "a", list(range(1, PAGES + 1)))
    until(
        lambda: two.call("settle", 20).settled and one.call("stats").merged_bytes == PAGES * PAGE,
        30,
        "merging with descriptors again",
    )
    assert one.call("digest", "a") == two.call("digest", "a") == digest
    assert one.call("stats").trouble == ""
    one.close()
    two.close()


CONNECT = """
import os, resource
import pagefold
def run(remote, address, more):
    used = len(os.listdir("/proc/self/fd")) - 1
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, hard))
    try:
        with pagefold.connect(address, autostart=False) as client:
            buf = client.allocate(8192)
            memoryview(buf)[:5] = b"hello"
            return bytes(memoryview(buf)[:5]).decode()
    except pagefold.PagefoldError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
"""


def test_connecting_with_too_few_descriptors_is_a_typed_error_and_leaves_nothing(server: Server, work: Work) -> None:
    w = work()
    names = kernel.names()
    said = []
    for more in range(16):
        said.append(w.call("execute", CONNECT, server.address, more))
        assert kernel.names() == names, said[-1]
    assert said[-1] == "hello", said
    refused = [text for text in said if text != "hello"]
    assert refused, "with no descriptor at all there is no client"
    assert all(text.startswith(("OutOfSharedMemory", "ServerUnavailable")) for text in refused), refused
    until(lambda: len(server.clients()) == 1, 10, "the others going")


def test_a_server_without_descriptors_says_so_and_goes_on(server: Server, work: Work) -> None:
    one, two = work(), work()
    for w in (one, two):
        w.call("allocate", "a", PAGES * PAGE)
        w.call("fill_pages", "a", list(range(1, PAGES + 1)))
    used = max(map(int, os.listdir(f"/proc/{server.pid}/fd"))) + 1
    soft, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (used, hard))
    for n in range(12):  # some numbers below the limit are free
        one.call("allocate", f"b{n}", 100 << 20)
        one.call("write", f"b{n}", 0, b"fine")
    until(lambda: "ulimit -n" in one.call("stats").trouble, 10, "the refusal of a segment")
    assert "ulimit -n" in one.call("settle", 20).reason
    assert one.call("stats").merged_bytes == PAGES * PAGE
    with pytest.raises(ConnectionError):
        Worker(server.address)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (soft, hard))
    with Worker(server.address) as three:
        three.call("allocate", "a", PAGES * PAGE)
        three.call("fill_pages", "a", list(range(1, PAGES + 1)))
        assert "ulimit -n" in three.call("settle").reason, "what was refused stays so"
        assert three.call("stats").merged_bytes == PAGES * PAGE
    assert "ulimit -n" in server.admin.GetStatus(admin_pb2.GetStatusRequest(), timeout=10).trouble


# Address space

LIMIT_SPACE = """
import resource
def run(remote, more):
    with open("/proc/self/status") as status:
        size = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (size + more, resource.RLIM_INFINITY))
"""
UNLIMIT_SPACE = """
import resource
def run(remote):
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""


@pytest.mark.parametrize("more", [4 << 20, 24 << 20])
def test_address_space_runs_out_in_the_middle(more: int, server: Server, work: Work) -> None:
    # The look at the pool cannot grow, and the next segment cannot be mapped.
    server.configure(run=0)
    one, two = work(), work()
    pages = 16384  # more than the look can grow by
    for w in (one, two):
        w.call("allocate", "a", pages * PAGE)
        w.call("fill_pages", "a", list(range(1, pages + 1)))
    digest = two.call("digest", "a")
    one.call("execute", LIMIT_SPACE, more)
    with pytest.raises(MemoryError, match="ulimit -v"):
        one.call("allocate", "b", 1 << 30)
    server.configure(run=1)
    two.call("settle", 20)
    assert one.call("stats").merged_bytes < pages * PAGE
    assert one.call("digest", "a") == two.call("digest", "a") == digest
    one.call("write", "a", 0, b"written")
    assert one.call("read", "a", 0, 7) == b"written"
    one.call("execute", UNLIMIT_SPACE)
    one.call("fill_pages", "a", list(range(1, pages + 1)))
    until(
        lambda: two.call("settle", 20).settled and one.call("stats").merged_bytes == pages * PAGE,
        30,
        "merging with address space again",
    )
    assert one.call("digest", "a") == two.call("digest", "a") == digest


# Memory


@pytest.fixture
def bounded() -> Iterator[Path]:
    """A control group of this process's own whose memory can be bounded; version 2 or 1."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    for controllers, mount in (("", "/sys/fs/cgroup"), ("memory", "/sys/fs/cgroup/memory")):
        own = next((path for _, has, path in lines if controllers in has.split(",")), None)
        group = Path(f"{mount}{own}/pagefold-test-{os.getpid()}")
        if own is None or not (group.parent / "cgroup.procs").exists():
            continue
        try:
            group.mkdir()
        except OSError:
            continue
        if any((group / name).exists() for name in ("memory.max", "memory.limit_in_bytes")):
            yield group
            group.rmdir()
            return
        group.rmdir()
    pytest.skip("this user may make no memory control group here")


def test_a_control_groups_limit_refuses_memory_and_merging_makes_room(
    bounded: Path, server: Server, work: Work
) -> None:
    one, two = work(backing="memfd"), work(backing="memfd")
    (bounded / "cgroup.procs").write_text(str(one.pid))
    limit = bounded / ("memory.max" if (bounded / "memory.max").exists() else "memory.limit_in_bytes")
    used = bounded / ("memory.current" if limit.name == "memory.max" else "memory.usage_in_bytes")
    limit.write_text(str(int(used.read_text()) + (64 << 20)))
    server.configure(run=0)
    pages = (40 << 20) // PAGE
    for w in (one, two):
        w.call("allocate", "a", pages * PAGE)
        w.call("fill_pages", "a", list(range(1, pages + 1)))
    digest = two.call("digest", "a")
    with pytest.raises(MemoryError, match=r"of memory and swap .*memory\.max"):
        one.call("allocate", "b", 40 << 20)
    server.configure(run=1)
    assert one.call("settle", 30).settled
    assert one.call("stats").merged_bytes == pages * PAGE
    one.call("allocate", "b", 40 << 20)
    one.call("fill_pages", "b", [1_000_000 + n for n in range(pages)])
    assert one.call("digest", "a") == two.call("digest", "a") == digest
    assert one.call("read", "b", 100 * PAGE, PAGE) == page_of(1_000_100)
    # To take everything apart now would be its end: the group has no room for a's pages beside b's.
    server.configure(run=2)
    until(lambda: server.status().counters.pages_shared + server.status().counters.pages_sharing <= pages, 20, "two's")
    with pytest.raises(MemoryError, match="control group"):
        one.call("advise", "a", False)
    assert one.call("digest", "a") == digest
    assert one.call("stats").merged_bytes > 5 << 20
    one.call("free", "b")
    one.call("advise", "a", False)
    until(lambda: server.status().counters.pages_shared == 0, 20, "taking it apart once there is room")
    assert one.call("digest", "a") == two.call("digest", "a") == digest
    one.close()
    until(lambda: not (bounded / "cgroup.procs").read_text(), 10, "the worker's end")


def test_merging_at_the_limit_of_a_control_group_ends_nobody(bounded: Path, server: Server, work: Work) -> None:
    # Server and clients in one container that is full. A frame is made before the two pages that it replaces are given
    # back; made for all of them first, frames would take half of what is there once more.
    one, two = work(backing="memfd"), work(backing="memfd")
    for pid in (server.pid, one.pid, two.pid):
        (bounded / "cgroup.procs").write_text(str(pid))
    limit = bounded / ("memory.max" if (bounded / "memory.max").exists() else "memory.limit_in_bytes")
    used = bounded / ("memory.current" if limit.name == "memory.max" else "memory.usage_in_bytes")
    server.configure(run=0)
    pages = (64 << 20) // PAGE
    for w in (one, two):
        w.call("allocate", "a", pages * PAGE)
        w.call("fill_pages", "a", list(range(1, pages + 1)))
    digest = two.call("digest", "a")
    limit.write_text(str(int(used.read_text()) + (6 << 20)))
    server.configure(run=1)
    until(
        lambda: two.call("settle", 20).settled and one.call("stats").merged_bytes == pages * PAGE,
        60,
        "merging within the limit",
    )
    assert one.call("digest", "a") == two.call("digest", "a") == digest
    assert int(used.read_text()) < 100 << 20
    assert server.status().trouble == ""
    limit.write_text(str(1 << 30))
    for w in (one, two):
        w.close()
    server.stop()
    until(lambda: not (bounded / "cgroup.procs").read_text(), 10, "the end of all of them")
