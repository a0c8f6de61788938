"""The program's own limits that keep its pages from merging: the words for each, with numbers and the remedy."""

from __future__ import annotations

from typing import Literal

from pagefold._reports import human

Hindrance = tuple[Literal["locked", "data"], int, int]


def words(found: Hindrance | None) -> str:
    """Why pages are left unmerged; empty if it is for none of the limits. See `Space.hindrance`.

    Example:
        >>> words(("data", 1 << 30, 900 << 20)).partition(", and")[0]
        'no more is merged: RLIMIT_DATA is 1 GiB, of which 900 MiB are used'
    """
    if found is None:
        return ""
    kind, limit, used = found
    if kind == "locked":
        return (
            "nothing is merged: the program locks all its memory ahead (mlockall with MCL_FUTURE), so that the kernel "
            "would copy a page as soon as it is merged: lock with MCL_FUTURE | MCL_ONFAULT, or what needs it (mlock)"
        )
    return (
        f"no more is merged: RLIMIT_DATA is {human(limit)}, of which {human(used)} are used, and merged memory takes "
        "at most half of what the rest of the program leaves, and leaves 64 MiB: raise it (ulimit -d, LimitDATA= of a "
        "systemd unit)"
    )
