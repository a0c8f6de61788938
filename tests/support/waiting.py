"""Waiting for something to become true, with a deadline. For what no event tells of: the kernel's books, a death."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(probe: Callable[[], T], timeout: float = 20.0, what: str = "the condition") -> T:
    """Calls `probe` until it returns something true, and returns that."""
    deadline = time.monotonic() + timeout
    while True:
        result = probe()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout} s; last seen: {result!r}")
        time.sleep(0.02)  # nothing to wait on: the condition is the kernel's or another process's
