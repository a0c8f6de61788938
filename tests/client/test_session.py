"""The session's thread on a fake space and a fake server: when it talks, when it is silent, how it ends."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pagefold._errors import DescriptorsClosed, ServerUnavailable, SessionLost
from pagefold._session import patience as patience_module
from pagefold._session import session as session_module
from pagefold._session.conversation import Conversation
from pagefold._session.patience import Patience
from pagefold._session.session import Components, Session
from pagefold._session.transport import LocalTransport
from pagefold.testing import FakeServer
from pagefold_core import PAGE_SIZE as PAGE
from pagefold_core import Answer, Ending, Turn, after_fork_in_parent, before_fork, call
from pagefold_proto.v1 import memory_pb2 as pb
from support.fakes import FakeArena, FakeSpace, make_bell
from support.waiting import until


class Rig:
    def __init__(self) -> None:
        self.space = FakeSpace()
        self.server = FakeServer()
        self.bell = make_bell()
        self.arena = FakeArena(self.space)
        self.transport = LocalTransport(self.server)
        self.conversation = Conversation(self.space, self.arena, self.transport)
        self.conversation.hello(pb.HelloRequest())
        self.released = 0
        self.session: Session

    def start(self) -> None:
        """Begins as connect() does: on a thread of the session's own."""
        self.session = call(self._begin)

    def _begin(self, answer: Answer) -> None:
        ending = Ending(self.bell, self.transport.close)
        components = self.space, self.arena, self.conversation, self.transport, self.bell, ending, self.release
        session = Session(Components(*components, tracker="checksum"))
        answer.give(session)
        session.run()

    def close(self) -> None:
        self.session.close()

    def release(self) -> None:
        self.released += 1

    @property
    def calls(self) -> int:
        return len(self.server.of("Exchange"))

    def silent(self) -> int:
        """Waits until the thread waits; returns how often it has called by then."""
        waits = self.space.waits
        until(lambda: self.space.waits > waits or not self.conversation.has_work(), what="silence")
        calls = self.calls
        time.sleep(0.05)  # nothing to wait on: that nothing happens is what is asked
        assert self.calls == calls
        return calls


