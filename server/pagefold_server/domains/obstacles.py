"""What keeps pages of a domain from merging, and in which client's memory.

The words for each kind are in `pagefold_proto.obstacle_table`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Final

from pagefold_proto import obstacle_table
from pagefold_proto.v1 import memory_pb2 as pb

from pagefold_server.domains.participant import Participant
from pagefold_server.engine.interface import Engine

_SPEECHLESS: Final = (pb.OBSTACLE_KIND_SILENT, pb.OBSTACLE_KIND_EXCLUDED)

Found = tuple[int, pb.Obstacle]
"""The number of the client that has the pages (0: all clients), and what keeps them from merging."""


class Obstacles:
    """See the head of this file.

    Args:
        engine: of the domain.
        participants: its clients; the caller's.

    Attributes:
        engine_failed: the engine's books answer no more.
    """

    def __init__(self, engine: Engine, participants: Mapping[int, Participant]) -> None:
        self._engine = engine
        self._participants = participants
        self.engine_failed = False
        self._speechless: list[Found] = []
        self._told: frozenset[tuple[int, int]] = frozenset()  # clients and kinds of obstacles

    def collect(self, common: Iterable[pb.Obstacle]) -> list[Found]:
        """All of them.

        Args:
            common: those that concern all clients.
        """
        found = [(0, obstacle) for obstacle in common]
        for client in self._participants:
            found += ((client, obstacle) for obstacle in self._in(client))
        self._speechless = [(client, obstacle) for client, obstacle in found if obstacle.kind in _SPEECHLESS]
        return found

    def concerning(self, client: int, common: Iterable[pb.Obstacle]) -> list[pb.Obstacle]:
        """What one client is told: its own, and, as of the last pass, those of clients that are silent or excluded."""
        others = (obstacle for owner, obstacle in self._speechless if owner != client)
        return obstacle_table.summed((*common, *self._in(client), *others))

    def are_news(self, found: Iterable[Found]) -> bool:
        """Whether there are others than at the last call: then clients are to be told."""
        kinds = frozenset((client, obstacle.kind) for client, obstacle in found)
        before, self._told = self._told, kinds
        return kinds != before

    def _in(self, client: int) -> list[pb.Obstacle]:
        """Those in one client's memory."""
        engine = self._engine
        if self.engine_failed:
            return []
        left, proposed = engine.left(client), engine.merged_pages(client)[1]
        idle = client not in engine.queued() if left.copied else True
        apart = partial(engine.apart, client)
        return self._participants[client].obstacles(left, proposed, apart, idle, time.monotonic())
