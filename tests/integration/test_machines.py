"""Machines and limits as people have them: what a program is told there, and what its memory does."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from support.apart import run_apart
from support.server import Server

ROOT = Path(__file__).parents[2]
MANUAL = (ROOT / "docs" / "machine.md").read_text()


def run(code: str, *words: str) -> str:
    """Runs a program, where `support` is found; what it raises fails the test."""
    command = [sys.executable, "-c", code, *words]
    ended = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


@pytest.mark.needs("root")
def test_a_server_with_another_dev_shm_says_so(server: Server) -> None:
    """It said "No such file or directory" of an object that was there."""
    code = """
import sys
from support.namespace import own_shm
assert own_shm("64m")
import pagefold
try:
    pagefold.connect(sys.argv[1], autostart=False)
except pagefold.ServerRefused as error:
    print(error)
"""
    said = run(code, server.address)
    assert "in its /dev/shm" in said
    assert "different containers or mount namespaces" in said
    assert "--ipc=" in said


FORBIDDEN = """
import ctypes, errno, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def forbid(number, code):  # a seccomp filter; inherited, and for good
    steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | code), (0x06, 0, 0, 0x7FFF0000)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    class Filter(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_void_p)]
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, ctypes.byref(Filter(len(steps), ctypes.addressof(program))), 0, 0) == 0
"""
MINCORE = {"x86_64": 27, "aarch64": 232}.get(platform.machine())


@pytest.mark.needs("uffd")
@pytest.mark.skipif(MINCORE is None, reason="the number of mincore is not known here")
@pytest.mark.parametrize("code", ["EPERM", "ENOSYS", "EACCES"])
@pytest.mark.parametrize("backing", ["shm", "memfd"])
def test_without_mincore_memory_merges_and_holes_stay_holes(server: Server, code: str, backing: str) -> None:
    """Units with systemd's SystemCallFilter=@system-service merged nothing, and settle() said that it was settled."""
    program = """
forbid(int(sys.argv[2]), getattr(errno, sys.argv[3]))
assert libc.mincore(0, 0, 0) == -1
import os, pagefold
with pagefold.connect(sys.argv[1], autostart=False, backing=sys.argv[4]) as client:
    buffers = [client.allocate(512 * 4096) for _ in range(2)]
    for buffer in buffers:
        for page in range(0, 512, 2):
            buffer[page * 4096 : page * 4096 + 8] = (page + 1).to_bytes(8, "little")
    report = client.settle(30)
    assert report.settled, report
    assert client.stats().merged_bytes == 512 * 4096, client.stats()
    assert report.saved_bytes == 256 * 4096, report
    buffers[0][0:8] = bytes(8)
    for page in range(0, 512, 2):
        assert int.from_bytes(buffers[1][page * 4096 : page * 4096 + 8], "little") == page + 1
    assert client.settle(30).settled
    segments = [name for name in os.listdir("/dev/shm") if name.startswith("pagefold-s-")]
    assert sum(os.stat("/dev/shm/" + name).st_blocks * 512 for name in segments) <= 4096, "to read a hole allocates it"
"""
    run(FORBIDDEN + program, server.address, str(MINCORE), code, backing)


