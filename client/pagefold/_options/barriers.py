"""The barrier: how writes are held during a window. It is chosen once, when a client connects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, get_args

from pagefold_proto.obstacle_table import HOLD_WRITES, Kind
from pagefold_proto.v1 import memory_pb2 as pb

from pagefold._errors import BarrierUnavailable

if TYPE_CHECKING:
    from pagefold_core import Features

Barrier = Literal["uffd", "user", "off"]
BARRIERS: Final[tuple[Barrier, ...]] = get_args(Barrier)


def why_not(barrier: Barrier, features: Features) -> str:
    """Why this machine does not allow a barrier, and what to do; empty if it does."""
    if barrier == "off":
        return ""
    if barrier == "uffd" and features.userfaultfd != "full":
        return f"no userfaultfd that holds the kernel's writes ({features.userfaultfd_error}): {HOLD_WRITES}"
    if barrier == "user" and features.userfaultfd == "none":
        return f"no userfaultfd at all ({features.userfaultfd_error}): container runtimes block it by seccomp"
    if not features.wp_shmem:
        return "this kernel cannot write-protect shared memory: it takes Linux 5.19 or later"
    return ""


def choose(asked: Barrier | None, features: Features) -> tuple[Barrier, Kind | None]:
    """The barrier to use, and the obstacle that it is to merging (None: it is none).

    Args:
        asked: what the user asked for; None: "uffd" if this machine allows it, else "off".
        features: of kernel and user.

    Raises:
        BarrierUnavailable: this machine does not allow the barrier that was asked for.
    """
    why = why_not(asked or "uffd", features)
    if asked is None:
        if not why:
            return "uffd", None
        return "off", pb.OBSTACLE_KIND_BARRIER if features.userfaultfd != "full" else pb.OBSTACLE_KIND_KERNEL
    if why:
        raise BarrierUnavailable(
            f"barrier={asked!r} cannot be had here: {why}. Allow it, or connect with another barrier"
        )
    return asked, pb.OBSTACLE_KIND_OFF if asked == "off" else None
