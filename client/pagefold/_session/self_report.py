"""What a client tells of itself: its gauges, and the obstacles that it knows without the server."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pagefold_proto.obstacle_table import Kind, Obstacle, Obstacles
from pagefold_proto.v1 import memory_pb2 as pb

from pagefold._process import threads
from pagefold._session.segments import Segments
from pagefold._session.space import ConversationArena, ConversationSpace

OBSTACLE_SECONDS: Final = 1.0
"""Least time between two reports of the same obstacles with other numbers of pages: programs allocate all the time."""


class SelfReport:
    """Gauges and obstacles of one client.

    Args:
        space: the native space, or a fake.
        arena: knows how much memory is in use.
        segments: knows which segments the server refused.
        table: obstacles that the client has met.
    """

    def __init__(
        self, space: ConversationSpace, arena: ConversationArena, segments: Segments, table: Obstacles
    ) -> None:
        self._space = space
        self._arena = arena
        self._segments = segments
        self._table = table
        self._reported: dict[Kind, int] = {}  # what the server knows: pages by kind of obstacle
        self._reported_at = 0.0

    def unmerged_pages(self) -> int:
        """Pages handed out and not merged; holes included. For any thread."""
        counts = self._space.counts()
        in_use = self._arena.pages_in_use + counts.inherited
        return max(0, int(in_use - counts.merged - counts.zero))

    def obstacles(self) -> list[Obstacle]:
        """What this client knows of by itself, with the pages that it concerns. For any thread."""
        refused, counts = list(self._segments.refused.values()), self._space.counts()
        known = self._table.listed(self.unmerged_pages()) if self._table.kinds() else []
        for obstacle in known:
            if obstacle.kind == pb.OBSTACLE_KIND_LOOK:
                obstacle.pages += counts.merged + counts.zero  # they may have been written
        if counts.shared and (pages := min(counts.frozen + counts.copied, self.unmerged_pages())):
            known.append(Obstacle(kind=pb.OBSTACLE_KIND_FORKED, pages=pages))
        if refused:
            pages = min(self._segments.refused_pages(), self.unmerged_pages())  # a part of each is handed out
            known.append(Obstacle(kind=pb.OBSTACLE_KIND_SEGMENT, pages=pages, detail=refused[0]))
        return known

    def gauges(self) -> pb.Gauges:
        """Levels, for operators."""
        counts, windows = self._space.counts(), self._space.windows()
        in_use = self._arena.pages_in_use + counts.inherited
        return pb.Gauges(
            owned_pages=max(0, in_use - counts.merged - counts.zero - counts.copied),
            merged_pages=counts.merged,
            zero_pages=counts.zero,
            copied_pages=counts.copied,
            mappings=counts.mappings,
            mapping_budget=min(counts.budget, 0xFFFFFFFF),
            windows=windows.windows,
            window_p99_micros=round(windows.p99_micros),
            window_max_micros=round(windows.max_micros),
            shared_pages=counts.shared,
        )

    @property
    def is_news(self) -> bool:
        """Whether obstacles came or went, or their numbers of pages are due to be told."""
        known = _pages_by_kind(self.obstacles())
        if known.keys() != self._reported.keys():
            return True
        return known != self._reported and threads.monotonic() - self._reported_at > OBSTACLE_SECONDS

    @property
    def is_outdated(self) -> bool:
        """Whether the server knows other numbers of pages than there are."""
        return bool(self._reported) and _pages_by_kind(self.obstacles()) != self._reported

    def reported(self, obstacles: Iterable[Obstacle]) -> None:
        """Notes what the server knows now."""
        self._reported, self._reported_at = _pages_by_kind(obstacles), threads.monotonic()


def _pages_by_kind(obstacles: Iterable[Obstacle]) -> dict[Kind, int]:
    return {obstacle.kind: obstacle.pages for obstacle in obstacles}
