"""When a domain is settled: passes are weighed as docs/design/engine.md says, "settle()"."""

from __future__ import annotations

import pytest
from pagefold_proto import obstacle_table
from pagefold_proto.v1 import memory_pb2 as pb
from pagefold_server.domains.settle import Activity, Settlers
from pagefold_server.engine.interface import EngineCounters, PassReport

QUIET = Activity(busy=False, unanswered=0, full=False)
BUSY = Activity(busy=True, unanswered=0, full=False)


class Waiting:
    """One who waits since before pass 1, in a domain that is told about by hand; before pass n, look n was complete."""

    def __init__(self, look: int = 1) -> None:
        self.reports: list[pb.SettleReport] = []
        self.settlers = Settlers()
        self.books = EngineCounters()
        self.passes = 0
        self.settlers.start("me", 7, look, self.books, self.reports.append)

    def passed(self, look: Activity = QUIET, **found: int) -> bool:
        self.passes += 1
        fields = dict.fromkeys(PassReport.__slots__, 0) | found | {"number": self.passes}
        self.settlers.passed(PassReport(**fields), self.books, look, self.passes, self.passes)
        return bool(self.reports)


def test_a_pass_that_found_nothing_is_the_answer() -> None:
    waiting = Waiting()
    assert waiting.passed()
    (report,) = waiting.reports
    assert (report.settling, report.settled, report.passes) == (7, True, 1)
    assert len(waiting.settlers) == 0


def test_a_pass_that_began_before_all_clients_had_looked_does_not_count() -> None:
    waiting = Waiting(look=2)
    assert not waiting.passed()
    assert waiting.passed()


def test_what_looks_hot_to_the_first_pass_gets_a_second_look() -> None:
    # Written before the last pass and again just before the request: hot to this pass, and quiet ever since.
    waiting = Waiting()
    assert not waiting.passed(volatile=3)
    assert not waiting.passed(volatile=0, proposed=3)
    assert waiting.passed()
    hot = Waiting()
    assert not hot.passed(volatile=3)
    assert hot.passed(volatile=3), "what is hot to the second pass too is not waited for"


@pytest.mark.parametrize("found", ["proposed", "fresh", "backlog"])
def test_a_pass_that_left_something_is_not(found: str) -> None:
    waiting = Waiting()
    assert not waiting.passed(**{found: 1})
    assert waiting.passed(volatile=9, unshared=9, waiting=9)


def test_answers_are_waited_for() -> None:
    waiting = Waiting()
    assert not waiting.passed(BUSY)
    assert waiting.passed()


def test_what_was_merged_is_to_be_seen_merged_by_one_more_look() -> None:
    # The kernel may have copied it at once: mlockall(MCL_FUTURE). It was "settled", and nothing was merged.
    waiting = Waiting()
    waiting.books.pages_merged = 5
    assert not waiting.passed(), "the clients looked before that"
    assert waiting.passed()
    assert waiting.reports[0].merged_pages == 5


@pytest.mark.parametrize("kind", [kind for kind, words in obstacle_table.TABLE.items() if words.blocks])
def test_it_is_not_settled_while_an_obstacle_concerns_a_page(kind: pb.ObstacleKind) -> None:
    for pages in (0, 9):
        waiting = Waiting()
        assert waiting.passed(Activity(False, 0, False, [pb.Obstacle(kind=kind, pages=pages)] * 2))
        (report,) = waiting.reports
        assert report.settled == (pages == 0)
        assert [(each.kind, each.pages) for each in report.obstacles] == [(kind, 2 * pages)]


@pytest.mark.parametrize("kind", [kind for kind, words in obstacle_table.TABLE.items() if not words.blocks])
def test_a_programs_own_wish_is_told_and_blocks_nothing(kind: pb.ObstacleKind) -> None:
    waiting = Waiting()
    assert waiting.passed(Activity(False, 0, False, [pb.Obstacle(kind=kind, pages=9)]))
    assert waiting.reports[0].settled
    assert waiting.reports[0].obstacles


def test_three_quiet_passes_are_the_answer_where_pages_stay_fresh() -> None:
    waiting = Waiting()
    for proposed in (0, 0, 1, 0, 0):
        assert not waiting.passed(fresh=1, proposed=proposed)
    assert waiting.passed(fresh=1)
    assert waiting.reports[0].settled
    assert waiting.reports[0].passes == 6


def test_a_merge_in_between_begins_the_count_anew() -> None:
    waiting = Waiting()
    for _ in range(2):
        assert not waiting.passed(fresh=1)
    waiting.books.pages_merged += 1
    for _ in range(3):
        assert not waiting.passed(fresh=1)
    assert waiting.passed(fresh=1)


def test_quick_passes_while_a_client_works_are_not_quiet() -> None:
    waiting = Waiting()
    for _ in range(10):
        assert not waiting.passed(BUSY, fresh=1)


def test_no_room_is_not_settled() -> None:
    waiting = Waiting()
    assert waiting.passed(Activity(busy=False, unanswered=3, full=True))
    assert not waiting.reports[0].settled
    assert waiting.reports[0].pages_refused == 3


def test_several_wait_and_each_may_stop() -> None:
    waiting = Waiting()
    others: list[pb.SettleReport] = []
    waiting.settlers.start("you", 8, 2, waiting.books, others.append)
    waiting.settlers.start("them", 9, 1, waiting.books, others.append)
    waiting.settlers.stop("them")
    assert waiting.passed()
    assert others == []
    waiting.passed()
    assert [report.settling for report in others] == [8]


def test_giving_up() -> None:
    waiting = Waiting()
    waiting.settlers.give_up_one("nobody", waiting.books, QUIET)
    waiting.settlers.give_up(waiting.books, QUIET)
    assert [report.settled for report in waiting.reports] == [False]
