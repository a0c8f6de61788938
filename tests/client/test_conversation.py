"""What a client says, and in which order, whatever gets lost. No thread, no memory, no server."""

from __future__ import annotations

import errno
import fcntl
import logging
import math
import os
import signal
import threading
from typing import Any

import pytest
from pagefold._errors import IncompatibleServer, LimitReached, ServerRefused, ServerUnavailable, SessionLost
from pagefold._session import instructions as instructions_module
from pagefold._session import pools, transport
from pagefold._session.conversation import Conversation
from pagefold._session.outbox import LEAST_EVENTS
from pagefold._session.segments import DROP_TRIES
from pagefold._session.transport import LocalTransport
from pagefold.testing import FakeServer
from pagefold_proto import shm_names
from pagefold_proto.v1 import memory_pb2 as pb
from support.fakes import FakeArena, FakeSegment, FakeSpace

MERGED, RELEASED, EXCLUDED = pb.EVENT_KIND_MERGED, pb.EVENT_KIND_RELEASED, pb.EVENT_KIND_EXCLUDED


class Rig:
    def __init__(self) -> None:
        self.space = FakeSpace()
        self.server = FakeServer()
        self.arena = FakeArena(self.space)
        self.conversation = Conversation(self.space, self.arena, LocalTransport(self.server))
        self.conversation.hello(pb.HelloRequest(protocol=1))

    def segment(self, number: int = 1, pages: int = 16) -> FakeSegment:
        made = shm_names.create_locked(shm_names.SEGMENT, 0o600, pages * 4096)
        return FakeSegment(number, made.name, made.fd, pages, number << 40)

    def last(self) -> Any:
        return self.server.of("Exchange")[-1]


@pytest.fixture
def rig(no_names: None) -> Rig:
    return Rig()


def test_a_turn_without_events_and_instructions_is_quiet(rig: Rig) -> None:
    rig.space.event(EXCLUDED, 1, 2, 3)
    assert rig.conversation.has_work()
    assert rig.conversation.turn()
    assert not rig.conversation.turn()
    assert not rig.conversation.has_work()
    assert rig.server.booked == [(EXCLUDED, 1, 2, 3, 0, 0, 0)]
    assert [r.sequence for r in rig.server.of("Exchange")] == [1, 2]


def test_instructions_are_carried_out_and_their_results_reported(rig: Rig) -> None:
    merges = pb.MergeBatch(segment=[1], first=[0], count=[4])  # pool and frame all zero: left out
    adopts = pb.AdoptBatch(segment=[1], first=[8], count=[2])
    rig.server.replies.append(pb.ExchangeReply(merges=merges, adopts=adopts, more=True))
    assert rig.conversation.turn()
    assert rig.space.calls[1:] == [("merge", [1], [0], [4], [0], [0]), ("adopt", [1], [8], [2])]
    assert rig.conversation.turn()
    assert rig.server.booked == [(MERGED, 1, 0, 4, 0, 0, 0), (RELEASED, 1, 8, 2, 0, 0, 0)]
    assert not rig.conversation.turn()


def test_a_lost_answer_is_asked_for_again_with_the_same_request(rig: Rig) -> None:
    """The server books a call once, whichever way it got lost; the events after it come after it."""
    rig.space.event(MERGED, 1, 0, 1)
    rig.server.failures.append(("Exchange", ServerUnavailable("not there")))
    rig.server.lost.append(ServerUnavailable("the answer got lost"))
    for _ in range(2):
        with pytest.raises(ServerUnavailable):
            rig.conversation.turn()
        rig.space.event(MERGED, 1, 7, 1)
        assert rig.conversation.has_work()
    assert rig.conversation.turn()
    first, second, third = rig.server.of("Exchange")
    assert first.SerializeToString() == second.SerializeToString() == third.SerializeToString()
    rig.conversation.turn()
    assert [(row[0], row[2]) for row in rig.server.booked] == [(MERGED, 0), (MERGED, 7), (MERGED, 7)]


def test_messages_stay_below_the_servers_limit(rig: Rig) -> None:
    rig.conversation._outbox._most = 100
    for page in range(250):
        rig.space.event(MERGED, 1, page, 1)
    while rig.conversation.turn():
        pass
    assert [len(r.events.kind) for r in rig.server.of("Exchange")] == [100, 100, 50, 0]
    assert [row[2] for row in rig.server.booked] == list(range(250))


