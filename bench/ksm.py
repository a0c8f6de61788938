"""The kernel's KSM as the baseline: run at full speed, and put back as it was found."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from processes import cpu_seconds

_KSM = Path("/sys/kernel/mm/ksm")
_FULL_SPEED = {"pages_to_scan": "1000000", "sleep_millisecs": "0", "smart_scan": "0"}
RMAP_ITEM_BYTES = 64
"""struct ksm_rmap_item on 64-bit machines: what KSM keeps for each page that it scans."""


def why_not() -> str:
    """Empty, or why KSM cannot be measured here."""
    if not _KSM.exists():
        return "this kernel has no KSM"
    if os.geteuid() != 0:
        return "only root may drive KSM"
    if _read("pages_shared") or _read("run"):
        return "KSM is in use on this machine"
    return ""


def counter(name: str) -> int:
    """One of KSM's counters."""
    return _read(name)


def daemon() -> int:
    """The pid of ksmd."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if comm.read_text() == "ksmd\n":
                return int(comm.parent.name)
    raise RuntimeError("there is no ksmd")


@contextlib.contextmanager
def full_speed() -> Iterator[None]:
    """Sets KSM up to scan as fast as it can once `start` is called; afterwards everything is as it was before."""
    names = [*_FULL_SPEED, "run"]
    before = {name: (_KSM / name).read_text().strip() for name in names if (_KSM / name).exists()}
    try:
        for name, value in _FULL_SPEED.items():
            if name in before:
                _write(name, value)
        yield
    finally:
        _write("run", "2")  # what was merged for us is taken apart
        for name, value in before.items():
            _write(name, value)


def start() -> None:
    """Begins to scan."""
    _write("run", "1")


def stop() -> None:
    """Stops scanning; merged pages stay merged."""
    _write("run", "0")


def wait_for(name: str, value: int, timeout: float) -> float:
    """Waits until a counter has reached a value. Seconds."""
    began = time.perf_counter()
    while _read(name) < value:
        if time.perf_counter() - began > timeout:
            raise RuntimeError(f"KSM's {name} is {_read(name)} after {timeout} s, not {value}")
        time.sleep(0.002)  # sysfs has no events
    return time.perf_counter() - began


def daemon_seconds() -> float:
    """CPU time of ksmd so far."""
    return cpu_seconds(daemon())


def _read(name: str) -> int:
    return int((_KSM / name).read_text())


def _write(name: str, value: str) -> None:
    (_KSM / name).write_text(value)
