"""What a domain asks of a session: who answers, who works, and what keeps pages from merging."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pagefold_proto.v1 import memory_pb2 as pb

from pagefold_server.engine.interface import Left


class Participant(Protocol):
    """One client of a domain. `sessions.session` has the real one."""

    number: int

    @property
    def tracked(self) -> bool:
        """Whether it reports which pages were written."""

    @property
    def looking(self) -> bool:
        """Whether it was asked to look for written pages, and has not reported yet."""

    @property
    def slot(self) -> int:
        """The byte of the pool that it holds locked while it may map frames; 0: none."""

    @property
    def resumed(self) -> bool:
        """Whether it has reported all that it maps from before."""

    @property
    def unmerged_pages(self) -> int:
        """Pages that it has handed out and that are not merged, as it said last."""

    def answers(self, now: float) -> bool:
        """Whether it takes part, and is not silent in spite of having work."""

    def is_working(self) -> bool:
        """Whether it was sent instructions, or asked for a look, and has not called since."""

    def ask(self, look: int, now: float) -> None:
        """Has the client look for written pages and report them; until then it is working."""

    def ring(self, now: float) -> None:
        """Rings its doorbell: it calls then, whether it has something to say or not."""

    def ring_if_due(self, now: float) -> None:
        """Rings its doorbell, unless that has just been done."""

    def obstacles(
        self, left: Left, proposed: int, apart: Callable[[], int], idle: bool, now: float
    ) -> list[pb.Obstacle]:
        """What keeps pages of it from merging.

        Args:
            left: its pages that were to be merged, by the engine's books.
            proposed: pages of which the answer is not in.
            apart: counts those of its pages that are known and like no other, or not wanted.
            idle: nothing is queued for it.
            now: the time.
        """
