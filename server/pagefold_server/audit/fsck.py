"""An audit of the running server: it compares the books with what the kernel says, and changes nothing.

    names       every name in /dev/shm against its lock, at the beginning and once more at the end
    processes   those that map memory of pagefold's; /proc is read in threads, so that the loop goes on
    frames      counted again; each against its digest, holes where they belong
    pages       every reference against the mapping that it stands for, and every mapping against its reference

Clients go on meanwhile: a page may be merged by now, and the event on its way. So a difference counts only if two
surveys in a row find the same, the client has looked and reported between the two, and nothing was booked of the page
from before the first survey on (`touched_pages`). Then the books were, at the first survey, a replay of everything that
the client had done to the page, and no event can be on its way.

It runs on the server's one thread, about a millisecond at a time. `procfs.mappings` reads what is mapped, `differences`
knows what is to be mapped. What to do about a difference is for people to decide.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Final

from pagefold_proto.limits import PAGE, SHM
from pagefold_proto.v1 import admin_pb2 as pb

from pagefold_server.audit import inventory
from pagefold_server.audit.findings import Findings
from pagefold_server.audit.pages import PageAudit
from pagefold_server.domains.domain import Domain
from pagefold_server.domains.registry import Domains
from pagefold_server.engine.interface import FrameFault
from pagefold_server.procfs.mappings import Key, parse
from pagefold_server.procfs.processes import Process, find, pids
from pagefold_server.sessions.registry import Sessions
from pagefold_server.sessions.session import State

PATIENCE: Final = 10.0
"""Seconds for which a client is waited for, by default."""

_FRAMES: Final = 256  # read in one go: 0.15 ms
_PROCESSES: Final = 8  # looked at by a thread in one go
_GARBAGE_AGE: Final = 1.0  # seconds between two looks at a name: it may be just being made, or just being removed

_FAULTS: Final = {
    FrameFault.CHANGED: (pb.FINDING_KIND_FRAME_CHANGED, "its bytes have changed since it was made"),
    FrameFault.HOLE: (pb.FINDING_KIND_FRAME_HOLE, "the server records it as used, but the pool has a hole there"),
    FrameFault.LEFT: (pb.FINDING_KIND_FRAME_LEFT, "the server records it as free, but the pool has memory there"),
    FrameFault.UNLISTED: (
        pb.FINDING_KIND_FRAME_UNLISTED,
        "the server records it as used, but the stable tree does not have it",
    ),
}


class Fsck:
    """One audit; see the head of this file.

    Args:
        sessions: to look at.
        domains: to look at.
        request: what to look at, and how.
        tell: called with progress, findings and names as they come.
    """

    def __init__(
        self, sessions: Sessions, domains: Domains, request: pb.FsckRequest, tell: Callable[[pb.FsckNews], None]
    ) -> None:
        self._sessions = sessions
        self._domains = domains
        self._request = request
        self._findings = Findings(tell)

    async def run(self) -> pb.FsckSummary:
        """Audits everything."""
        began = time.monotonic()
        names = await self._names()
        scanned = time.monotonic()
        processes = await self._processes()
        for domain in self._domains:
            self._findings.summary.domains += 1
            await self._frames(domain)
        await PageAudit(
            self._findings, self._request.patience_seconds or PATIENCE, list(self._domains), processes, scanned
        ).run()
        await self._names_again(names, began)
        return self._findings.close(time.monotonic() - began)

    # Names

    async def _names(self) -> dict[str, inventory.Entry]:
        found = {}
        files = await asyncio.to_thread(inventory.entries)
        for n, file in enumerate(files):
            self._findings.progress("names", n, len(files))
            entry = inventory.entry(file)
            if entry is not None:
                found[file] = entry
            await self._findings.breathe()
        return found

    async def _names_again(self, before: dict[str, inventory.Entry], began: float) -> None:
        known = self._known_names()
        lost = self._lost_names()
        if lost or any(entry.held is False for entry in before.values()):
            await asyncio.sleep(max(0.0, began + _GARBAGE_AGE - time.monotonic()))
        now = await self._names()
        takers = await asyncio.to_thread(inventory.lock_takers)
        for name, text in self._lost_names().items():
            if name in lost:
                self._findings.find(pb.FsckFinding(kind=pb.FINDING_KIND_NAME_LOST, name=name, text=f"{name}: {text}"))
        for file, entry in now.items():
            self._findings.summary.names += 1
            holder = self._holder(entry, known, takers)
            if self._request.names:
                self._findings.tell(pb.FsckNews(name=pb.FsckName(name=entry.name, holder=holder)))
            if entry.held and entry.name not in known:
                self._findings.summary.names_elsewhere += 1
            if entry.open:
                text = f"{entry.name} may be opened by other users than its owner (uid {entry.uid})"
                self._findings.find(pb.FsckFinding(kind=pb.FINDING_KIND_NAME_OPEN, name=entry.name, text=text))
            old = before.get(file)
            if entry.held is False and old is not None and old.held is False and old.key == entry.key:
                text = f"{entry.name} (uid {entry.uid}) has no holder: the next sweep removes it"
                self._findings.find(pb.FsckFinding(kind=pb.FINDING_KIND_GARBAGE, name=entry.name, text=text))
            await self._findings.breathe()

    def _known_names(self) -> dict[str, str]:
        """The holders of the names that this server knows."""
        known = {domain.pool.name: f"this server: pool of domain {domain}" for domain in self._domains}
        for session in self._sessions:
            holder = str(session)
            known[session.lease.name] = known[session.hello.doorbell] = holder
            known.update((segment.name, holder) for segment in session.segments.values())
        return known

    def _holder(self, entry: inventory.Entry, known: dict[str, str], takers: dict[Key, int]) -> str:
        if entry.name in known:
            return known[entry.name]
        if entry.held is None:
            return f"unknown: it belongs to uid {entry.uid}, and this server may not open it"
        if not entry.held:
            return "nobody"
        if entry.doorbell:
            return "the holder of the lease"
        taker = takers.get(entry.key)
        return "a process in another PID namespace" if taker is None else f"process {taker}, or a child of it"

    def _lost_names(self) -> dict[str, str]:
        """Objects of clients, and pools, that are not found by their names, and what is wrong."""
        lost = {}
        device = os.stat(SHM).st_dev
        held = [(domain.pool.name, domain.pool.fd, f"the pool of domain {domain}") for domain in self._domains]
        for session in self._sessions:
            if session.state is State.ACTIVE:
                held.append((session.lease.name, session.lease.fd, f"the lease of {session}"))
                held += [(s.name, s.fd, f"segment {n} of {session}") for n, s in session.segments.items()]
        for name, fd, what in held:
            own = os.fstat(fd)
            if own.st_dev != device:
                continue  # it never had a name there
            try:
                found = os.lstat(SHM + name)
            except OSError as error:
                lost[name] = f"{what} has lost its name ({error.strerror})"
                continue
            if (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino):
                lost[name] = f"another object has the name of {what}"
        return lost

    # Processes and frames

    async def _processes(self) -> list[Process]:
        candidates, found = await asyncio.to_thread(pids), list[Process]()
        for n in range(0, len(candidates), _PROCESSES):
            self._findings.progress("processes", n, len(candidates))
            for process, text in await asyncio.to_thread(find, candidates[n : n + _PROCESSES]):
                found.append(process)
                for mapping in parse(text):
                    process.keys.add(mapping.key)
                    await self._findings.breathe()
        return found

    async def _frames(self, domain: Domain) -> None:
        try:
            await self._look_at_frames(domain)
        except (RuntimeError, AssertionError) as error:
            self._findings.find(
                self._about(domain, pb.FINDING_KIND_BOOKS, f"the engine's books of domain {domain}: {error}")
            )

    async def _look_at_frames(self, domain: Domain) -> None:
        if domain.closed:
            return
        engine = domain.engine
        for miscount in engine.recount():
            text = (
                f"frame {miscount.frame} of domain {domain}: the server records {miscount.references} references and "
                f"{miscount.reservations} reservations, but the page tables have {miscount.counted_references} and "
                f"{miscount.counted_reservations}"
            )
            self._findings.find(self._about(domain, pb.FINDING_KIND_MISCOUNT, text, frame=miscount.frame))
        await self._findings.breathe(now=True)
        if self._request.thorough and not domain.closed:
            engine.check()
            await self._findings.breathe(now=True)
        first = 0
        while not domain.closed and first < (frames := os.fstat(domain.pool.fd).st_size // PAGE):
            self._findings.progress("frames", first, frames)
            for frame, fault in engine.audit(first, _FRAMES):
                kind, words = _FAULTS[fault]
                self._findings.find(
                    self._about(domain, kind, f"frame {frame} of domain {domain}: {words}", frame=frame)
                )
            first += _FRAMES
            await self._findings.breathe()
        if not domain.closed:
            self._findings.summary.frames += engine.counters().pages_shared

    @staticmethod
    def _about(domain: Domain, kind: pb.FindingKind, text: str, frame: int = 0) -> pb.FsckFinding:
        return pb.FsckFinding(
            kind=kind, text=text, uid=domain.uid, label=domain.label, pool=domain.pool.name, frame=frame
        )
