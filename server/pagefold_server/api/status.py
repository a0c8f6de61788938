"""What operators are told: counters, sessions, domains, and what keeps pages from merging. It changes nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from pagefold_proto import obstacle_table
from pagefold_proto.limits import PAGE, PROTOCOL
from pagefold_proto.text import printable
from pagefold_proto.v1 import admin_pb2 as pb
from pagefold_proto.v1 import memory_pb2
from pagefold_proto.version import __version__

from pagefold_server import log
from pagefold_server.domains.domain import Domain
from pagefold_server.domains.pacing import Pacer
from pagefold_server.domains.registry import Domains
from pagefold_server.engine.interface import EngineCounters, SegmentCounts
from pagefold_server.sessions.registry import Sessions
from pagefold_server.sessions.session import Session, State
from pagefold_server.settings import Configuration, RunMode
from pagefold_server.tenants.tenants import Tenant, Tenants


class Observer:
    """Looks at a running server.

    Args:
        address: at which it listens.
        sessions: of the server.
        domains: of the server.
        tenants: of the server.
        pacer: that scans the domains.
        configuration: as it is now.
    """

    def __init__(
        self,
        address: str,
        sessions: Sessions,
        domains: Domains,
        tenants: Tenants,
        pacer: Pacer,
        configuration: Configuration,
    ) -> None:
        self._address = address
        self._sessions = sessions
        self._domains = domains
        self._tenants = tenants
        self._pacer = pacer
        self._configuration = configuration
        self._started = time.monotonic()

    def status(self) -> pb.Status:
        """The whole server, in numbers."""
        total = self._domains.counters()
        sessions, troubles = list(self._sessions), self.troubles()
        departed = sum(session.state is State.DEPARTED for session in sessions)
        return pb.Status(
            version=__version__,
            protocol=PROTOCOL,
            pid=os.getpid(),
            uptime_seconds=time.monotonic() - self._started,
            address=printable(self._address),
            engine=self._configuration.now.engine,
            run=self._configuration.now.run,
            page_size=PAGE,
            clients=len(sessions) - departed,
            departed=departed,
            segments=sum(len(session.segments) for session in sessions),
            domains=len(self._domains),
            counters=counters(total),
            saved_bytes=(total.pages_sharing + total.zero_pages) * PAGE,
            pool_bytes=sum(domain.pool.bytes_allocated() for domain in self._domains),
            cpu_seconds=time.process_time(),
            scan_cpu_percent=self._pacer.cpu_percent(),
            settling=sum(len(domain.settlers) for domain in self._domains),
            trouble="; ".join(map(_words, troubles)),
            troubles=troubles,
            memfd_segments=sum(map(_memfd_segments, sessions)),
            log=str(log.sink),
            log_lines_lost=log.sink.lost,
            log_trouble=printable(log.sink.why),
        )

    def clients(self) -> list[pb.ClientInfo]:
        """The sessions, oldest first."""
        return [self._client(session) for session in self._sessions]

    def segments(self, client: int) -> list[pb.SegmentInfo]:
        """The segments of one session; of all with 0."""
        found: list[pb.SegmentInfo] = []
        for session in self._sessions:
            if client in (0, session.number):
                found += _segments(session)
        return found

    def domains(self) -> list[pb.DomainInfo]:
        """The domains, each with its counters."""
        return [self._domain(domain) for domain in self._domains]

    def tenants(self) -> list[pb.TenantInfo]:
        """The users that hold something, by uid."""
        found = sorted(self._tenants, key=lambda tenant: tenant.uid)
        return [self._tenant(tenant) for tenant in found if tenant.holdings.sessions]

    def _client(self, session: Session) -> pb.ClientInfo:
        now = time.monotonic()
        domain = session.domain
        merged, proposed = (0, 0) if domain.fault else domain.engine.merged_pages(session.number)
        silent = session.state is State.ACTIVE and session.is_silent(now)
        return pb.ClientInfo(
            client=session.number,
            pid=session.hello.pid,
            program=session.hello.program,
            uid=session.lease.uid,
            label=session.hello.label,
            tier=session.hello.tier,
            tracker=session.hello.tracker,
            state="silent" if silent else session.state.value,
            segments=len(session.segments),
            bytes=session.segment_pages * PAGE,
            gauges=session.gauges,
            pages_merged=merged,
            pages_proposed=proposed,
            age_seconds=now - session.opened,
            silent_seconds=now - session.responsiveness.heard,
            version=session.hello.version,
            memfd_segments=_memfd_segments(session),
        )

    def _domain(self, domain: Domain) -> pb.DomainInfo:
        mine = [session for session in self._sessions if session.domain is domain]
        return pb.DomainInfo(
            uid=domain.uid,
            label=domain.label,
            clients=len(mine),
            segments=sum(len(session.segments) for session in mine),
            counters=counters(domain.counters()),
            pool=domain.pool.name,
            pool_bytes=domain.pool.bytes_allocated(),
            cpu_seconds=domain.pace.share.used,
        )

    def _tenant(self, tenant: Tenant) -> pb.TenantInfo:
        domains = self._domains.of(tenant)
        return pb.TenantInfo(
            uid=tenant.uid,
            sessions=tenant.holdings.sessions,
            domains=len(domains),
            segments=tenant.holdings.segments,
            bytes=tenant.holdings.pages * PAGE,
            mappings=tenant.holdings.mappings,
            scan_cpu_seconds=tenant.scanned,
            call_cpu_seconds=tenant.answered,
            calls_delayed=tenant.delayed,
            pool_bytes=sum(domain.pool.bytes_allocated() for domain in domains),
        )

    def troubles(self) -> list[pb.Trouble]:
        """What keeps pages from merging, and in which client's memory; what blocks settling comes first."""
        found = [self._trouble(each, domain) for domain in self._domains for each in domain.obstacles()]
        mode = RunMode(self._configuration.now.run)
        if mode is not RunMode.SCANNING and not found:  # there is no domain to say so
            unmerging = mode is RunMode.UNMERGING
            kind = memory_pb2.OBSTACLE_KIND_UNMERGING if unmerging else memory_pb2.OBSTACLE_KIND_STOPPED
            found = [self._trouble((0, memory_pb2.Obstacle(kind=kind)))]
        return sorted(found, key=lambda each: not each.blocks)

    def _trouble(self, told: tuple[int, memory_pb2.Obstacle], domain: Domain | None = None) -> pb.Trouble:
        client, obstacle = told
        return pb.Trouble(
            client=client,
            pid=self._sessions.pid_of(client),
            uid=domain.uid if domain else os.geteuid(),
            label=domain.label if domain else "",
            obstacle=obstacle,
            code=obstacle_table.TABLE[obstacle.kind].code,
            text=obstacle_table.sentence(obstacle),
            blocks=obstacle_table.blocks(obstacle),
        )


