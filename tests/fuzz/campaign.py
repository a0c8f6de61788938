"""A campaign: fuzzers, one after the other, beside victims and a prober, and then a look at what is left of it all.

Fuzzers are users without rights; the server is root's, with the quotas that it has by default. A round is one fuzzer:
the calls of round n follow from the campaign's seed and n. Every third one is killed on the way. In the end the server
has to be the process that it was, no byte of the victims' may be wrong, an audit may find nothing, and the server's
memory and descriptors have to be near what they were. Times are reported here; the caller says which are too long.
"""

from __future__ import annotations

import os
import random
import stat
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from support import kernel
from support.audit import audit
from support.server import Server
from support.tenancy import ALICE, BOB, tenants_server
from support.waiting import until

from fuzz.child import Child
from fuzz.prober import Prober

CALLS: Final = 400
"""Of one fuzzer."""
VICTIMS: Final = 2
GROWTH: Final = 32 << 20
"""Bytes of its own that the server may have more in the end: allocators keep some of what was freed."""
DESCRIPTORS: Final = 4
"""That it may have more: of connections that are just being closed, and of segments that victims add."""
_AUDITED: Final = 10  # rounds between two audits
_LOOKED_AT: Final = 64  # kinds of findings from here on say that something could not be looked at


@dataclass
class Report:
    """What a campaign says in the end."""

    seed: int
    rounds: int = 0
    seconds: float = 0.0
    calls: int = 0
    killed: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    digests: list[str] = field(default_factory=list)  # of the calls of each round that was not cut short
    written: int = 0
    verified: int = 0
    settled: int = 0
    most_merged: int = 0
    asked: int = 0
    longest: float = 0.0
    slow: list[tuple[float, float]] = field(default_factory=list)
    longest_call: float = 0.0
    longest_call_was: str = ""
    audits: int = 0
    grown: int = 0
    descriptors: tuple[int, int] = (0, 0)
    losses: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not (self.losses or self.leaks or self.faults)

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "kinds": dict(self.kinds), "answers": dict(self.answers), "passed": self.passed}

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.calls} calls in {self.rounds} rounds ({self.killed} killed), {self.seconds} s; "
            f"{self.verified >> 20} MiB verified in {self.settled} settles, {len(self.losses)} losses; "
            f"{self.asked} status calls, longest {self.longest * 1000:.0f} ms, {len(self.slow)} above the bound; "
            f"longest answer to a fuzzer {self.longest_call * 1000:.0f} ms; server grew {self.grown >> 10} KiB, "
            f"descriptors {self.descriptors[0]} -> {self.descriptors[1]}"
        )