def test_segments_are_announced_before_their_events(rig: Rig) -> None:
    segment = rig.segment()
    rig.arena.add(segment)
    assert not rig.arena.is_announced
    rig.space.event(EXCLUDED, 1, 0, 1)
    rig.server.failures.append(("AddSegment", ServerUnavailable("later")))
    with pytest.raises(ServerUnavailable):
        rig.conversation.turn()
    rig.conversation.turn()
    methods = [name for name, _ in rig.server.requests]
    assert methods == ["Hello", "AddSegment", "AddSegment", "Exchange"]
    assert rig.server.of("AddSegment")[0].name == segment.name
    assert rig.server.of("AddSegment")[0].address == segment.address > 0
    assert rig.server.booked == [(EXCLUDED, 1, 0, 1, 0, 0, 0)]
    assert rig.arena.is_announced
    segment.discard()


def test_a_segment_that_the_server_does_not_take_is_never_mentioned_again(rig: Rig) -> None:
    segment = rig.segment()
    rig.arena.add(segment)
    rig.server.failures.append(("AddSegment", LimitReached("limit", "no more")))
    rig.space.event(EXCLUDED, 1, 0, 1)
    rig.space.event(EXCLUDED, 2, 5, 6)
    rig.conversation.turn()
    assert rig.server.booked == [(EXCLUDED, 2, 5, 6, 0, 0, 0)]
    assert rig.conversation.segments.refused == {1: "no more"}
    rig.arena.drop(segment)
    rig.conversation.turn()
    assert rig.server.of("DropSegment") == []
    assert rig.conversation.segments.refused == {}


def test_a_segment_is_dropped_after_its_last_event_and_its_name_after_that(rig: Rig) -> None:
    segment = rig.segment()
    rig.arena.add(segment)
    rig.conversation.turn()
    rig.conversation._outbox._most = 10
    for page in range(25):
        rig.space.event(RELEASED, 1, page, 1)
    rig.arena.drop(segment)
    rig.server.called = lambda method, _: (
        [len(rig.server.booked), _names_exist(segment)] == [25, True] or pytest.fail("dropped too early")
        if method == "DropSegment"
        else None
    )
    while rig.conversation.has_work():
        rig.conversation.turn()
    assert len(rig.server.of("DropSegment")) == 1
    assert not _names_exist(segment)


def _names_exist(segment: FakeSegment) -> bool:
    from support import kernel

    return segment.name.lstrip("/") in kernel.names()


