"""The Admin service: what operators ask and change. It takes requests apart and puts replies together."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import grpc
import structlog
from pagefold_proto import obstacle_table
from pagefold_proto.v1 import admin_pb2 as pb
from pagefold_proto.v1 import admin_pb2_grpc, memory_pb2

from pagefold_server.api.status import Observer
from pagefold_server.audit.fsck import Fsck
from pagefold_server.domains.pacing import Pacer
from pagefold_server.domains.registry import Domains
from pagefold_server.errors import ShuttingDown, abort, reports_errors
from pagefold_server.sessions.registry import Sessions
from pagefold_server.settings import Configuration, Explained, RunMode

_SCAN_SECONDS: Final = 60.0
_WATCH_SECONDS: Final = 1.0
_WATCH_LEAST: Final = 0.1

_log = structlog.get_logger("pagefold.admin")
_Context = grpc.aio.ServicerContext[Any, Any]


class AdminServicer(admin_pb2_grpc.AdminServicer):
    """See admin.proto.

    Args:
        observer: for what is only read.
        configuration: to read and to change.
        sessions: to audit.
        domains: to scan now, and to audit.
        pacer: to wake for that.
        end: has the server end.
    """

    def __init__(
        self,
        observer: Observer,
        configuration: Configuration,
        sessions: Sessions,
        domains: Domains,
        pacer: Pacer,
        end: Callable[[], None],
    ) -> None:
        self._observer = observer
        self._sessions = sessions
        self._auditing = asyncio.Lock()
        self._configuration = configuration
        self._domains = domains
        self._pacer = pacer
        self._end = end
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Ends the streams."""
        self._stopping.set()

    @reports_errors
    async def GetStatus(self, request: pb.GetStatusRequest, context: _Context) -> pb.Status:  # noqa: N802
        """The whole server, in numbers."""
        return self._observer.status()

    @reports_errors
    async def ListClients(self, request: pb.ListClientsRequest, context: _Context) -> pb.ListClientsReply:  # noqa: N802
        """The sessions, oldest first."""
        return pb.ListClientsReply(clients=self._observer.clients())

    @reports_errors
    async def ListSegments(  # noqa: N802
        self, request: pb.ListSegmentsRequest, context: _Context
    ) -> pb.ListSegmentsReply:
        """The segments of one session, or of all."""
        return pb.ListSegmentsReply(segments=self._observer.segments(request.client))

    @reports_errors
    async def ListDomains(self, request: pb.ListDomainsRequest, context: _Context) -> pb.ListDomainsReply:  # noqa: N802
        """The domains, each with its counters."""
        return pb.ListDomainsReply(domains=self._observer.domains(), tenants=self._observer.tenants())

    @reports_errors
    async def GetConfig(self, request: pb.GetConfigRequest, context: _Context) -> pb.GetConfigReply:  # noqa: N802
        """Every setting."""
        return pb.GetConfigReply(settings=map(_setting, self._configuration.now.explain()))

    @reports_errors
    async def SetConfig(self, request: pb.SetConfigRequest, context: _Context) -> pb.SetConfigReply:  # noqa: N802
        """Changes settings, all or none."""
        self._configuration.set(dict(request.values))
        now = self._configuration.now
        return pb.SetConfigReply(settings=[_setting(now.explain_one(key)) for key in request.values])

    @reports_errors
    async def ScanNow(self, request: pb.ScanNowRequest, context: _Context) -> pb.ScanNowReply:  # noqa: N802
        """Merges at full speed until nothing is left to merge, or until the deadline."""
        key, reports, missing = object(), [], asyncio.Event()
        domains = [domain for domain in self._domains if domain.participants]

        def done(report: memory_pb2.SettleReport) -> None:
            reports.append(report)
            if len(reports) == len(domains):
                missing.set()

        try:
            for domain in domains:
                domain.settle(key, 0, done)
                if domain.mode is not RunMode.SCANNING or domain.fault:
                    domain.give_up_one(key)
            self._pacer.wake()
            if domains:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(missing.wait(), request.timeout_seconds or _SCAN_SECONDS)
        finally:  # a caller that hangs up waits no longer either
            for domain in domains:
                domain.give_up_one(key)
        return pb.ScanNowReply(report=_sum(reports))

    @reports_errors
    async def Stop(self, request: pb.StopRequest, context: _Context) -> pb.StopReply:  # noqa: N802
        """Ends the server, once this is answered."""
        _log.info("an operator ends the server")
        self._end()
        return pb.StopReply(pid=os.getpid())

    async def WatchStatus(  # noqa: N802
        self, request: pb.WatchStatusRequest, context: _Context
    ) -> AsyncIterator[pb.Status]:
        """The status again and again."""
        interval = max(request.interval_seconds or _WATCH_SECONDS, _WATCH_LEAST)
        while not self._stopping.is_set():
            yield await self.GetStatus(pb.GetStatusRequest(), context)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), interval)

    async def Fsck(  # noqa: N802
        self, request: pb.FsckRequest, context: _Context
    ) -> AsyncIterator[pb.FsckNews]:
        """Audits everything, and sends progress and findings as they come."""
        async with self._auditing:
            news: asyncio.Queue[pb.FsckNews | None] = asyncio.Queue()
            audit = asyncio.create_task(Fsck(self._sessions, self._domains, request, news.put_nowait).run())
            stopping = asyncio.create_task(self._stopping.wait())
            for task in (audit, stopping):
                task.add_done_callback(lambda _: news.put_nowait(None))
            try:
                while (told := await news.get()) is not None:
                    yield told
                if not audit.done():
                    await abort(context, ShuttingDown("the server is stopping: the audit is not finished"))
                yield pb.FsckNews(summary=audit.result())
            except Exception as error:
                _log.exception("an audit failed")
                await abort(context, error)
            finally:  # a caller that hangs up ends it
                audit.cancel()
                stopping.cancel()
                await asyncio.gather(audit, stopping, return_exceptions=True)


def _setting(told: Explained) -> pb.Setting:
    return pb.Setting(
        key=told.key,
        value=told.value,
        default_value=told.default,
        origin=told.origin,
        live=told.live,
        description=told.description,
    )


def _sum(reports: list[memory_pb2.SettleReport]) -> memory_pb2.SettleReport:
    """One report for all domains: pages summed, the highest number of passes, settled if all are."""
    total = memory_pb2.SettleReport(settled=True)
    for report in reports:
        for entry, value in report.ListFields():
            if entry.name not in ("settled", "passes", "settling", "obstacles"):
                setattr(total, entry.name, getattr(total, entry.name) + value)
        total.obstacles.extend(report.obstacles)
        total.passes = max(total.passes, report.passes)
        total.settled = total.settled and report.settled
    kept = obstacle_table.summed(total.obstacles)
    del total.obstacles[:]
    total.obstacles.extend(kept)
    return total