@pytest.fixture
def rig(no_names: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(session_module, "BACKOFF_SECONDS", (0.001, 0.01))
    rig = Rig()
    yield rig
    rig.session.close()
    assert rig.released == 1
    assert rig.transport.closed


def test_it_is_silent_after_one_empty_call_and_calls_when_rung(rig: Rig) -> None:
    rig.start()
    until(lambda: rig.space.waits > 0)
    assert rig.silent() == 1
    rig.bell.ring()
    until(lambda: rig.calls == 2, what="the call that a ring asks for")
    assert rig.silent() == 2


def test_news_are_told_until_a_call_was_empty(rig: Rig) -> None:
    rig.start()
    until(lambda: rig.space.waits > 0)
    rig.server.replies.append(pb.ExchangeReply(merges=pb.MergeBatch(segment=[1], first=[0], count=[4])))
    rig.bell.ring()  # merges come, their results go, an empty call
    until(lambda: rig.calls == 4, what="three more calls")
    assert rig.silent() == 4
    assert rig.server.booked == [(pb.EVENT_KIND_MERGED, 1, 0, 4, 0, 0, 0)]


def test_settle_says_what_the_server_says(rig: Rig) -> None:
    rig.start()
    report = rig.session.settle(5)
    assert report.settled
    assert (report.reason, report.passes) == ("", 1)


def test_settle_that_takes_too_long_says_so_with_the_latest_numbers(rig: Rig) -> None:
    rig.server.settle = False
    rig.server.replies.append(pb.ExchangeReply(totals=pb.DomainTotals(pages_shared=1, pages_sharing=2, zero_pages=3)))
    rig.server.replies.extend(pb.ExchangeReply(totals=pb.DomainTotals(pages_sharing=2)) for _ in range(100))
    rig.start()
    report = rig.session.settle(0.1)
    assert (report.settled, report.pages_sharing) == (False, 2)
    assert "timeout of settle() was too short" in report.reason
    assert 0.1 <= report.seconds < 1
    assert rig.calls < 50, "it does not ask in a tight loop"
    until(lambda: rig.server.of("Exchange")[-1].settling == 0, what="the server being told that nobody waits")


def test_settle_that_the_server_gives_up_says_so(rig: Rig) -> None:
    rig.server.settle = False
    rig.server.called = lambda method, request: (
        rig.server.replies.append(
            pb.ExchangeReply(
                settle_report=pb.SettleReport(
                    settling=request.settling,
                    obstacles=[pb.Obstacle(kind=pb.OBSTACLE_KIND_STOPPED, pages=7)],
                )
            )
        )
        if method == "Exchange" and request.settling
        else None
    )
    rig.start()
    report = rig.session.settle(5)
    assert not report.settled
    assert report.reason == "7 pages (28 KiB) are not merged: scanning is stopped (run=0): pagefold scan start"


def test_many_threads_may_settle_at_once(rig: Rig) -> None:
    rig.start()
    reports: list[Any] = []
    threads = [threading.Thread(target=lambda: reports.append(rig.session.settle(10))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [r.settled for r in reports] == [True] * 20


def test_a_server_that_does_not_answer_is_asked_again_while_local_work_goes_on(rig: Rig) -> None:
    gone = threading.Event()
    gone.set()

    def called(method: str, request: Any) -> None:
        if gone.is_set():
            raise ServerUnavailable("gone")

    rig.server.called = called
    rig.space.event(pb.EVENT_KIND_COPIED, 1, 0, 1)
    rig.start()
    until(lambda: rig.calls >= 5, what="it trying again")
    until(lambda: rig.session.trouble)
    report = rig.session.settle(0.02)
    assert "the server does not answer" in report.reason
    assert not rig.arena.reachable, "nobody waits for its being announced"
    block = rig.arena.allocate(PAGE)
    block.free()
    until(lambda: rig.arena.pages_in_use == 0, what="freed memory coming back without a server")
    gone.clear()
    until(lambda: rig.session.trouble == "", what="the server coming back")
    assert rig.server.booked[0] == (pb.EVENT_KIND_COPIED, 1, 0, 1, 0, 0, 0)
    requests = {r.SerializeToString() for r in rig.server.of("Exchange") if r.sequence == 1}
    assert len(requests) == 1, "the same request every time"


def test_a_session_that_the_server_does_not_know_is_opened_again(rig: Rig) -> None:
    rig.start()
    block = rig.arena.allocate(PAGE)
    rig.session.kick()
    until(lambda: rig.arena.is_announced)
    assert rig.session.settle(5).settled
    rig.space.event(pb.EVENT_KIND_COPIED, 1, 0, 1)
    before = len(rig.server.requests)
    rig.server.failures.append(("Exchange", SessionLost("unknown_session", "who are you")))
    assert rig.session.settle(5).settled
    said = [name for name, _ in rig.server.requests[before:]]
    assert said[:4] == ["Exchange", "Hello", "AddSegment", "Exchange"]
    hellos = rig.server.of("Hello")
    assert hellos[-1] == hellos[0], "the same lease, doorbell and slot"
    assert ("resume",) in rig.space.calls, "what was to be reported to the other server is not reported to this one"
    assert rig.server.of("Exchange")[-1].sequence < len(rig.server.of("Exchange")), "calls are numbered anew"
    assert not rig.session.lost
    block.free()
    rig.session.close()
    assert len(rig.server.of("Bye")) == 1


def test_a_lost_session_is_told_once_and_memory_goes_on(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    reason, text, level = "protocol_violation", "excluded this client", logging.ERROR
    caplog.set_level(logging.INFO, "pagefold")
    rig.start()
    assert rig.session.settle(5).settled
    rig.server.failures.append(("Exchange", SessionLost(reason, "no")))
    report = rig.session.settle(5)
    assert not report.settled
    assert text in report.reason
    assert text in rig.session.settle(5).reason
    assert [record.levelno for record in caplog.records] == [level]
    calls = rig.calls
    block = rig.arena.allocate(PAGE)
    rig.space.event(pb.EVENT_KIND_COPIED, 1, 0, 1)
    block.free()
    rig.session.kick()
    until(lambda: rig.arena.pages_in_use == 0 and not rig.space.journal, what="local work going on")
    assert rig.calls == calls
    rig.session.close()
    assert rig.server.of("Bye") == []


def test_a_fault_of_our_own_ends_the_session_and_not_the_program(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.start()
    monkeypatch.setattr(rig.conversation, "turn", lambda *_: 1 / 0)
    report = rig.session.settle(5)
    assert "fault" in report.reason
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.undo()


def test_closing_reports_the_last_events_and_drops_what_is_free(rig: Rig) -> None:
    rig.start()
    block = rig.arena.allocate(PAGE)
    rig.session.kick()
    until(lambda: rig.arena.is_announced)
    block.free()
    rig.session.close()
    rig.session.close()
    assert rig.server.booked == [(pb.EVENT_KIND_RELEASED, 1, 0, 1, 0, 0, 0)]
    assert [name for name, _ in rig.server.requests][-2:] == ["DropSegment", "Bye"]
    assert rig.space.closed


def test_closing_with_buffers_left_keeps_their_space(rig: Rig) -> None:
    rig.start()
    rig.arena.allocate(PAGE)
    rig.session.close()
    assert not rig.space.closed
    assert rig.server.of("DropSegment") == []


def test_who_settles_with_a_session_that_has_ended_is_told(rig: Rig) -> None:
    rig.start()
    rig.session.close()
    assert rig.session.settle(5).reason == "the client was closed"


def test_closing_wakes_those_who_wait(rig: Rig) -> None:
    rig.server.settle = False
    rig.start()
    reports: list[Any] = []
    thread = threading.Thread(target=lambda: reports.append(rig.session.settle(30)))
    thread.start()
    until(lambda: bool(rig.conversation.settles))
    rig.session.close()
    thread.join(10)
    assert reports[0].reason == "the client was closed"


def test_closing_does_not_wait_for_a_server_that_hangs(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "GOODBYE_SECONDS", 0.1)
    hung, closed = threading.Event(), threading.Event()

    def hang(method: str, request: Any) -> None:
        hung.set()
        closed.wait(20)
        raise ServerUnavailable("closed")

    rig.server.called = hang
    monkeypatch.setattr(rig.transport, "close", lambda: (closed.set(), setattr(rig.transport, "closed", True)))
    rig.start()
    assert hung.wait(5)
    began = time.monotonic()
    rig.session.close()
    assert time.monotonic() - began < 5


def test_a_fork_does_not_wait_for_a_session_that_goes_round_and_round(rig: Rig) -> None:
    rig.server.called = lambda method, _: rig.server.replies.append(pb.ExchangeReply(more=True))
    rig.start()
    began = time.monotonic()
    for _ in range(20):
        before_fork()
        calls = rig.calls
        time.sleep(0.001)  # that nothing happens is what is asked
        assert rig.calls == calls, "the fork has the turns to itself"
        after_fork_in_parent()
    assert time.monotonic() - began < 5
    rig.server.called = None


def test_whoever_is_in_the_middle_of_a_fork_waits_for_no_session(rig: Rig) -> None:
    rig.start()
    before_fork()
    rig.session.close()  # does not wait: the session says goodbye when the fork is over
    with pytest.raises(RuntimeError, match="in the middle of a fork"):
        call(lambda _: None)
    with Turn():
        pass
    after_fork_in_parent()


def endless(rig: Rig, kind: str) -> None:
    """A server that has the client go round for ever, and gives it nothing."""
    answers = {
        "more": lambda: pb.ExchangeReply(more=True),
        "look": lambda: pb.ExchangeReply(look=rig.calls),
        "nowhere": lambda: pb.ExchangeReply(merges=pb.MergeBatch(segment=[99] * 9, first=range(9), count=[1] * 9)),
        "adopt": lambda: pb.ExchangeReply(adopts=pb.AdoptBatch(segment=[99], first=[0], count=[9])),
    }

    def called(method: str, request: Any) -> None:
        if method == "Exchange" and kind in answers:
            rig.server.replies.append(answers[kind]())
        if method == "Exchange" and kind == "stranger" and rig.calls % 2:
            raise SessionLost("unknown_session", "who are you")

    def decline(*columns: list[int]) -> int:
        for row in zip(*columns, strict=True):
            rig.space.event(pb.EVENT_KIND_DECLINED, *row[:3])
        return 0

    rig.space.merge = decline  # type: ignore[method-assign]
    rig.space.adopt = lambda *_: 0  # type: ignore[method-assign]
    rig.server.called = called


@pytest.mark.parametrize("kind", ["more", "look", "nowhere", "adopt", "stranger", "ring", "ring after the end"])
def test_a_server_that_gives_nothing_gets_a_small_share_of_a_core(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It burned a core, as long as it liked."""
    monkeypatch.setattr(patience_module, "GRACE_SECONDS", 0.02)
    if kind == "ring after the end":
        rig.server.failures.append(("Exchange", SessionLost("protocol_violation", "no")))
    elif kind != "ring":
        endless(rig, kind)
    if kind.startswith("ring"):
        rig.space.rings = True
    rig.start()
    rig.bell.ring()
    until(lambda: rig.calls > 0)
    time.sleep(0.3)  # GRACE_SECONDS of processor time are used up by then: what follows is measured
    began, calls = time.process_time(), rig.calls
    time.sleep(1)  # that is the measurement: what the session takes in a second
    assert time.process_time() - began < 0.4
    assert rig.calls - calls < 1500
    block = rig.arena.allocate(PAGE)  # and nothing of the program's waits for its turn
    if not rig.session.lost:
        rig.session.kick()
        until(lambda: rig.arena.is_announced, 0.5)
    block.free()
    monkeypatch.undo()
    rig.server.called = None


def test_a_settle_is_not_kept_waiting_by_what_went_before(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience_module, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(patience_module, "SHARE", 0.0001)
    endless(rig, "more")
    rig.start()
    until(lambda: rig.calls > 3)
    for _ in range(20):
        assert rig.session.settle(5).seconds < 1
    rig.server.called = None


def test_patience() -> None:
    patience = Patience()
    for _ in range(100):
        assert patience.rest(10.0, math.inf) == 0, "real work is never slowed"
    assert patience.rest(patience_module.GRACE_SECONDS / 2, 0.0) == 0
    assert patience.rest(0.5, 0.5) == 0, "what it brought was worth it"
    first = patience.rest(patience_module.GRACE_SECONDS / 2 + 0.001, 0.0)
    assert 0 < first <= 0.001 / patience_module.SHARE
    assert patience.rest(100.0, 0.0) <= patience_module.MOST_SECONDS + 1e-9
    assert patience.rest(0.0, math.inf) == 0, "and it is forgiven"
    assert patience.rest(patience_module.GRACE_SECONDS / 2, 0.0) == 0


def test_an_answer_that_no_server_gives_ends_the_session(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.start()
    rig.server.replies.append(pb.ExchangeReply(adopts=pb.AdoptBatch(segment=[1], first=[0], count=[1 << 31])))
    rig.bell.ring()
    until(lambda: rig.session.lost, what="the end")
    assert "the same version" in rig.session.settle(5).reason
    assert not [call for call in rig.space.calls if call[0] == "adopt"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_a_program_that_closed_grpcs_descriptors_is_told(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.start()
    assert rig.session.settle(5).settled
    rig.server.failures.append(("Exchange", DescriptorsClosed("close descriptors before connect()")))
    assert "before connect()" in rig.session.settle(5).reason
    assert rig.session.lost
    calls = rig.calls
    rig.session.close()
    assert rig.calls == calls
    assert len(caplog.records) == 1


def test_after_a_fork_memory_is_thawed_when_the_children_are_gone(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "GENERATION_POLL", 0.01)
    rig.start()
    block = rig.arena.allocate(16 * PAGE)
    rig.space.child = True
    rig.space.fork()
    rig.session.kick()
    block.free()
    until(lambda: rig.arena.quarantined, what="quarantine")
    until(lambda: ("thaw",) in rig.space.calls, what="a look whether the child lives")
    assert rig.arena.quarantined
    rig.space.thaw_error = OSError(28, "no space")
    rig.space.child = False
    tries = len(rig.space.calls)
    until(lambda: len(rig.space.calls) > tries + 2, what="trying again")
    assert rig.arena.quarantined
    rig.space.thaw_error = None
    until(lambda: not rig.arena.quarantined, what="the thaw")
    assert rig.arena.pages_in_use == 0
