"""All sessions: which clients may open one, what they may say in it, and when it is over.

What holds: nothing here awaits, so every call finds and leaves the books whole. A client that reports something
impossible is excluded, and no other client notices. References go when the lease is free, never before (I3).
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

import structlog
from pagefold_proto.v1 import memory_pb2 as pb

from pagefold_server.domains.registry import Domains
from pagefold_server.engine.interface import Columns, Instructions
from pagefold_server.errors import (
    LimitReached,
    ProtocolViolation,
    SegmentInUse,
    ServerError,
    ShuttingDown,
    UnknownSession,
)
from pagefold_server.procfs.mappings import most_mappings
from pagefold_server.sessions import admission
from pagefold_server.sessions.doorbell import Bells
from pagefold_server.sessions.objects import Holder, Lease, Segment
from pagefold_server.sessions.obstacles import believable
from pagefold_server.sessions.responsiveness import Responsiveness
from pagefold_server.sessions.session import Session, State
from pagefold_server.settings import Configuration, RunMode
from pagefold_server.tenants.quotas import Quotas
from pagefold_server.tenants.tenants import STRANGERS, Tenant, Tenants

_log = structlog.get_logger("pagefold.sessions")
_Message = TypeVar("_Message", pb.HelloRequest, pb.Gauges)
_ANSWERS: Final = frozenset((pb.EVENT_KIND_MERGED, pb.EVENT_KIND_DECLINED))


class Sessions:
    """See the head of this file.

    Args:
        domains: in which the sessions are.
        tenants: users, who have them.
        configuration: limits, asked anew every time.
        wake: called when a domain is to be scanned earlier than planned.
    """

    def __init__(
        self, domains: Domains, tenants: Tenants, configuration: Configuration, wake: Callable[[], None]
    ) -> None:
        self._domains = domains
        self._tenants = tenants
        self._quotas = Quotas(configuration)
        self._configuration = configuration
        self._wake = wake
        self._bells = Bells()
        self._by_number: dict[int, Session] = {}
        self._by_token: dict[bytes, Session] = {}
        self._numbers = itertools.count(1)
        self.empty_since: float | None = time.monotonic()
        self.closing = False

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._by_number.values()))

    def __len__(self) -> int:
        return len(self._by_number)

    # What clients call

    def admit(self, said: pb.HelloRequest) -> Lease:
        """Finds out which user says Hello: the first half of it, which costs little even if it is refused.

        Raises:
            ServerError: no user that may open a session.
        """
        self._check_open()
        return admission.lease_of(said)

    def _check_open(self) -> None:
        if self.closing:
            raise ShuttingDown("the server is stopping; memory stays as it is: connect again")

    def hello(self, said: pb.HelloRequest, lease: Lease) -> Session:
        """Opens a session. The lease, from `admit`, belongs to the session; it is closed if none is opened.

        Raises:
            ServerError: the user may not; see the table in errors.py.
        """
        settings = self._configuration.now
        tenant = self._tenants.get(lease.uid)
        try:
            self._check_open()  # it may have waited for its turn
            self._drop_unused(lease)
            self._check_room(tenant, said.label)
            bell = self._bells.open(said.doorbell, lease.uid)
            domain = self._domains.get(tenant, said.label, settings)
            number = next(self._numbers)
            domain.engine.add_client(number)
        except BaseException:
            lease.close()
            raise
        tenant.holdings.sessions += 1
        now = time.monotonic()
        session = Session(
            number=number,
            token=secrets.token_bytes(16),
            hello=kept(said),
            lease=lease,
            bell=bell,
            domain=domain,
            configuration=self._configuration,
            opened=now,
            responsiveness=Responsiveness(heard=now),
        )
        domain.participants[session.number] = session
        self._by_number[session.number] = session
        self._by_token[session.token] = session
        self.empty_since = None
        _log.info("session opened", uid=lease.uid, client=session.number, pid=said.pid, program=said.program)
        return session

    def add_segment(
        self,
        token: bytes,
        number: int,
        name: str,
        pages: int,
        address: int = 0,
        holder: Holder | None = None,
        inherited: bool = False,
    ) -> None:
        """Makes a segment part of the scan.

        Args:
            token: names the session.
            number: the client's.
            name: of the object.
            pages: size.
            address: where the client maps it, for audits; 0: unknown.
            holder: of a memfd.
            inherited: pages without a frame are the parent's, and may map anything but frames. For audits too.
        """
        session = self._find(token)
        try:
            self._take_segment(session, number, name, pages, holder)
        except ServerError as error:
            session.known_obstacles.refusal = str(error)
            raise
        segment = session.segments[number]
        segment.address = address
        segment.inherited |= inherited

    def _take_segment(self, session: Session, number: int, name: str, pages: int, holder: Holder | None) -> None:
        settings = self._configuration.now
        known = session.segments.get(number)
        if known is not None:
            if (known.name, known.pages) == (name, pages):
                return
            raise self._excluded(session, ProtocolViolation(f"segment {number} is {known.name}, not {name[:80]!r}"))
        if len(session.segments) >= settings.max_segments:
            raise LimitReached(
                f"the session has {len(session.segments)} segments, and its limit is {settings.max_segments}: "
                "free buffers, or raise max_segments"
            )
        together = session.segment_pages + pages
        if pages <= settings.max_segment_pages < together:  # a segment that is too large alone is another error
            raise LimitReached(
                f"the session would have {together} pages in segments, and its limit is {settings.max_segment_pages}: "
                "free buffers, or raise max_segment_pages"
            )
        tenant = session.domain.tenant
        if pages <= settings.max_segment_pages:
            self._quotas.check_segment(tenant, pages)
        segment = Segment(name, session.lease.uid, pages, settings.max_segment_pages, holder)
        try:
            session.domain.engine.add_segment(session.number, number, segment.fd, pages, session.tracked)
        except BaseException:
            segment.close()
            raise
        session.segments[number] = segment
        tenant.holdings.segments += 1
        tenant.holdings.pages += pages
        session.domain.schedule.stir()
        self._wake()

    def drop_segment(self, token: bytes, number: int) -> None:
        """Forgets a segment; one that is not known is forgotten already."""
        session = self._find(token)
        if number not in session.segments:
            return
        if not session.domain.engine.drop_segment(session.number, number):
            raise SegmentInUse(f"pages of segment {number} map frames, or are about to: report them Released first")
        segment = session.segments.pop(number)
        session.domain.tenant.holdings.segments -= 1
        session.domain.tenant.holdings.pages -= segment.pages
        _book_mappings(session)
        segment.close()

    def exchange(
        self,
        token: bytes,
        sequence: int,
        read_events: Callable[[], Columns],
        gauges: pb.Gauges | None,
        settling: int,
        looked: int = 0,
        resuming: bool = False,
        obstacles: Iterable[pb.Obstacle] = (),
    ) -> pb.ExchangeReply:
        """Books what a client reports, and says what it is to do next.

        Args:
            token: names the session.
            sequence: of this call.
            read_events: gives what is reported; what it raises counts as said by the client.
            gauges: levels; None: unchanged.
            settling: number of the settle() that waits, 0 for none.
            looked: the last look that it has made.
            resuming: what it maps since before the session is not all told yet.
            obstacles: what keeps its pages from merging, as it knows by itself.
        """
        session = self._find(token)
        if sequence == session.sequence and session.reply is not None:
            return session.reply
        if sequence != session.sequence + 1:
            expected = session.sequence + 1
            raise self._excluded(session, ProtocolViolation(f"sequence {sequence} where {expected} was next"))
        engine, domain = session.domain.engine, session.domain
        try:
            events = read_events()
            engine.apply(session.number, events)
        except Exception as error:  # the server's own faults too: its books of this client may be half written
            raise self._excluded(session, error) from error
        if gauges is not None:
            session.gauges = kept(gauges)
            _book_mappings(session)
        session.resumed = not resuming
        session.known_obstacles.told = believable(obstacles)
        if pb.EVENT_KIND_NOT_ADOPTED in events.kind:
            session.known_obstacles.stuck = events.detail[list(events.kind).index(pb.EVENT_KIND_NOT_ADOPTED)]
        answers = any(kind in _ANSWERS for kind in events.kind)
        session.responsiveness.answer(merges=answers)
        session.look.answer(looked, time.monotonic())
        self._settle(session, settling)
        told = engine.take(session.number, self._configuration.now.max_batch_pages)
        for touched in session.touched:
            touched.note(events, told, session.gauges.shared_pages > 0)
        reply = self._reply(session, told)
        session.exchange_done(time.monotonic(), reply, bool(events.kind))
        if events.kind:
            domain.schedule.stir()
            domain.ring()
        if events.kind or domain.settlers:
            self._wake()
        if session.settle.report is not None:  # this very call was the answer that was missing
            reply.settle_report.CopyFrom(session.settle.report)
        return reply

    def pid_of(self, client: int) -> int:
        """The PID that a client gave; 0: there is no such client."""
        session = self._by_number.get(client)
        return session.hello.pid if session else 0

    def tenant_of(self, token: bytes) -> Tenant:
        """The user whose session has that token."""
        session = self._by_token.get(token)
        return self._tenants.get(STRANGERS) if session is None else session.domain.tenant

    def bye(self, token: bytes) -> None:
        """Ends a session. Its references stay until its lease is free, or go now if there are none."""
        session = self._find(token, excluded_too=True)
        self._depart(session, State.DEPARTED)
        del self._by_token[session.token]
        if not session.maps_frames():
            self._remove(session, "left")

    # What time does

    def reap(self) -> None:
        """Looks for families that are dead, for clients to be rung again, and for silent ones."""
        for session in self:
            if session.lease.is_free():
                session.unlink()
                self._remove(session, "died" if session.state is State.ACTIVE else "is gone")
            elif session.looking:
                session.ring_if_due(time.monotonic())
        for domain in self._domains:
            domain.release_unclaimed()
            domain.ring()
            if domain.stale:
                domain.ring_all()
        self._wake()  # a pass may have waited for a client that is silent, or gone, by now

    def close(self) -> None:
        """Closes all. The clients' memory stays as it is."""
        self.closing = True
        for session in self:
            session.close()
        self._by_number.clear()
        self._by_token.clear()

    # Inside

    def _find(self, token: bytes, excluded_too: bool = False) -> Session:
        session = self._by_token.get(token)
        if session is None:
            raise UnknownSession("the server has no session with this token, as after a restart: say Hello")
        session.responsiveness.call(time.monotonic())
        if session.state is State.EXCLUDED and not excluded_too:
            raise ProtocolViolation("this session was excluded for an earlier report; its memory stays as it is")
        if self.closing:
            raise ShuttingDown("the server is stopping; memory stays as it is: connect again")
        return session

    def _check_room(self, tenant: Tenant, label: str) -> None:
        most = self._configuration.now.max_sessions
        if len(self._by_number) >= most:
            sessions = len(self._by_number)
            raise LimitReached(f"the server has {sessions} sessions, and its limit is {most}: raise max_sessions")
        self._quotas.check_session(tenant)
        if self._domains.find(tenant.uid, label) is None:
            self._quotas.check_domain(tenant, len(self._domains.of(tenant)))

    def _settle(self, session: Session, settling: int) -> None:
        if settling == session.settle.number:
            return
        domain = session.domain
        domain.settlers.stop(session)
        self._wake()  # scanning may have stood still for its sake
        session.settle.number, session.settle.report = settling, None
        if not settling:
            return

        def done(report: pb.SettleReport) -> None:
            session.settle.report = report
            session.ring(time.monotonic())

        domain.settle(session, settling, done)
        if domain.mode is not RunMode.SCANNING or domain.fault:
            domain.give_up()
        self._wake()

    def _reply(self, session: Session, told: Instructions) -> pb.ExchangeReply:
        reply = pb.ExchangeReply(more=told.more, look=session.look.wanted if session.look.is_open else 0)
        pool = session.domain.pool
        if not session.sequence:  # its first Exchange
            reply.pools.add(pool=pool.number, name=pool.name)
        if told.merges:
            segment, first, count, frame = zip(*told.merges, strict=True)
            reply.merges.MergeFrom(
                pb.MergeBatch(
                    segment=segment,
                    first=first,
                    count=count,
                    pool=[0 if number < 0 else pool.number for number in frame],
                    frame=[max(number, 0) for number in frame],
                )
            )
        if told.adopts:
            segment, first, count = zip(*told.adopts, strict=True)
            reply.adopts.MergeFrom(pb.AdoptBatch(segment=segment, first=first, count=count))
        counters = session.domain.engine.counters()
        reply.totals.pages_shared = counters.pages_shared
        reply.totals.pages_sharing = counters.pages_sharing
        reply.totals.zero_pages = counters.zero_pages
        reply.obstacles.extend(session.domain.obstacles_of(session.number))
        return reply

    def _excluded(self, session: Session, error: Exception) -> Exception:
        self._depart(session, State.EXCLUDED)
        _log.warning(
            "session excluded", uid=session.lease.uid, client=session.number, pid=session.hello.pid, why=str(error)
        )
        return error

    def _depart(self, session: Session, state: State) -> None:
        """It takes no further part: nothing is proposed to it, and nothing waits for it.

        An engine that has failed raises, and the session stays as it is: it goes on in the next server.
        """
        session.domain.settlers.stop(session)
        self._wake()
        session.domain.engine.depart_client(session.number)
        session.depart(state)
        session.domain.stale = True

    def _remove(self, session: Session, why: str) -> None:
        """It is over: no process of it maps a frame."""
        domain = session.domain
        self._by_token.pop(session.token, None)
        del self._by_number[session.number]
        domain.settlers.stop(session)
        self._wake()
        if not domain.fault:
            domain.engine.remove_client(session.number)
        del domain.participants[session.number]
        tenant = domain.tenant
        tenant.holdings.sessions -= 1
        tenant.holdings.segments -= len(session.segments)
        tenant.holdings.pages -= session.segment_pages
        tenant.holdings.mappings -= session.mappings
        session.close()
        _log.info("session over", uid=session.lease.uid, client=session.number, pid=session.hello.pid, why=why)
        domain.stale = True
        if not domain.participants:
            self._domains.drop(domain)
        if not self._by_number:
            self.empty_since = time.monotonic()

    def _drop_unused(self, lease: Lease) -> None:
        """A client whose Hello was answered in vain says it again; the session that it opened was never used."""
        for session in self:
            if not session.responsiveness.called and session.lease.is_same(lease):
                self._remove(session, "said Hello again")


def kept(said: _Message) -> _Message:
    """A copy of a message, field by field: unknown fields, which take memory too, are left out."""
    return type(said)(**{field.name: getattr(said, field.name) for field in said.DESCRIPTOR.fields})


def _book_mappings(session: Session) -> None:
    """Books the mappings that a client says it has, as far as it can have them: one a page, and the kernel's limit."""
    counted = min(session.gauges.mappings, session.segment_pages, most_mappings())
    session.domain.tenant.holdings.mappings += counted - session.mappings
    session.mappings = counted
