"""The kernel's KSM as the baseline: set up, run, and put back as it was found."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import interruption
from machine import cpu_seconds

_KSM = Path("/sys/kernel/mm/ksm")
_FULL_SPEED = {"advisor_mode": "none", "pages_to_scan": "1000000", "sleep_millisecs": "0", "smart_scan": "0"}
_DEFAULTS = {"advisor_mode": "none", "pages_to_scan": "100", "sleep_millisecs": "20", "smart_scan": "1"}

ITEM_BYTES = 64
"""struct ksm_rmap_item and struct ksm_stable_node on 64-bit machines: what KSM keeps for each page that it scans, and
for each page that it shares."""

TOLERANCE = 16
"""Pages that KSM may leave: those that sit in a per-processor list just then are taken in a later pass."""


def why_not() -> str:
    """Empty, or why KSM cannot be measured here."""
    if not _KSM.exists():
        return "this kernel has no KSM"
    if os.geteuid() != 0:
        return "only root may drive KSM"
    if counter("pages_shared") or counter("run"):
        return "KSM is in use on this machine"
    return ""


def counter(name: str) -> int:
    """One of KSM's counters."""
    return int((_KSM / name).read_text())


def settings() -> dict[str, str]:
    """What can be set, as it is now."""
    return {name: _chosen(name) for name in (*_FULL_SPEED, "run") if (_KSM / name).exists()}


@contextlib.contextmanager
def full_speed() -> Iterator[None]:
    """KSM as fast as it can, once `start` is called; smart_scan off, so that each pass looks at every page."""
    with _set(_FULL_SPEED):
        yield


@contextlib.contextmanager
def defaults() -> Iterator[None]:
    """KSM as the kernel ships it, once `start` is called."""
    with _set(_DEFAULTS):
        yield


def start() -> None:
    """Begins to scan."""
    _write("run", "1")


def stop() -> None:
    """Stops scanning; merged pages stay merged."""
    _write("run", "0")


def wait_for(name: str, value: int, timeout: float) -> float:
    """Waits until a counter has reached a value. Seconds.

    Raises:
        TimeoutError: it has not.
    """
    began = time.perf_counter()
    while counter(name) < value:
        if time.perf_counter() - began > timeout:
            raise TimeoutError(f"KSM's {name} is {counter(name)} after {timeout:.0f} s, not {value}")
        time.sleep(0.002)  # sysfs has no events
    return time.perf_counter() - began


def daemon_seconds() -> float:
    """CPU time of ksmd so far."""
    return cpu_seconds(_daemon())


def _daemon() -> int:
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if comm.read_text() == "ksmd\n":
                return int(comm.parent.name)
    raise RuntimeError("there is no ksmd")


@contextlib.contextmanager
def _set(values: Mapping[str, str]) -> Iterator[None]:
    before = settings()
    try:
        for name, value in values.items():
            if name in before:
                _write(name, value)
        yield
    finally:
        with interruption.held():
            _write("run", "2")  # what was merged for us is taken apart
            for name in sorted(before, key=lambda name: name == "advisor_mode"):
                # Last: while an advisor is at work the kernel lets nobody else set pages_to_scan.
                _write(name, before[name])


def _chosen(name: str) -> str:
    text = (_KSM / name).read_text().strip()
    return text.partition("[")[2].partition("]")[0] or text  # "[none] scan-time"


def _write(name: str, value: str) -> None:
    (_KSM / name).write_text(value)
