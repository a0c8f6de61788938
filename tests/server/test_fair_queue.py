"""Whose turn it is: queue of the processor by time, and who counts as waiting for it."""

from __future__ import annotations

import asyncio
import random

import pytest
from pagefold_server.api import turns
from pagefold_server.api.turns import Turns
from pagefold_server.tenants import tenants
from pagefold_server.tenants.fair_queue import FairQueue, Share
from pagefold_server.tenants.tenants import STRANGERS, Tenants


@pytest.mark.parametrize("pieces", [(1.0, 1.0), (0.1, 7.0), (5.0, 0.01)])
def test_those_who_always_want_something_get_the_same_however_they_cut_it(pieces: tuple[float, float]) -> None:
    queue, both = FairQueue(), (Share(), Share())
    for share in both:
        queue.want(share)
    for _ in range(20000):
        turn = min((0, 1), key=lambda n: both[n].clock)
        queue.charge(both[turn], pieces[turn])
    assert abs(both[0].used - both[1].used) <= max(pieces)


def test_time_that_was_not_used_is_not_saved_up() -> None:
    queue, busy, idle = FairQueue(), Share(), Share()
    queue.want(busy)
    for _ in range(100):
        queue.charge(busy, 1.0)
    queue.want(idle)
    assert busy.clock - idle.clock <= 1.0


def test_many_tenants_get_the_same_whenever_each_comes_and_goes() -> None:
    chance, queue = random.Random(5), FairQueue()
    always, others = [Share() for _ in range(3)], [Share() for _ in range(5)]
    for share in always:
        queue.want(share)
    for _ in range(30000):
        for share in others:
            if chance.random() < 0.1:
                (queue.rest if share.wants else queue.want)(share)
        queue.charge(min((s for s in (*always, *others) if s.wants), key=lambda s: s.clock), chance.random())
    assert max(s.used for s in always) - min(s.used for s in always) <= 1.0
    assert all(share.used <= max(s.used for s in always) + 1.0 for share in others)


def served(tenants_: Tenants, uid: int, cpu: float) -> None:
    tenant = tenants_.get(uid)
    tenants_.charge_scan(tenant, Share(), cpu)


def test_who_wanted_something_a_moment_ago_still_counts_and_only_if_asked_for() -> None:
    all_, ahead, behind = Tenants(), 1, 2
    for uid in (ahead, behind):
        all_.get(uid).due = 1
        all_.note(all_.get(uid))
    served(all_, ahead, 1.0)
    assert all_.ahead(all_.get(ahead)) == 1.0
    all_.get(behind).due = 0
    all_.note(all_.get(behind))
    assert all_.ahead(all_.get(ahead)) == 0
    assert all_.ahead(all_.get(ahead), lately=True) == 1.0
    all_.forget_lately(all_.get(ahead))
    assert all_.ahead(all_.get(ahead), lately=True) == 0


def test_a_call_waits_while_another_is_behind_and_wants_something() -> None:
    all_ = Tenants()
    done: list[int] = []

    async def call(uid: int) -> None:
        async with Turns(all_).turn(all_.get(uid), 0):
            done.append(uid)

    async def story() -> None:
        all_.get(2).due = 1
        all_.note(all_.get(2))
        served(all_, 1, 1.0)
        first = asyncio.create_task(call(1))
        for _ in range(20):
            await asyncio.sleep(0)
        assert all_.get(1).delayed == 1
        await call(2)
        assert done == [2]
        served(all_, 2, 1.0)  # it has caught up
        await first

    asyncio.run(asyncio.wait_for(story(), 30))
    assert done == [2, 1]
    assert (all_.get(1).delayed, all_.get(2).delayed) == (1, 0)


def test_who_wants_nothing_any_more_is_waited_for_no_longer_than_he_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenants, "_LATELY", 3600.0)
    all_ = Tenants()

    async def story() -> None:
        other = all_.get(2)
        other.due = 1
        all_.note(other)
        served(all_, 1, 2 * turns.CREDIT)
        other.due = 0
        all_.note(other)
        for _ in range(2):
            async with Turns(all_).turn(all_.get(1), 0):
                pass

    asyncio.run(asyncio.wait_for(story(), 30))
    assert all_.get(1).delayed == 1, "the same debt is paid once"


def test_calls_that_nobody_can_interrupt_and_strangers_count_for_more() -> None:
    all_ = Tenants()
    price = turns._price
    assert price(all_.get(1), 0.001) == 0.001
    assert price(all_.get(1), 0.025) > 2 * 0.025
    assert price(all_.get(STRANGERS), 0.001) > 0.003