@pytest.mark.needs("uffd", "root")
@pytest.mark.parametrize("backing", ["shm", "memfd"])
def test_a_program_that_locks_its_memory_ahead_merges_nothing_and_says_so(server: Server, backing: str) -> None:
    """The kernel copied each page when it was merged: 128 MiB were "saved", gone, and merged again, for ever."""
    program = """
import ctypes, sys, time
import pagefold
CURRENT, FUTURE, ON_FAULT = 1, 2, 4
libc = ctypes.CDLL(None, use_errno=True)
def lock(flags):
    assert (libc.mlockall(flags) if flags else libc.munlockall()) == 0
def pair(client, seed):
    made = [client.allocate(512 * 4096) for _ in range(2)]
    for buffer in made:
        for page in range(512):
            buffer[page * 4096 : page * 4096 + 8] = (page + seed).to_bytes(8, "little")
    return made
def check(buffers, seed):
    for buffer in buffers:
        for page in range(512):
            assert int.from_bytes(buffer[page * 4096 : page * 4096 + 8], "little") == page + seed
with pagefold.connect(sys.argv[1], autostart=False, backing=sys.argv[2]) as client:
    before = pair(client, 1)
    assert client.settle(30).settled and client.stats().merged_bytes == 4 << 20
    lock(CURRENT | FUTURE)
    after = pair(client, 10_000)
    reports = []
    for _ in range(8):  # what was merged is copied by the lock, and taken back; then nothing changes any more
        reports.append(client.settle(5))
        time.sleep(0.1)
    assert sum(report.merged_pages for report in reports[4:]) == 0, reports
    report = reports[-1]
    stats = client.stats()
    assert not report.settled and "mlockall" in report.reason, report
    assert "MCL_ONFAULT" in stats.trouble, stats
    assert stats.merged_bytes == 0, stats
    check(before, 1); check(after, 10_000)
    lock(0)
    lock(FUTURE | ON_FAULT)
    later = pair(client, 20_000)
    while not client.settle(30).settled or client.stats().merged_bytes < 12 << 20: pass
    assert client.stats().trouble == "", client.stats()
    check(before, 1); check(after, 10_000); check(later, 20_000)
"""
    run(program, server.address, backing)
    assert server.status().counters.pages_broken == 1024, "by the lock, once each"


@pytest.mark.needs("uffd")
def test_merging_leaves_the_program_half_of_its_data_limit(server: Server) -> None:
    """A merged page is private, and counts: the next malloc failed, and gRPC ended the program."""
    program = """
import mmap, resource, sys
import pagefold
MIB = 1 << 20
def data():
    for line in open("/proc/self/status"):
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
with pagefold.connect(sys.argv[1], autostart=False) as client:
    buffers = [client.allocate(48 * MIB) for _ in range(3)]
    for buffer in buffers:
        client.advise(buffer, mergeable=False)  # on a busy machine two are merged before the third is written
        for page in range(0, 48 * MIB, 4096):
            buffer[page : page + 8] = (page + 1).to_bytes(8, "little")
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    own = data()
    resource.setrlimit(resource.RLIMIT_DATA, (own + 160 * MIB, hard))
    for buffer in buffers:
        client.advise(buffer, mergeable=True)
    report = client.settle(60)
    stats = client.stats()
    assert not report.settled and "RLIMIT_DATA" in report.reason, report
    assert "ulimit -d" in stats.trouble, stats
    assert 64 * MIB <= stats.merged_bytes <= 81 * MIB, stats
    mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    for buffer in buffers:
        for page in range(0, 48 * MIB, 4096):
            assert int.from_bytes(buffer[page : page + 8], "little") == page + 1
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    while not client.settle(60).settled or client.stats().merged_bytes < 144 * MIB: pass
    assert client.stats().trouble == ""
"""
    run(program, server.address)


@pytest.mark.needs("uffd")
@pytest.mark.parametrize("room", [16, 100, 400])
def test_a_fork_leaves_the_threads_that_grpc_starts_again_their_room(server: Server, room: int) -> None:
    """Frozen memory took all that the limit had left, and gRPC ended the program for want of a thread."""
    run(
        """
import os, resource, signal, sys, pagefold
MIB = 1 << 20
with pagefold.connect(sys.argv[1], autostart=False) as client:
    buffer = client.allocate(128 * MIB)
    for page in range(0, len(buffer), 4096):
        buffer[page] = page // 4096 % 255 + 1
    assert client.settle(60).settled
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[5]) * 4096
    buffer[0] = 77  # is owned again
    more = client.allocate(128 * MIB)
    more[:] = os.urandom(128 * MIB)
    resource.setrlimit(resource.RLIMIT_DATA, (used + int(sys.argv[2]) * MIB, resource.RLIM_INFINITY))
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        os._exit(0 if int(sys.argv[2]) < 200 or more[-1] is not None else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert buffer[0] == 77 and buffer[4096] == 2
    more[5] = 9
    assert more[5] == 9 and client.stats().connected
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert client.settle(60).settled
""",
        server.address,
        str(room),
    )