def test_a_segment_that_is_still_in_use_there_is_dropped_later(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pagefold._session.segments.DROP_AGAIN_SECONDS", 0.0)
    segment = rig.segment()
    rig.arena.add(segment)
    rig.conversation.turn()
    rig.arena.drop(segment)
    rig.server.failures.append(("DropSegment", ServerRefused("segment_in_use", "proposals")))
    rig.conversation.turn()
    assert rig.conversation.segments.are_dropping
    assert rig.conversation.has_work()
    rig.conversation.turn()
    assert not rig.conversation.segments.are_dropping
    assert [name for name, _ in rig.server.requests][-3:] == ["DropSegment", "Exchange", "DropSegment"]


def test_settles_are_asked_one_at_a_time_and_answer_all_before_them(rig: Rig) -> None:
    settles = rig.conversation.settles
    rig.server.settle = False
    first, second, third = (settles.begin(lambda: None) for _ in range(3))
    assert first.wait(0) is None
    del first
    rig.conversation.turn()
    assert rig.space.calls == [("harvest",)], "what was written so far is part of the question"
    assert rig.last().settling == 3
    fourth = settles.begin(lambda: None)
    assert settles.is_current
    rig.conversation.turn()
    assert rig.last().settling == 3, "a newer one waits its turn"
    rig.server.settle = True
    rig.conversation.turn()
    told = second.wait(0), third.wait(0)
    assert told[0] == told[1]
    assert told[0] is not None
    assert told[0][0].settled
    assert fourth.wait(0) is None
    assert rig.conversation.has_work()
    rig.conversation.turn()
    assert rig.last().settling == 4
    assert fourth.wait(0) is not None
    rig.conversation.turn()
    assert rig.last().settling == 0
    assert not rig.conversation.has_work()


def test_when_there_will_be_no_answers_all_are_told_the_first_reason(rig: Rig) -> None:
    settles = rig.conversation.settles
    waiting = settles.begin(lambda: None)
    settles.end("the server is gone")
    settles.end("something else")
    assert waiting.wait(0) == (None, "the server is gone")
    assert settles.begin(lambda: None).wait(20) == (None, "the server is gone")
    assert not settles


@pytest.mark.parametrize("error", [OSError(12, "no memory"), ValueError("nonsense"), OverflowError("too large")])
def test_instructions_that_cannot_be_carried_out_do_not_end_the_session(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> int:
        raise error

    monkeypatch.setattr(rig.space, "merge", fail)
    rig.server.replies.append(pb.ExchangeReply(merges=pb.MergeBatch(segment=[1], first=[0], count=[1])))
    assert rig.conversation.turn()
    assert "instructions failed" in caplog.text
    assert not rig.conversation.turn()


def test_pools_that_are_none_are_not_opened(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    names = ["/etc/passwd", "/pagefold-s-" + "0" * 32, shm_names.new_name(shm_names.POOL)]
    rig.server.replies.append(pb.ExchangeReply(pools=[pb.PoolInfo(pool=1, name=name) for name in names]))
    rig.conversation.turn()
    assert rig.space.calls == [("harvest",)]
    assert len(caplog.records) == 3
    rig.conversation.turn()
    assert len(caplog.records) == 3, "names of another form are given up at once, and what is missing is not told again"


def test_a_pool_that_cannot_be_opened_yet_is_opened_later(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # It was given up for good: a client short of descriptors for a moment declined every merge from then on.
    made = shm_names.create_locked(shm_names.POOL, 0o400, 0)
    real = shm_names.look
    refusals = [OSError(errno.EMFILE, "Too many open files")] * 2

    def look(name: str) -> int:
        if refusals:
            raise refusals.pop()
        return real(name)

    monkeypatch.setattr(shm_names, "look", look)
    rig.server.replies.append(pb.ExchangeReply(pools=[pb.PoolInfo(pool=1, name=made.name)]))
    for _ in range(5):
        rig.conversation.turn()
    assert [call for call in rig.space.calls if call[0] == "add_pool"] == [("add_pool", 1)]
    assert [record.levelname for record in caplog.records] == ["ERROR"], "said once, at the level that people see"
    shm_names.remove(made.name)
    os.close(made.fd)


def test_a_server_that_names_pool_after_pool_gets_a_few_descriptors(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """It got two for each: 5,000 in four seconds."""
    made = [shm_names.create_locked(shm_names.POOL, 0o400, 0) for _ in range(40)]
    before = set(os.listdir("/proc/self/fd"))
    for turn in range(20):
        missing = [shm_names.new_name(shm_names.POOL) for _ in range(500)]
        names = [pool.name for pool in made[2 * turn : 2 * turn + 2]] + missing
        rig.server.replies.append(pb.ExchangeReply(pools=[pb.PoolInfo(pool=turn + 1, name=name) for name in names]))
        rig.conversation.turn()
    assert len(set(os.listdir("/proc/self/fd")) - before) <= pools.MOST_POOLS + 1
    assert len(rig.conversation._pools._unopened) <= pools.MOST_POOLS
    loud = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(loud) <= pools.MOST_POOLS
    rig.conversation.close()
    for pool in made:
        shm_names.remove(pool.name)
        pool.fd.close()


@pytest.mark.parametrize("what", ["fifo", "leased", "directory"])
def test_nobody_is_waited_for_when_a_pool_is_opened(rig: Rig, what: str) -> None:
    """The open of a FIFO waited for its writer, for ever, with the lock held that forks take."""
    made = shm_names.create_locked(shm_names.POOL, 0o600, 0)
    path = f"/dev/shm/{made.name[1:]}"
    leased = -1
    if what != "leased":
        os.unlink(path)
        os.mkfifo(path) if what == "fifo" else os.mkdir(path)
    else:
        made.fd.close()  # a lease is for those who have it open nowhere else
        leased = os.open(path, os.O_RDWR)
        fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        rig.server.replies.append(pb.ExchangeReply(pools=[pb.PoolInfo(pool=1, name=made.name)]))
        thread = threading.Thread(target=rig.conversation.turn, daemon=True)
        thread.start()
        thread.join(5)
        assert not thread.is_alive()
        assert not rig.conversation._pools.has_pool(made.name)
    finally:
        os.rmdir(path) if what == "directory" else os.unlink(path)
        if leased >= 0:
            os.close(leased)
            signal.signal(signal.SIGIO, signal.SIG_DFL)
        else:
            made.fd.close()


MOST = instructions_module.MOST_INSTRUCTED


@pytest.mark.parametrize(
    "reply",
    [
        pb.ExchangeReply(merges=pb.MergeBatch(count=[0] * (MOST + 1))),
        pb.ExchangeReply(merges=pb.MergeBatch(count=[1, MOST])),
        pb.ExchangeReply(merges=pb.MergeBatch(count=[1], frame=[1, 2])),
        pb.ExchangeReply(merges=pb.MergeBatch(frame=[1, 2])),
        pb.ExchangeReply(adopts=pb.AdoptBatch(segment=[1], first=[0], count=[(1 << 32) - 1])),
        pb.ExchangeReply(adopts=pb.AdoptBatch(count=[0] * (MOST + 1))),
    ],
)
def test_instructions_beyond_any_servers_are_not_carried_out(rig: Rig, reply: pb.ExchangeReply) -> None:
    rig.server.replies.append(reply)
    with pytest.raises(IncompatibleServer, match="same version"):
        rig.conversation.turn()
    assert [call[0] for call in rig.space.calls] == ["harvest"]


def test_a_server_sends_no_more_than_a_client_takes() -> None:
    from pagefold_server.settings import Settings

    bounds = {key: field.metadata for key, field in Settings.model_fields.items()}
    assert [m.le for m in bounds["max_batch_pages"] if hasattr(m, "le")] == [instructions_module.MOST_INSTRUCTED]
    assert next(m.le for m in bounds["max_outstanding"] if hasattr(m, "le")) * 2 <= instructions_module.MOST_OWED
    columns = {name: [2**32 - 1] * MOST for name in ("segment", "first", "count")}
    merges = pb.MergeBatch(**columns, pool=columns["first"], frame=columns["first"])
    whole = pb.ExchangeReply(merges=merges, adopts=pb.AdoptBatch(**columns), look=2**64 - 1)
    assert whole.ByteSize() < transport.MAX_MESSAGE_BYTES


def test_answers_that_a_server_does_not_take_do_not_pile_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It said that its messages hold one event, and proposed a thousand pages with each."""
    monkeypatch.setattr(instructions_module, "MOST_OWED", 50_000)
    greet = rig.server.__class__.__call__

    def small(method: str, request: Any) -> Any:
        answer = greet(rig.server, method, request)
        if method == "Hello":
            answer.max_message_bytes = 1
        return answer

    conversation = Conversation(rig.space, rig.arena, LocalTransport(small))
    conversation.hello(pb.HelloRequest())
    rows = list(range(0, 2 * LEAST_EVENTS, 2))
    for _ in range(100):  # as many as it takes
        rig.server.replies.append(pb.ExchangeReply(merges=pb.MergeBatch(first=rows, count=[1] * len(rows))))
        conversation.turn()
    assert rig.space.pending() <= 2 * len(rows)
    many = list(range(0, MOST, 2))
    with pytest.raises(IncompatibleServer, match="answers wait"):  # noqa: PT012 - any of them
        for _ in range(10):
            rig.server.replies.append(pb.ExchangeReply(merges=pb.MergeBatch(first=many, count=[1] * len(many))))
            conversation.turn()
    assert rig.space.pending() < 100_000


def test_a_token_is_not_as_long_as_a_server_likes(rig: Rig) -> None:
    reply = pb.HelloReply(session=bytes(1 << 20))
    conversation = Conversation(rig.space, rig.arena, LocalTransport(lambda *_: reply))
    with pytest.raises(IncompatibleServer, match="same version"):
        conversation.hello(pb.HelloRequest())


def test_what_a_server_says_beside_the_totals_is_not_kept(rig: Rig) -> None:
    reply = pb.ExchangeReply()
    reply.totals.MergeFromString(b"\x08\x07" + b"\xfa\x07\x80\x80\x40" + bytes(1 << 20))  # and a field of a megabyte
    rig.server.replies.append(reply)
    rig.conversation.turn()
    assert rig.conversation.totals == pb.DomainTotals(pages_shared=7)


def test_failures_and_refusals_are_not_logged_for_ever(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(12, "no memory")

    monkeypatch.setattr(rig.space, "merge", fail)
    segment = rig.segment()
    rig.arena.add(segment)
    for _ in range(20):
        rig.server.replies.append(pb.ExchangeReply(merges=pb.MergeBatch(count=[1])))
        rig.server.failures.append(("AddSegment", LimitReached("limit", "no more")))
        rig.conversation.turn()
        rig.conversation.lose_session()
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 2
    segment.discard()


def test_a_segment_that_the_server_never_drops_takes_nothing_here(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each took a descriptor and a name, as long as the server said that it was in use."""
    monkeypatch.setattr("pagefold._session.segments.DROP_AGAIN_SECONDS", 0.0)
    before = set(os.listdir("/proc/self/fd"))
    rig.server.failures.extend([("DropSegment", ServerRefused("segment_in_use", "for ever"))] * 1000)
    for number in range(1, 11):
        segment = rig.segment(number)
        rig.arena.add(segment)
        rig.conversation.turn()
        rig.arena.drop(segment)
        rig.conversation.turn()
        assert not _names_exist(segment)
    assert set(os.listdir("/proc/self/fd")) == before
    while rig.conversation.segments.are_dropping:
        rig.conversation.turn()
    assert len(rig.server.of("DropSegment")) == 10 * (DROP_TRIES + 1)


def test_what_a_turn_is_worth(rig: Rig) -> None:
    worth = []
    for reply, events, settling in (
        (pb.ExchangeReply(more=True, look=1), 0, False),
        (pb.ExchangeReply(), 1000, False),
        (pb.ExchangeReply(merges=pb.MergeBatch(segment=[1], count=[1])), 0, False),
        (pb.ExchangeReply(adopts=pb.AdoptBatch(segment=[1], first=[0], count=[1])), 0, False),
        (pb.ExchangeReply(), 0, True),
    ):
        while rig.conversation.turn():
            pass
        rig.space.journal.extend([(EXCLUDED, 1, 2 * n, 1, 0, 0, 0) for n in range(events)])
        waiter = rig.conversation.settles.begin(lambda: None) if settling else None
        rig.server.replies.append(reply)
        rig.conversation.earned.seconds = 0.0
        rig.conversation.turn()
        worth.append(rig.conversation.earned.seconds)
        del waiter
    assert worth[0] == 0
    assert 0 < worth[1] < 0.1
    assert worth[2:] == [math.inf] * 3


def test_a_lost_session_forgets_what_nobody_will_be_told(rig: Rig) -> None:
    segment = rig.segment()
    leftover = rig.segment(2)
    rig.arena.add(leftover)
    rig.arena.drop(segment)
    rig.space.event(MERGED, 1, 0, 1)
    rig.server.failures.append(("*", SessionLost("unknown_session", "who?")))
    with pytest.raises(SessionLost):
        rig.conversation.turn()
    rig.conversation.forget_events()
    assert not rig.conversation.has_work()
    assert not _names_exist(segment)
    leftover.discard()


def test_a_segment_that_was_made_and_dropped_without_a_server_is_not_announced(rig: Rig, caplog: Any) -> None:
    """It was announced to the server that followed, which could not open it: its name had gone."""
    first, second = rig.segment(), rig.segment(2)
    rig.arena.add(first)
    rig.arena.add(second)
    rig.arena.drop(second)
    rig.server.failures.append(("*", SessionLost("unknown_session", "who?")))
    with pytest.raises(SessionLost):
        rig.conversation.turn()
    rig.conversation.lose_session()
    rig.conversation.turn()
    assert {request.segment for request in rig.server.of("AddSegment")} == {1}
    assert not rig.conversation.segments.refused
    first.discard()


@pytest.mark.parametrize("taken_over", [True, False])
def test_a_child_leaves_frames_that_the_next_server_does_not_have_and_no_others(rig: Rig, taken_over: bool) -> None:
    """Its pools are not open before it has exchanged; it claimed frames from a server that did not have them."""
    segment = rig.segment()
    rig.arena.add(segment)  # as an inherited one is
    old, new = shm_names.new_name("p"), shm_names.new_name("p")
    rig.conversation._returning.arrive(old)
    rig.conversation._returning.come_back(old if taken_over else new)
    adopted = [call for call in rig.space.calls if call[0] == "adopt"]
    assert bool(adopted) is not taken_over
    segment.discard()
