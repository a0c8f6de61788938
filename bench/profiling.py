"""`make profile`: where the time of a merge goes, by process and by what it was doing, in microseconds a page saved.

Two clients with the same memory are merged under `perf record` (Debian: linux-perf), which samples the server and both
clients. A sample belongs to the system call that it was taken in, or to the function of ours that it was taken in.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from figure import MIB, TIMEOUT, Plan
from machine import PAGE, warm
from processes import fill, pagefold_side, settled

_HERTZ = 3000
_CALLS = {
    "vfs_fallocate": "give segment pages back (fallocate)",
    "mmap_pgoff": "map frames (mmap)",
    "userfaultfd_register": "register (userfaultfd)",
    "userfaultfd_unregister": "unregister (userfaultfd)",
    "mwriteprotect_range": "protect (userfaultfd)",
    "mincore": "which pages are there (mincore)",
    "pagemap_scan": "look for written pages (PAGEMAP_SCAN)",
    "exc_page_fault": "page faults, of frames to compare with",
    "vfs_writev": "write frames (pwritev)",
    "pread64": "read pages (pread)",
    "do_syscall_64": "other system calls",
}
_OURS = {
    "memcmp": "compare",
    "xxhash": "digest",
    "pagefold_core": "the native core",
    "Py": "Python",
}


def main() -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="MiB of each process (default 1024)")
    parser.add_argument("--isolated", type=int, default=0, help="merge so many pages, of which no two are neighbours")
    given = parser.parse_args()
    perf = shutil.which("perf")
    if perf is None:
        print("profile: there is no perf here: apt install linux-perf", file=sys.stderr)
        return 2
    size = given.mib * MIB
    saved = given.isolated or size // PAGE
    layout: tuple[str, *tuple[int, ...]] = ("isolated", saved) if given.isolated else ("identical",)
    with tempfile.TemporaryDirectory(prefix="pagefold-profile-") as directory:
        data = Path(directory, "perf.data")
        with pagefold_side(Plan(kernel=False), 2, size, run=0) as (server, crew):
            fill(crew, *layout)
            warm(size)
            names = {server.pid: "server", crew[0].pid: "a client", crew[1].pid: "a client"}
            pids = ",".join(map(str, names))
            record = [perf, "record", "-q", "-g", "-e", "cpu-clock", "-F", str(_HERTZ), "-o", str(data), "-p", pids]
            sampler = subprocess.Popen(record, stderr=subprocess.DEVNULL)  # noqa: S603 (perf, by its full path)
            server.configure(run=1)
            settled(crew[0]("settle", TIMEOUT), pages_sharing=saved)
            sampler.send_signal(signal.SIGINT)
            sampler.wait()
        script = subprocess.run(  # noqa: S603 (as above)
            [perf, "script", "-F", "pid,ip,sym", "-i", str(data)], capture_output=True, text=True, check=True
        ).stdout
    _print(names, script, saved)
    return 0


def _print(names: dict[int, str], script: str, pages: int) -> None:
    found: dict[str, Counter[str]] = {name: Counter() for name in names.values()}
    for pid, stack in _samples(script):
        if pid in names:
            found[names[pid]][_what(stack)] += 1
    for name, counts in found.items():
        many = sum(other == name for other in names.values())
        scale = 1e6 / _HERTZ / pages / many
        print(f"{name}: {sum(counts.values()) * scale:.2f} us a page saved")
        for what, count in counts.most_common():
            if count * scale >= 0.005:
                print(f"  {count * scale:5.2f}  {what}")


def _samples(script: str) -> Iterator[tuple[int, list[str]]]:
    """Process and stack, innermost first, of each sample."""
    for block in script.split("\n\n"):
        head, *lines = block.strip().split("\n")
        if head.strip():
            yield (
                int(head.split()[0].split("/")[0]),
                [line.split(None, 1)[1] for line in lines if len(line.split()) > 1],
            )


def _what(stack: list[str]) -> str:
    for call, meaning in _CALLS.items():
        if any(call in symbol for symbol in stack):
            return meaning
    inner = stack[0] if stack else ""
    return next((meaning for mark, meaning in _OURS.items() if mark in inner), "everything else")


if __name__ == "__main__":
    sys.exit(main())
