"""Whether a client answers: what counts as an answer, when it is rung again, and when it is silent."""

from __future__ import annotations

import pytest
from pagefold_server.sessions.responsiveness import LookRequest, Responsiveness, Work

PATIENCE = 3.0
NO_LOOK = LookRequest()


def test_adopts_are_done_with_the_next_call() -> None:
    client = Responsiveness(heard=0)
    client.send(merges=False, adopts=True)
    assert client.work is Work.ADOPTS
    client.answer(merges=False)
    assert client.work is Work.NONE


@pytest.mark.parametrize("adopts", [False, True])
def test_merges_are_done_with_an_answer_and_not_with_a_call(adopts: bool) -> None:
    client = Responsiveness(heard=0)
    client.send(merges=True, adopts=adopts)
    for _ in range(3):
        client.answer(merges=False)
        client.send(merges=False, adopts=True)
        assert client.work is Work.MERGES
    client.answer(merges=True)
    client.send(merges=False, adopts=False)
    assert client.work is Work.NONE


def test_a_client_at_work_is_rung_when_it_has_not_called_and_any_other_when_it_was_not_rung() -> None:
    client = Responsiveness(heard=10.0)
    assert client.is_ring_due(10.1), "it was never rung"
    client.rung = 10.1
    assert not client.is_ring_due(10.2)
    assert client.is_ring_due(11.2)
    client.send(merges=True, adopts=False)
    assert not client.is_ring_due(10.9), "it calls by itself"
    assert client.is_ring_due(11.1)


def test_a_client_is_silent_when_it_has_had_work_for_too_long() -> None:
    client = Responsiveness(heard=0)
    assert not client.is_silent(1e9, PATIENCE, NO_LOOK), "it has nothing to do"
    client.expect(5.0)
    client.expect(7.0)
    assert not client.is_silent(8.0, PATIENCE, NO_LOOK)
    assert client.is_silent(8.1, PATIENCE, NO_LOOK), "since it was expected first"


def test_a_client_that_calls_and_never_looks_is_silent_too() -> None:
    client, look = Responsiveness(heard=0), LookRequest()
    look.ask(1, 0.0)
    look.ask(2, 5.0)
    assert not client.is_silent(8.9, PATIENCE, look)
    assert client.is_silent(9.1, PATIENCE, look), "asking again begins no new time"
    look.answer(1, 9.0)
    assert look.is_open
    assert not client.is_silent(17.9, PATIENCE, look), "a look on the way to the last one does"
    look.answer(7, 18.0)
    assert (look.made, look.is_open) == (2, False), "no client has made a look that it was not asked for"
    assert not client.is_silent(1e9, PATIENCE, look)


def test_a_look_that_is_dropped_is_not_waited_for() -> None:
    look = LookRequest()
    look.ask(3, 0.0)
    look.drop()
    assert not look.is_open
    look.answer(2, 1.0)
    assert look.made == 3
