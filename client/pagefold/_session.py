"""The session: a daemon thread that talks to the server when there is something to say, and is silent otherwise.

    sweep -> talk, if there is news -> merge and adopt what came back -> again, until a turn was empty
      ^                                                                               |
      `---- the doorbell, news of our own, a forked child's end, a settle() ---- wait natively, without the GIL

The session lock is held for a turn at a time and never while waiting: a fork, or advise(), gets in between. While the
server does not answer, local work goes on and the same call is made again, later and later, for ever. When it does not
know this client any more, it was started anew: the next turn opens a session there, and reports how everything is. A
client with nothing to say notices by the lock on its pool that its server is gone. Only a server that does not want
this client, or that breaks the protocol, and a program that closes gRPC's descriptors end the session for good: memory
goes on, nothing merges. Turns that bring nothing get a small share of a core (`_patience`).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pagefold_proto.v1 import memory_pb2 as pb

from pagefold import _obstacles, _threads
from pagefold._arena import Arena
from pagefold._conversation import OBSTACLE_SECONDS, Conversation
from pagefold._errors import (
    DescriptorsClosed,
    IncompatibleServer,
    OutOfSharedMemory,
    PagefoldError,
    ServerFault,
    ServerRefused,
    ServerUnavailable,
    SessionLost,
)
from pagefold._fork import GENERATION_POLL, Kin, no_fork
from pagefold._log import log as _log
from pagefold._obstacles import Obstacle
from pagefold._patience import Patience
from pagefold._reports import SettleReport
from pagefold._transport import Transport

IDLE_SECONDS: Final = 5.0
SETTLING_SECONDS: Final = 0.25
BACKOFF_SECONDS: Final = (0.05, 5.0)
GOODBYE_SECONDS: Final = 2.0
ANNOUNCE_SECONDS: Final = 1.0
_TICK: Final = 0.25
_REST_TICK: Final = 0.01
# What a server says that was started anew, or that has no room for so many clients just now.
_COME_BACK: Final = ("REASON_UNKNOWN_SESSION", "REASON_LIMIT")


class Bell(Protocol):
    """The doorbell: `pagefold_core.Doorbell`, or a fake."""

    def ring(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Wiring:
    """What a session works with.

    Attributes:
        kin: locks and forks.
        space: the native space, or a fake; its `wait` and `close` are used here.
        arena: is swept.
        conversation: what is said.
        transport: closed at the end.
        bell: rung by the server, and by `kick`.
        release: at the very end, lets go of the names of lease and doorbell.
    """

    kin: Kin
    space: Any
    arena: Arena
    conversation: Conversation
    transport: Transport
    bell: Bell
    release: Callable[[], None]


class Session:
    """See the head of this file. Made after a successful hello; `start` starts the thread."""

    def __init__(self, wiring: Wiring) -> None:
        self.lost = ""
        self.trouble = ""
        self._w = wiring
        self._stopping = _threads.Event()
        self._finished = _threads.Event()
        self._outlives = False
        self._failures = 0
        self._patience = Patience()
        self._rest_seconds = 0.0
        self._thread = _threads.Thread(self._run)

    def start(self) -> None:
        """Starts the thread."""
        self._w.kin.on_fork = self.kick
        self._thread.start()

    def kick(self) -> None:
        """Has the thread look for work now. Takes no lock."""
        self._w.bell.ring()

    def wait_announced(self) -> None:
        """Waits a moment until the server knows of new memory, so that a settle() in another process takes it in.

        Not for long, and not at all if the server does not answer: memory comes first.
        """
        announced = self._w.conversation.announced
        if announced.is_set() or self.lost or self.trouble or self._thread.is_current:
            return
        announced.wait_among_greenlets(ANNOUNCE_SECONDS)

    def settle(self, timeout: float) -> SettleReport:
        """Waits until nothing is left to merge; see `Client.settle`."""
        began = _threads.monotonic()
        settles = self._w.conversation.settles
        waiter = settles.join()
        try:
            if self.lost or self._stopping.is_set():  # after joining: who comes later is told by the thread
                settles.fail(self.lost or "the client was closed")
            self.kick()
            waiter.event.wait_among_greenlets(timeout)
        finally:
            settles.leave(waiter)
        seconds = _threads.monotonic() - began
        report, totals = waiter.report, self._w.conversation.totals
        if report is None:
            obstacles = self.obstacles()
            if not (waiter.failure or self.trouble):
                pages = self._w.conversation.unmerged_pages()
                obstacles.append(Obstacle(kind=pb.OBSTACLE_KIND_TIMEOUT, pages=pages))
            why = "" if self.lost else waiter.failure
            return SettleReport(
                settled=False,
                reason="; ".join(part for part in (why, _obstacles.text(obstacles)) if part),
                seconds=seconds,
                pages_shared=totals.pages_shared,
                pages_sharing=totals.pages_sharing,
                zero_pages=totals.zero_pages,
            )
        return SettleReport(
            settled=report.settled,
            reason="" if report.settled else _obstacles.text(report.obstacles) or GAVE_UP,
            seconds=seconds,
            passes=report.passes,
            merged_pages=report.merged_pages,
            pages_shared=report.pages_shared,
            pages_sharing=report.pages_sharing,
            zero_pages=report.zero_pages,
            pages_unshared=report.pages_unshared,
            pages_volatile=report.pages_volatile,
            pages_waiting=report.pages_waiting,
            pages_over_budget=report.pages_over_budget,
            pages_refused=report.pages_refused,
        )

    def obstacles(self) -> list[Obstacle]:
        """What keeps this client's pages from merging: as it knows by itself, and as of the server's last answer."""
        conversation = self._w.conversation
        own = _obstacles.OWN - _obstacles.JUDGED
        found = [known for known in conversation.known_obstacles() if known.kind in own]
        for kind, detail in ((pb.OBSTACLE_KIND_LOST, self.lost), (pb.OBSTACLE_KIND_UNREACHABLE, self.trouble)):
            if detail:
                pages = conversation.unmerged_pages()
                return [*found, Obstacle(kind=kind, pages=pages, detail=detail)]
        return [*found, *(told for told in conversation.told if told.kind not in own)]

    def stop(self) -> None:
        """Has the thread end the session. Takes no lock and does not wait: for finalizers."""
        self._stopping.set()
        self.kick()

    def outlive(self) -> None:
        """Nobody has the client any more: goes on as long as buffers live. Takes no lock: for finalizers."""
        self._outlives = True
        self.kick()

    def close(self) -> None:
        """Ends the session and waits until that is done. In the session's own thread it does not wait.

        In a forked child it does nothing.
        """
        if self._w.kin.forked:
            return
        self.stop()
        if self._thread.is_current or self._w.kin.is_holding():
            return  # the thread ends the session; to wait for it here would be to wait for ourselves
        if not self._thread.started:  # never started
            if not self._finished.is_set():
                self._finish()
            return
        if not self._finished.wait(GOODBYE_SECONDS):
            # It is in a call to a server that does not answer. No fork may come while grpc ends that call.
            with no_fork():
                self._w.transport.close()
        self._thread.join()

    # In the thread

    def _run(self) -> None:
        talk = True
        try:
            while not self._stopping.is_set():
                try:
                    talk = self._step(talk)
                    self._rest()
                except Exception:  # the thread lives on: freed memory is still taken back
                    _log.exception("pagefold's session failed: memory works, and nothing is merged any more")
                    self._lose("a fault of the client library's own; see the log", logging.DEBUG)
                    talk = False
                    self._stopping.wait(_TICK)
        finally:
            self._finish()

    def _step(self, talk: bool) -> bool:
        """Goes round once; whether to talk in the next round. Waits if there is nothing to do."""
        w = self._w
        self._tidy()
        if self._outlives and not w.arena.pages_in_use:
            self._stopping.set()
            return False
        if self.lost:
            with w.kin.session():
                w.conversation.forget_events()
        elif talk or w.conversation.has_work():
            w.kin.yield_session()
            try:
                talk = self._turn()
            except DescriptorsClosed as error:
                self._lose(str(error), logging.WARNING)
                return False
            except (ServerUnavailable, ServerFault, OutOfSharedMemory) as error:
                self._back_off(error)
                return True
            except ServerRefused as error:
                if error.reason in _COME_BACK:
                    if isinstance(error, SessionLost):
                        w.conversation.lose_session()
                    self._back_off(error)
                    return True
                if error.reason == "REASON_PROTOCOL_VIOLATION":
                    self._lose(f"the server excluded this client: {error}", logging.ERROR)
                elif isinstance(error, IncompatibleServer):
                    self._lose(str(error), logging.ERROR)
                else:
                    self._lose(f"the server does not know this client any more: {error}", logging.WARNING)
                return False
            self._failures, self.trouble = 0, ""
            if talk:
                return True
        return self._wait()

    def _turn(self) -> bool:
        w = self._w
        began, w.conversation.earned = _threads.thread_time(), 0.0
        try:
            with w.kin.session_lock:
                return w.conversation.turn()
        finally:
            self._rest_seconds = self._patience.rest(_threads.thread_time() - began, w.conversation.earned)

    def _rest(self) -> None:
        """Until the last turn is paid for, or the program needs one."""
        until, self._rest_seconds = _threads.monotonic() + self._rest_seconds, 0.0
        while (left := until - _threads.monotonic()) > 0 and not self._w.conversation.is_pressed:
            if self._stopping.wait(min(left, _REST_TICK)):
                return

    def _tidy(self) -> None:
        w = self._w
        thawed = w.kin.thaw_if_over()
        w.arena.sweep(retry=thawed or w.arena.quarantined)

    def _wait(self) -> bool:
        w = self._w
        settling = bool(w.conversation.settles)
        timeout = IDLE_SECONDS
        if settling:
            timeout = SETTLING_SECONDS
        elif w.kin.quarantined or w.arena.quarantined or w.conversation.is_dropping:
            timeout = GENERATION_POLL
        elif w.conversation.is_outdated and not self.lost:
            timeout = OBSTACLE_SECONDS
        try:
            woken = w.space.wait(w.bell, w.conversation.poll_seconds, timeout)
        except OSError as error:
            _log.debug("waiting for the doorbell: %s", error)
            self._stopping.wait(_TICK)
            return True
        if self.lost and woken == "rung":
            self._stopping.wait(_TICK)  # nothing is to be said any more, however often it rings
        return woken == "rung" or (not self.lost and (settling or w.conversation.is_deserted))

    def _back_off(self, error: PagefoldError) -> None:
        if self._failures == 0:
            _log.info("nothing is merged for the moment, trying on: %s", error)
        self.trouble = f"the server does not answer: {error}" if isinstance(error, ServerUnavailable) else str(error)
        least, most = BACKOFF_SECONDS
        delay = min(most, least * 2 ** min(self._failures, 16)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._failures += 1
        until = _threads.monotonic() + delay
        while not self._stopping.is_set() and (left := until - _threads.monotonic()) > 0:
            self._stopping.wait(min(left, _TICK))
            self._tidy()

    def _lose(self, why: str, level: int) -> None:
        if self.lost:
            return
        self.lost = why
        _log.log(level, "nothing is merged any more, memory goes on as it is: %s", why)
        w = self._w
        w.space.untrack()  # nobody will be told: the program need not pay for being watched
        with w.kin.session():
            w.conversation.settles.fail(why)
            w.transport.close()

    def _finish(self) -> None:
        w = self._w
        try:
            left = w.arena.close()
            with w.kin.session():
                w.conversation.settles.fail("the client was closed")
            if not self.lost:
                self._say_goodbye()
            with w.kin.session():
                w.transport.close()
                for segment in [*left, *w.conversation.leftovers()]:
                    segment.discard()
            if not left:
                w.space.close()  # else its buffers keep it: they must be frozen at a fork like any other memory
            with w.kin.session():
                w.conversation.close()
            w.kin.detach()
            w.release()
        except Exception:  # whoever closes waits for this thread: it must finish
            _log.exception("closing a pagefold client failed")
        finally:
            self._finished.set()

    def _say_goodbye(self) -> None:
        w = self._w
        until = _threads.monotonic() + GOODBYE_SECONDS
        try:
            while w.conversation.has_work() and (left := until - _threads.monotonic()) > 0:
                with w.kin.session():
                    w.conversation.turn(timeout=left)
            with w.kin.session():
                w.conversation.bye(GOODBYE_SECONDS)
        except PagefoldError as error:
            _log.info("the server was not told that this client is closed, and will notice by itself: %s", error)


GAVE_UP: Final = "the server stopped waiting, and does not say why: pagefold status"