@pytest.mark.needs("uffd", "root")
@pytest.mark.parametrize("huge", ["always", "within_size"])
def test_on_a_huge_dev_shm_a_page_takes_a_page(huge: str) -> None:
    """32 pages written took 64 MiB, and each page that was written after it was merged took 2 MiB more."""
    program = """
import pathlib
MIB = 1 << 20
def segments():
    return {p.name: p.stat().st_blocks * 512 for p in pathlib.Path("/dev/shm").glob("pagefold-s-*")}
one, two = Worker(server.address, backing="shm"), Worker(server.address, backing="shm")
for worker in (one, two):
    worker.call("allocate", "a", 64 * MIB)
    for n in range(32):
        worker.call("write", "a", n * 2 * MIB, page_of(n + 1))
assert set(segments().values()) == {32 * PAGE}, segments()
assert one.call("settle").settled
assert one.call("stats").merged_bytes == 32 * PAGE
assert set(segments().values()) == {0}, segments()
for n in range(32):
    two.call("write", "a", n * 2 * MIB + 100, b"written")
until(lambda: (two.call("settle"), two.call("stats"))[1].copied_bytes == 0, what="taking back")
assert sorted(segments().values()) == [0, 32 * PAGE], segments()
for n in range(32):
    assert one.call("read", "a", n * 2 * MIB, PAGE) == page_of(n + 1)
    assert two.call("read", "a", n * 2 * MIB, 107) == page_of(n + 1)[:100] + b"written"
one.close()
two.close()
"""
    run_apart(program, f"50%,huge={huge}")


@pytest.mark.needs("uffd")
@pytest.mark.parametrize("backing", ["shm", "memfd"])
def test_a_merged_table_counts_once(server: Server, backing: str) -> None:
    """Frames stayed mapped by what they are compared through: limits that go by RSS saw the table twice."""
    program = """
import sys
import pagefold
MIB = 1 << 20
def resident():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
def read(buffers):
    return sum(buffer[page] for buffer in buffers for page in range(0, 64 * MIB, 4096))
with pagefold.connect(sys.argv[1], autostart=False, backing=sys.argv[2]) as client:
    buffers = [client.allocate(64 * MIB) for _ in range(2)]
    for buffer in buffers:
        for page in range(0, 64 * MIB, 4096):
            buffer[page : page + 8] = (page + 1).to_bytes(8, "little")
    before, total = resident(), read(buffers)
    assert client.settle(60).settled
    assert client.stats().merged_bytes == 128 * MIB
    assert read(buffers) == total
    assert resident() < before + 16 * MIB, (before, resident())
    assert not [line for line in open("/proc/self/maps") if "pagefold-p-" in line and line.split()[1] == "r--s"]
"""
    run(program, server.address, backing)


def test_the_manual_silences_pythons_warning_of_forks() -> None:
    """Python 3.12 warns at every fork of a program with threads, and README says that programs may fork."""
    (pattern,) = re.findall(r'"ignore", r"(.*?)", DeprecationWarning', MANUAL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", pattern, DeprecationWarning)
        for call in ("fork", "forkpty"):
            text = f"This process (pid=1) is multi-threaded, use of {call}() may lead to deadlocks in the child."
            warnings.warn(text, DeprecationWarning, stacklevel=1)
        with pytest.raises(DeprecationWarning):
            warnings.warn("another one", DeprecationWarning, stacklevel=1)


@pytest.mark.parametrize("setting", re.findall(r"\b(vm\.\w+)=\d", MANUAL))
def test_settings_that_the_manual_names_exist(setting: str) -> None:
    assert Path("/proc/sys", setting.replace(".", "/")).exists()
