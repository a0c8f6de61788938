"""Machines and limits as people have them: what a program is told there, and what its memory does."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
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
