"""What an audit has found so far: told as it comes, counted, and summed up at the end.

The parts of an audit let the server's loop go on after each slice.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from pagefold_proto.v1 import admin_pb2 as pb

_SLICE: Final = 0.001  # seconds on the loop between two awaits
_PAUSE: Final = 0.001  # seconds for calls then: one takes the loop a few rounds
_PROGRESS: Final = 0.1  # seconds between two news of it


class Findings:
    """All parts of an audit tell here what they find.

    Args:
        tell: called with progress, findings and names as they come.

    Attributes:
        summary: the numbers of the audit, counted up by its parts.
        tell: as given.
    """

    def __init__(self, tell: Callable[[pb.FsckNews], None]) -> None:
        self.summary = pb.FsckSummary()
        self.tell = tell
        self._tallies: Counter[int] = Counter()
        self._told: set[tuple[int, int, str]] = set()
        self._since = time.monotonic()
        self._progressed = 0.0

    async def breathe(self, now: bool = False) -> None:
        """Lets the loop go on, if it has been held for a slice, or in any case (`now`)."""
        if now or time.monotonic() - self._since > _SLICE:
            await asyncio.sleep(_PAUSE)
            self._since = time.monotonic()

    def progress(self, stage: str, done: int, total: int) -> None:
        """Tells how far it is, now and then."""
        now = time.monotonic()
        if not done or now - self._progressed > _PROGRESS:
            self._progressed = now
            self.tell(pb.FsckNews(progress=pb.FsckProgress(stage=stage, done=done, total=total)))

    def find(self, finding: pb.FsckFinding) -> None:
        """Counts a finding, and tells it if it is the first of its kind in its domain."""
        finding.count = max(finding.count, 1)
        self._tallies[finding.kind] += finding.count
        key = (finding.kind, finding.uid, finding.label)
        if key not in self._told:
            self._told.add(key)
            self.tell(pb.FsckNews(finding=finding))

    def close(self, seconds: float) -> pb.FsckSummary:
        """The summary of an audit that took `seconds`."""
        self.summary.seconds = seconds
        for kind, count in sorted(self._tallies.items()):
            self.summary.tallies.add(kind=kind, count=count)
        return self.summary
