"""What keeps one client's pages from merging: what the client says of itself, beside what the engine knows of them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from pagefold_proto import obstacle_table
from pagefold_proto.v1 import memory_pb2 as pb

from pagefold_server.engine.interface import Left

_MOST_ERRNO: Final = 4095
_MOST_PAGES: Final = 2**52  # of an address space
_COST: Final = 2  # mappings that an isolated page takes, at most


@dataclass(slots=True)
class ClientObstacles:
    """What a client has said, and what it was told, of its obstacles.

    Attributes:
        told: what keeps its pages from merging, as it knows by itself.
        refusal: why a segment was refused last.
        stuck: the errno for which pages were not taken back last.
    """

    told: list[pb.Obstacle] = field(default_factory=list)
    refusal: str = ""
    stuck: int = 0

    def collect(
        self,
        left: Left,
        gauges: pb.Gauges,
        silent: int,
        off: bool,
        idle: bool,
        unread: Callable[[int], int],
    ) -> list[pb.Obstacle]:
        """All obstacles of a client that takes part.

        Args:
            left: its pages that were to be merged, by the engine's books.
            gauges: its levels.
            silent: pages that wait because it does not answer.
            off: its barrier is "off".
            idle: it was told nothing that it has not done.
            unread: of a number of pages that a child shares, counts those that the server did not read before the fork.
        """
        pages: Counter[obstacle_table.Kind] = Counter()
        pages[pb.OBSTACLE_KIND_SILENT] = silent
        short = gauges.mapping_budget - gauges.mappings < _COST
        pages[pb.OBSTACLE_KIND_BUDGET if short else pb.OBSTACLE_KIND_MAPPINGS] = left.over_budget
        pages[pb.OBSTACLE_KIND_PINNED] = left.pinned
        stuck = left.copied if idle else 0
        forked = left.forked + (stuck if gauges.shared_pages else 0)
        told = [pb.Obstacle(kind=each.kind, pages=each.pages, error=each.error) for each in self.told]
        if stuck and not gauges.shared_pages:
            told.append(pb.Obstacle(kind=pb.OBSTACLE_KIND_STUCK, pages=stuck, error=min(self.stuck, _MOST_ERRNO)))
        if off and not told:
            told.append(pb.Obstacle(kind=pb.OBSTACLE_KIND_BARRIER, pages=gauges.owned_pages + gauges.copied_pages))
        for obstacle in told:
            if obstacle.kind == pb.OBSTACLE_KIND_SEGMENT:
                obstacle.detail = self.refusal
            elif obstacle.kind == pb.OBSTACLE_KIND_FORKED:
                obstacle.pages, forked = max(unread(obstacle.pages), forked), 0
        pages[pb.OBSTACLE_KIND_FORKED] = forked
        if not {obstacle.kind for obstacle in told} & obstacle_table.CAUSES:  # else these are why
            pages[pb.OBSTACLE_KIND_FAILED] = left.failed
            pages[pb.OBSTACLE_KIND_REFUSED] = left.refused
        return told + found(pages)


def believable(told: Iterable[pb.Obstacle]) -> list[pb.Obstacle]:
    """What a client says of its obstacles, less what it cannot know, and all texts."""
    kept: dict[int, pb.Obstacle] = {}
    for each in itertools.islice(told, len(obstacle_table.OWN)):
        if each.kind in obstacle_table.OWN - obstacle_table.UNSAID:
            error = each.error if each.error <= _MOST_ERRNO else 0
            kept[each.kind] = pb.Obstacle(kind=each.kind, pages=min(each.pages, _MOST_PAGES), error=error)
    return list(kept.values())


def found(pages: Mapping[obstacle_table.Kind, int]) -> list[pb.Obstacle]:
    """Obstacles by kinds and pages; those without pages are none."""
    return [pb.Obstacle(kind=kind, pages=count) for kind, count in pages.items() if count]
