"""The session: a daemon thread that talks to the server when it has something to report, and waits otherwise.

    sweep -> talk, if there is news -> merge and adopt what came back -> again, until a turn was empty
      ^                                                                               |
      `---- the doorbell, news of our own, a forked child's end, a settle() ---- wait natively, without the GIL

No signal reaches the thread (`pagefold_core.call`), and it begins by connecting. It talks to the server in turns
(`pagefold_core.Turn`): a fork waits for the end of a turn, and no turn begins while it waits.

* The server does not answer: local work goes on, and the thread repeats the call, at growing intervals, without end.
* The server does not know this client: it was started anew. The next turn opens a session there, and reports all state.
* The server is gone, and the client has nothing to report: it notices by the lock on its pool.
* The server refuses this client or breaks the protocol, or the program closes gRPC's descriptors: the session is over.
  Memory stays usable, and nothing more of it merges.

Turns that bring nothing get a small share of a core (`patience.py`).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pagefold_core import Arena, Doorbell, Ending, Space, Turn
from pagefold_proto import obstacle_table
from pagefold_proto.obstacle_table import Obstacle
from pagefold_proto.v1 import memory_pb2 as pb

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
from pagefold._options.trackers import Tracker
from pagefold._process import fork, threads
from pagefold._process.fork import GENERATION_POLL
from pagefold._process.log import log as _log
from pagefold._reports import SettleReport
from pagefold._session.channel import reason_word
from pagefold._session.conversation import Conversation
from pagefold._session.patience import Patience
from pagefold._session.self_report import OBSTACLE_SECONDS
from pagefold._session.transport import Transport

IDLE_SECONDS: Final = 5.0
SETTLING_SECONDS: Final = 0.25
BACKOFF_SECONDS: Final = (0.05, 5.0)
GOODBYE_SECONDS: Final = 2.0
_TICK: Final = 0.25
_REST_TICK: Final = 0.01
_COME_BACK: Final = (reason_word(pb.REASON_UNKNOWN_SESSION), reason_word(pb.REASON_LIMIT))
"""Reasons of a server that was started anew, or that has no room for this client at the moment."""
_EXCLUDED: Final = reason_word(pb.REASON_PROTOCOL_VIOLATION)


@dataclass(frozen=True, slots=True)
class Components:
    """What connect() has assembled for a client. Its session works with these, and ends them.

    Attributes:
        space: the native space.
        arena: the native arena.
        conversation: says to the server what there is to say.
        transport: to the server; closed at the end.
        bell: rung by the server, and by `Session.kick`.
        ending: tells the session's thread to end, and others that it has ended.
        release: removes the names of lease and doorbell, at the very end.
        tracker: how written pages are found.
    """

    space: Space
    arena: Arena
    conversation: Conversation
    transport: Transport
    bell: Doorbell
    ending: Ending
    release: Callable[[], None]
    tracker: Tracker


class Session:
    """One client's standing with its server. The thread that makes it, after a successful hello, then calls `run`.

    Attributes:
        lost: why the session is over for good; empty: it is not.
        trouble: why the server does not answer at the moment; empty: it does.
        space, arena, conversation, tracker: as in `Components`.
    """

    def __init__(self, components: Components) -> None:
        self.lost = ""
        self.trouble = ""
        self.space = components.space
        self.arena = components.arena
        self.conversation = components.conversation
        self.tracker = components.tracker
        self._components = components
        self._ending = components.ending
        self._failures = 0
        self._next_thaw = 0.0
        self._patience = Patience()
        self._rest_seconds = 0.0

    @property
    def is_ending(self) -> bool:
        """Whether the session was told to end."""
        return self._ending.stopping

    def kick(self) -> None:
        """Makes the thread look for work now. Takes no lock."""
        self._components.bell.ring()

    def settle(self, timeout: float) -> SettleReport:
        """Waits until nothing is left to merge, or for `timeout` seconds; see `Client.settle`."""
        began = threads.monotonic()
        begin, ring = self.conversation.settles.begin, self._components.bell.ring
        if threads.are_greenlets():
            outcome = threads.wait_among_greenlets(begin(ring).wait, timeout)
        else:
            outcome = begin(ring).wait(timeout)
        report, failure = outcome or (None, "")
        seconds = threads.monotonic() - began
        totals = self.conversation.totals
        if report is None:
            obstacles = self.obstacles()
            if not (failure or self.trouble):
                pages = self.conversation.report.unmerged_pages()
                obstacles.append(Obstacle(kind=pb.OBSTACLE_KIND_TIMEOUT, pages=pages))
            why = "" if self.lost else failure
            return SettleReport(
                settled=False,
                reason="; ".join(part for part in (why, obstacle_table.text(obstacles)) if part),
                seconds=seconds,
                pages_shared=totals.pages_shared,
                pages_sharing=totals.pages_sharing,
                zero_pages=totals.zero_pages,
            )
        return SettleReport(
            settled=report.settled,
            reason="" if report.settled else obstacle_table.text(map(self._detailed, report.obstacles)) or GAVE_UP,
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
        """What keeps this client's pages from merging, as the client itself and the server's last answer know it."""
        own = obstacle_table.OWN - obstacle_table.JUDGED
        found = [known for known in self.conversation.report.obstacles() if known.kind in own]
        for kind, detail in ((pb.OBSTACLE_KIND_LOST, self.lost), (pb.OBSTACLE_KIND_UNREACHABLE, self.trouble)):
            if detail:
                pages = self.conversation.report.unmerged_pages()
                return [*found, Obstacle(kind=kind, pages=pages, detail=detail)]
        told = (self._detailed(told) for told in self.conversation.server_obstacles if told.kind not in own)
        return [*found, *told]

    def _detailed(self, told: Obstacle) -> Obstacle:
        """What the server told, with what only the client knows of it."""
        if told.kind == pb.OBSTACLE_KIND_BUDGET and not self.lost:
            counts, known = self.space.counts(), Obstacle()
            known.CopyFrom(told)
            known.detail = f"this client uses {counts.mappings:,} of {counts.budget:,}"
            return known
        return told

    def close(self) -> None:
        """Ends the session and waits for its end. The session's own thread does not wait."""
        self._ending.end(GOODBYE_SECONDS)

    # In the thread

    def run(self) -> None:
        """Works until the session is told to end."""
        talk = True
        try:
            while not self.is_ending:
                try:
                    talk = self._step(talk)
                    self._rest()
                except Exception:  # the thread lives on: it still takes freed memory back
                    _log.exception(
                        "pagefold's session failed: memory stays usable, and nothing more of it is merged; report this"
                    )
                    self._lose("a fault of the client library's own; see the log", logging.DEBUG)
                    talk = False
                    self._ending.pause(_TICK)
        finally:
            self._finish()

    def _step(self, talk: bool) -> bool:
        """One round: takes a turn if there is news, else waits. Returns whether the next round begins with a turn."""
        self._tidy()
        if self._ending.outlives and not self.arena.pages_in_use:
            self._ending.stop()
            return False
        if self.lost:
            self.conversation.forget_events()
        elif talk or self.conversation.has_work():
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
                        self.conversation.lose_session()
                    self._back_off(error)
                    return True
                if error.reason == _EXCLUDED:
                    self._lose(f"the server excluded this client: {error}", logging.ERROR)
                elif isinstance(error, IncompatibleServer):
                    self._lose(str(error), logging.ERROR)
                else:
                    self._lose(f"the server does not know this client any more: {error}", logging.WARNING)
                return False
            self._failures, self.trouble = 0, ""
            self.arena.set_reachable(True)
            if talk:
                return True
        return self._wait()

    def _turn(self) -> bool:
        began, self.conversation.earned.seconds = threads.thread_time(), 0.0
        try:
            with Turn():
                return self.conversation.turn()
        finally:
            self._rest_seconds = self._patience.rest(threads.thread_time() - began, self.conversation.earned.seconds)

    def _rest(self) -> None:
        """Pauses until the last turn is paid for, or the program needs another one."""
        until, self._rest_seconds = threads.monotonic() + self._rest_seconds, 0.0
        while (left := until - threads.monotonic()) > 0 and not self.conversation.is_pressed:
            if self._ending.pause(min(left, _REST_TICK)):
                return

    def _tidy(self) -> None:
        thawed = self._thaw()
        trouble = self.arena.sweep(thawed or self.arena.quarantined)
        if trouble is not None:
            _log.warning("%d freed pages cannot be given back yet: %s", *trouble)

    def _thaw(self) -> bool:
        """Checks whether forked children are gone: every GENERATION_POLL seconds, and when a settle() begins.

        Returns:
            True: nothing is shared any more.
        """
        now = threads.monotonic()
        if not self.space.shared or (now < self._next_thaw and self.conversation.settles.is_current):
            return False
        self._next_thaw = now + GENERATION_POLL
        fork.tell_troubles()
        try:
            thawed: bool = self.space.thaw()
        except OSError as error:  # memory is short: the next look tries again
            _log.debug("thawing memory after a fork: %s", error)
            return False
        return thawed

    def _wait(self) -> bool:
        settling = bool(self.conversation.settles)
        timeout = IDLE_SECONDS
        if settling:
            timeout = SETTLING_SECONDS
        elif self.space.shared or self.arena.quarantined or self.conversation.segments.are_dropping:
            timeout = GENERATION_POLL
        elif self.conversation.report.is_outdated and not self.lost:
            timeout = OBSTACLE_SECONDS
        try:
            woken = self.space.wait(self._components.bell, self.conversation.poll_seconds, timeout)
        except OSError as error:
            _log.debug("waiting for the doorbell: %s", error)
            self._ending.pause(_TICK)
            return True
        if self.lost and woken == "rung":
            self._ending.pause(_TICK)  # a server that rings without end gets no core for it
        return woken == "rung" or (not self.lost and (settling or self.conversation.is_deserted))

    def _back_off(self, error: PagefoldError) -> None:
        if self._failures == 0:
            _log.info("nothing is merged at the moment, and memory stays usable; the client tries again: %s", error)
        self.trouble = str(error)
        self.arena.set_reachable(False)
        least, most = BACKOFF_SECONDS
        delay = min(most, least * 2 ** min(self._failures, 16)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._failures += 1
        until = threads.monotonic() + delay
        while not self.is_ending and (left := until - threads.monotonic()) > 0:
            self._ending.pause(min(left, _TICK))
            self._tidy()

    def _lose(self, why: str, level: int) -> None:
        if self.lost:
            return
        self.lost = why
        _log.log(level, "nothing more is merged, and memory stays usable; connect again to merge: %s", why)
        self.space.untrack()  # no server reads it, so the program need not pay for tracking
        self.arena.set_reachable(False)
        self.conversation.settles.end(why)
        with Turn():
            self._components.transport.close()

    def _finish(self) -> None:
        try:
            left = self.arena.close()
            self.conversation.settles.end("the client was closed")
            if not self.lost:
                self._say_goodbye()
            with Turn():
                self._components.transport.close()
            for segment in [*left, *self.conversation.segments.leftovers()]:
                segment.discard()
            self.space.forget_children()  # nothing is merged, punched or thawed any more, so forks need no lease
            if not left:
                self.space.close()  # else its buffers keep it: they must be frozen at a fork like any other memory
            self.conversation.close()
            self._components.release()
        except Exception:  # close() waits for this thread: it must finish
            _log.exception("closing a pagefold client failed; memory stays usable")
        finally:
            self.arena.set_reachable(False)
            self._ending.finish()

    def _say_goodbye(self) -> None:
        until = threads.monotonic() + GOODBYE_SECONDS
        try:
            while self.conversation.has_work() and (left := until - threads.monotonic()) > 0:
                with Turn():
                    self.conversation.turn(timeout=left)
            with Turn():
                self.conversation.bye(GOODBYE_SECONDS)
        except PagefoldError as error:
            _log.info("the server was not told that this client is closed, and will notice by its lease: %s", error)


GAVE_UP: Final = "the server gave up and does not say why: see `pagefold status`"
