"""The tracker: how written pages are found. It is chosen once, when a client connects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, get_args

from pagefold._errors import TrackerUnavailable
from pagefold._options.barriers import Barrier
from pagefold._process import dumpable

if TYPE_CHECKING:
    from pagefold_core import Features

Tracker = Literal["pagemap", "checksum"]
TRACKERS: Final[tuple[Tracker, ...]] = get_args(Tracker)


def why_not(features: Features, barrier: Barrier) -> str:
    """Why this machine does not have the tracker "pagemap"; empty if it does."""
    if closed := dumpable.why_not():
        return closed
    if not features.wp_async or not features.pagemap_scan:
        return "this kernel does not tell which pages were written: it takes Linux 6.7 or later"
    if barrier == "off":
        return "nothing is merged (barrier off), so nothing needs to be found"
    return ""


def choose(asked: Tracker | None, features: Features, barrier: Barrier) -> Tracker:
    """The tracker to use: "pagemap" if this machine has it, unless "checksum" was asked for.

    Args:
        asked: what the user asked for; None: nothing.
        features: of kernel and user.
        barrier: how writes are held.

    Raises:
        TrackerUnavailable: this machine does not have the tracker that was asked for.
    """
    if asked == "checksum":
        return "checksum"
    why = why_not(features, barrier)
    if why and asked == "pagemap":
        raise TrackerUnavailable(f"tracker='pagemap' cannot be had here: {why}; leave it out, or use 'checksum'")
    return "checksum" if why else "pagemap"
