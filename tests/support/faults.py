"""Faults in native code: where something can be made to go wrong, and how. `AVAILABLE` in a build with them only.

The points are listed in native/src/faults.rs. What is armed stays armed until it has happened, or until `disarm`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from pagefold_core import _native

_module: Any = _native
AVAILABLE = hasattr(_native, "arm_fault")

POINTS: dict[str, bool] = dict(_module.fault_points()) if AVAILABLE else {}
"""Every point, and whether it can fail with an error."""


def arm(point: str, fault: str) -> None:
    """Has something happen at a point: "panic", "kill", "abort", "exit", "error:ERRNO", "delay:MILLISECS".

    "@3" after it: when the point is passed for the third time; "@3+": and every time from then on.
    """
    _module.arm_fault(point, fault)


def disarm() -> None:
    """Takes all faults away."""
    _module.disarm_faults()


def passed(point: str) -> int:
    """How often a point was passed since something was armed for the first time."""
    return int(_module.faults_passed(point))


@contextmanager
def armed(point: str, fault: str) -> Iterator[None]:
    """Arms a fault for a while. A fault that never happened proves nothing: its point must have been passed."""
    before = passed(point)
    arm(point, fault)
    try:
        yield
    finally:
        disarm()
    assert passed(point) > before, f"nothing passed the point {point}"


class Room(NamedTuple):
    """What a place is said to have, in bytes."""

    size: int
    free: int
    small: bool = False


def pretend_room(place: str, room: Room | None) -> None:
    """Has the arena believe that of "shm" or "memfd"; None: the truth again."""
    _module.pretend_room(place, room)