class Campaign:
    """See the head of this file.

    Args:
        directory: for sockets and what processes say.
        seed: of everything.
        say: takes a line about every round.
        without: of `calls.COSTLY`, what no fuzzer does.
    """

    def __init__(
        self,
        directory: Path,
        seed: int,
        say: Callable[[str], None] = lambda _: None,
        without: tuple[str, ...] = (),
    ) -> None:
        self._directory, self._say, self._without = directory, say, without
        self._rng = random.Random(seed)
        self._victims: list[Child] = []
        self.report = Report(seed)

    def run(self, seconds: float, rounds: int = 0) -> Report:
        """Runs for so long, or for so many rounds where that is given."""
        before, began = kernel.names(), time.monotonic()
        with tenants_server(self._directory / "server", sweep_seconds=1) as (server, address):
            try:
                self._beside(server, address, lambda n: n < rounds if rounds else time.monotonic() - began < seconds)
                until(lambda: kernel.names() == before, 30, "all names going")
                until(lambda: not server.status().clients, 10, "all sessions ending")
            except Exception as error:
                self.report.faults.append(f"round {self.report.rounds}: {error!r}\n{traceback.format_exc()}")
            finally:
                for victim in self._victims:
                    victim.kill()
                    self._hear(victim)
            self._inquire(server)
        self.report.leaks += [f"name {name}" for name in sorted(kernel.names() - before)]
        self.report.seconds = round(time.monotonic() - began, 1)
        return self.report

    def _beside(self, server: Server, address: str, goes_on: Callable[[int], bool]) -> None:
        """Rounds, beside victims and a prober."""
        report = self.report
        for n in range(VICTIMS):
            told = self._directory / f"victim-{n}"
            self._victims.append(Child("fuzz.victim", told, address, f"{report.seed}/victims", BOB))
        for victim in self._victims:
            until(lambda v=victim: v.told().get("rounds", 0) >= 2, 60, "a victim's first rounds")  # type: ignore[misc]
        clients, pid = server.status().clients, server.pid
        memory, descriptors = kernel.private_bytes(pid), _descriptors(server)
        prober = Prober(server.address)
        try:
            while goes_on(report.rounds) and not self._troubled(prober):
                self._round(address)
                if report.rounds % _AUDITED == 0:
                    self._audit(server)
            until(lambda: server.status().clients <= clients, 60, "all fuzzers' sessions ending")
        finally:
            prober.close()
            report.asked, report.longest, report.slow = prober.asked, prober.longest, prober.slow
            report.faults += prober.failed
        if server.status().pid != pid:
            report.faults.append("the server is another process")
        self._audit(server)
        self._leave(server, memory, descriptors)

    def _round(self, address: str) -> None:
        """One fuzzer, to its end or killed on the way."""
        report = self.report
        report.rounds += 1
        told = self._directory / f"fuzzer-{report.rounds}"
        seed = f"{report.seed}/{report.rounds}"
        fuzzer = Child("fuzz.driver", told, address, seed, CALLS, ALICE, ",".join(self._without))
        killed = report.rounds % 3 == 1
        at = self._rng.randrange(50, CALLS)
        try:
            if killed:
                until(lambda: fuzzer.told().get("calls", 0) >= at or fuzzer.ended(0), 120, "a fuzzer getting somewhere")
                if fuzzer.ended(0) and (wrong := fuzzer.finish(0)):  # by itself, and not well
                    report.faults.append(f"round {report.rounds}: {wrong}")
                fuzzer.kill()
                report.killed += 1
                _remove_what_no_server_sweeps()
            elif not fuzzer.ended(240):
                report.faults.append(f"round {report.rounds}: the fuzzer does not end")
            elif wrong := fuzzer.finish(1):
                report.faults.append(f"round {report.rounds}: {wrong}")
        finally:
            fuzzer.kill()
        self._count(fuzzer.told(), killed)
        self._say(f"round {report.rounds}: {report.calls} calls, victims verified {self._verified() >> 20} MiB")

    def _count(self, told: dict[str, Any], killed: bool) -> None:
        report = self.report
        if not told:
            return
        report.calls += told["calls"]
        report.kinds.update(told["kinds"])
        report.answers.update(told["answers"])
        report.faults += [f"round {report.rounds}: {text}" for text in told["faults"]]
        if told["longest"] > report.longest_call:
            report.longest_call, report.longest_call_was = told["longest"], told["longest_call"]
        if not killed:
            report.digests.append(told["digest"])

    def _verified(self) -> int:
        return sum(victim.told().get("verified", 0) for victim in self._victims)

    def _troubled(self, prober: Prober) -> bool:
        lost = any(victim.told().get("lost") for victim in self._victims)
        return bool(lost or prober.failed or self.report.faults) or any(v.ended(0) for v in self._victims)

    def _audit(self, server: Server) -> None:
        """The victims' part of the books: what a fuzzer said of its own may be a lie, and stands there as that."""
        found = audit(server)
        self.report.audits += 1
        self.report.faults += [
            f"round {self.report.rounds}: {finding.text}"
            for finding in found.findings
            if finding.uid == BOB and finding.kind < _LOOKED_AT
        ]

    def _leave(self, server: Server, memory: int, descriptors: int) -> None:
        """The victims end, and what the server has grown by is looked at while they are there."""
        report = self.report
        until(lambda: _descriptors(server) <= descriptors + DESCRIPTORS, 20, "descriptors going")
        report.grown = kernel.private_bytes(server.pid) - memory
        report.descriptors = (descriptors, _descriptors(server))
        if report.grown > GROWTH:
            report.leaks.append(f"the server has {report.grown >> 20} MiB more than before")
        for victim in self._victims:
            if wrong := victim.finish(60):
                report.faults.append(wrong)
        until(lambda: audit(server).kinds == {}, 30, "an audit that finds nothing")

    def _hear(self, victim: Child) -> None:
        """What it has verified, however it ended."""
        report, told = self.report, victim.told()
        report.losses += told.get("lost", [])
        report.written += told.get("written", 0)
        report.verified += told.get("verified", 0)
        report.settled += told.get("rounds", 0)
        report.most_merged = max(report.most_merged, told.get("most_merged", 0))

    def _inquire(self, server: Server) -> None:
        """Whether the server lives, and what it says went wrong in it."""
        assert server.process is not None
        if (code := server.process.poll()) is not None:
            self.report.faults.append(f"the server ended with {code}")
        log = server.log.read_text()
        if "Traceback" in log or "panicked" in log:
            at = max(log.find("Traceback"), log.find("panicked"))
            self.report.faults.append(f"in the server's log: {log[max(0, at - 1000) : at + 3000]}")


def _descriptors(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.pid}/fd"))


def _remove_what_no_server_sweeps() -> None:
    """Links, FIFOs and directories under legal names that a killed fuzzer has left."""
    for name in kernel.names():
        path = kernel.SHM / name
        found = path.lstat()
        if found.st_uid == ALICE and not stat.S_ISREG(found.st_mode):
            path.rmdir() if stat.S_ISDIR(found.st_mode) else path.unlink()
