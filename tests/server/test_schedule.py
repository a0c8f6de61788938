"""When a domain is scanned next: pauses, rests that grow, and what ends them."""

from __future__ import annotations

from pagefold_server.domains.schedule import Schedule


def ended(schedule: Schedule, at: float, pause: float = 0.5) -> float:
    """A pass ends; after how many seconds the next one is due."""
    schedule.served = at
    schedule.end_pass(pause)
    return schedule.due - at


def test_rests_double_up_to_the_longest_and_end_when_something_is_found() -> None:
    schedule, rests = Schedule(), []
    for at in range(7):
        schedule.rest_longer(most=16.0)
        rests.append(ended(schedule, float(at)))
    assert rests == [1, 2, 4, 8, 16, 16, 16]
    schedule.rest_longer(most=1.0)
    assert ended(schedule, 8.0) == 1.0
    schedule.end_rest()
    assert ended(schedule, 9.0) == 0.5


def test_stirring_ends_the_rest_and_keeps_the_pause() -> None:
    schedule = Schedule()
    schedule.rest_longer(most=16.0)
    ended(schedule, 100.0)
    schedule.stir()
    assert schedule.due == 100.5
    assert ended(schedule, 101.0) == 0.5


def test_waking_ends_both() -> None:
    schedule = Schedule()
    schedule.rest_longer(most=16.0)
    ended(schedule, 100.0)
    schedule.wake()
    assert schedule.due == 0.0


def test_a_pass_lasts_from_its_first_slice_to_where_it_is_dropped() -> None:
    schedule = Schedule()
    assert schedule.between_passes
    schedule.begin_pass(3.0)
    assert (schedule.between_passes, schedule.began) == (False, 3.0)
    schedule.drop_pass()
    assert schedule.between_passes
