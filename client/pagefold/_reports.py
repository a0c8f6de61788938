"""What a client reports: frozen, typed, in bytes where users think in bytes. Nothing is counted here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from pagefold_proto.limits import PAGE

from pagefold._options.backings import Backing
from pagefold._options.barriers import Barrier
from pagefold._options.trackers import Tracker


@dataclass(frozen=True, slots=True)
class Stats:
    """One client's memory now. Returned by `Client.stats`.

    Attributes:
        allocated_bytes: allocated and not freed, in whole pages, untouched ones included; and freed memory that a
            forked child may still read. The sum of the owned, merged, zero and copied bytes.
        owned_bytes: in this client's own segments, or not touched yet.
        merged_bytes: on frames that other pages may use too.
        zero_bytes: on the kernel's zero page.
        copied_bytes: merged once and written since: private, until the client takes them back into its segments.
        saved_bytes: this client's share of what its domain saves: zero_bytes, and the part of merged_bytes that exceeds
            this client's proportional part of the frames. Summed over the clients of a domain it is what the domain
            saves. As of the server's last answer, which may be old: a client that has nothing to report asks for none
            while others come and merge. `pagefold status` has the sum as it is now.
        mappings: kernel mappings (VMAs) that the memory uses now.
        mapping_budget: most that it may use; beyond it pages stay unmerged.
        barrier: how writes are held: "uffd", "user" or "off" (nothing merges).
        tracker: how written pages are found: "pagemap" (the kernel tells) or "checksum" (the server reads everything).
        connected: the server answered the last call, and knows this client.
        trouble: what keeps pages from merging: how many, why, and what to do (docs/obstacles.md); empty: nothing.
        windows: number of times that writes were held so far.
        window_p99_micros: 99 % of these times were no longer.
        window_max_micros: the longest of them.
        window_max_running_micros: the longest, less the time in which other threads had the processor. If it is much
            less than `window_max_micros`, the machine is busy.
        backing: where memory comes from: "shm", "memfd", or "auto" (each where there is room).
        memfd_bytes: allocated from memfd objects. The rest is in /dev/shm.
    """

    allocated_bytes: int
    owned_bytes: int
    merged_bytes: int
    zero_bytes: int
    copied_bytes: int
    saved_bytes: int
    mappings: int
    mapping_budget: int
    barrier: Barrier
    tracker: Tracker
    connected: bool
    trouble: str
    windows: int
    window_p99_micros: float
    window_max_micros: float
    window_max_running_micros: float
    backing: Backing = "shm"
    memfd_bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The attributes as plain values, for example for `json.dumps`."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True, repr=False)
class SettleReport:
    """What `Client.settle` found. Page counts are of the whole domain, other processes included.

    Attributes:
        settled: everything mergeable was merged, and still was after every client had looked for writes once more.
        reason: what keeps pages from merging: how many, why, and what to do (docs/obstacles.md); empty if settled.
        seconds: how long the call took.
        passes: full passes over the domain's memory since the request.
        merged_pages: pages merged since the request.
        pages_shared: frames in use.
        pages_sharing: pages saved by them: mappings beyond the first of each frame.
        zero_pages: pages on the kernel's zero page.
        pages_unshared: read, unchanged, and like no other page.
        pages_volatile: changed between the last two passes.
        pages_waiting: not merged for some passes, because they were written soon after each merge.
        pages_over_budget: not merged because a client's mapping budget is used up.
        pages_refused: not merged because a client declined (pinned, forked), or does not answer.
        saved_bytes: what the domain saves now: pages_sharing and zero_pages, in bytes.
    """

    settled: bool
    reason: str
    seconds: float
    passes: int = 0
    merged_pages: int = 0
    pages_shared: int = 0
    pages_sharing: int = 0
    zero_pages: int = 0
    pages_unshared: int = 0
    pages_volatile: int = 0
    pages_waiting: int = 0
    pages_over_budget: int = 0
    pages_refused: int = 0

    @property
    def saved_bytes(self) -> int:
        """What the domain saves now, in bytes."""
        return (self.pages_sharing + self.zero_pages) * PAGE

    def as_dict(self) -> dict[str, Any]:
        """The attributes as plain values, `saved_bytes` included."""
        return dataclasses.asdict(self) | {"saved_bytes": self.saved_bytes}

    def __repr__(self) -> str:
        return f"SettleReport({', '.join(f'{name}={value!r}' for name, value in self.as_dict().items())})"