def _words(trouble: pb.Trouble) -> str:
    owner = f"client {trouble.client} (pid {trouble.pid})" if trouble.client else f"user {trouble.uid}"
    return f"{owner}: {trouble.text}"


def counters(found: EngineCounters) -> pb.Counters:
    """An engine's counters in the words of admin.proto."""
    saved = (found.pages_sharing + found.zero_pages) * PAGE
    return pb.Counters(
        pages_shared=found.pages_shared,
        pages_sharing=found.pages_sharing,
        pages_unshared=found.pages_unshared,
        pages_volatile=found.pages_volatile,
        pages_skipped=found.pages_skipped,
        pages_scanned=found.pages_scanned,
        full_scans=found.full_scans,
        zero_pages=found.zero_pages,
        stable_node_dups=found.stable_node_dups,
        pages_merged=found.pages_merged,
        pages_broken=found.pages_broken,
        pages_declined=found.pages_declined,
        pages_over_budget=found.pages_over_budget,
        general_profit=saved - found.bookkeeping_bytes,
        bookkeeping_bytes=found.bookkeeping_bytes,
        pages_proposed=found.pages_proposed,
        pages_unplaced=found.pages_unplaced,
    )


def _segments(session: Session) -> Iterator[pb.SegmentInfo]:
    for number, segment in session.segments.items():
        domain = session.domain
        counted = SegmentCounts(0, 0, 0, 0) if domain.fault else domain.engine.segment_counts(session.number, number)
        yield pb.SegmentInfo(
            client=session.number,
            segment=number,
            name=segment.name,
            pages=segment.pages,
            allocated_bytes=segment.bytes_allocated(),
            merged_pages=counted.merged,
            zero_pages=counted.zero,
            copied_pages=counted.copied,
            backing=memory_pb2.BACKING_SHM if segment.holder is None else memory_pb2.BACKING_MEMFD,
        )


def _memfd_segments(session: Session) -> int:
    return sum(segment.holder is not None for segment in session.segments.values())
