"""A campaign: rounds, in each of which one process is killed at one step, and then all that live are looked at.

The order of kills, points, contents and writes follows from the seed; what meets what in time does not. After every
round every surviving process compares all of its memory with its model (I7); where `pagefold fsck` exists, it is asked
too. At the end nothing may be left: names in /dev/shm, blocks of pools without a page that maps them, descriptors,
mappings.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from pagefold import ServerUnavailable
from pagefold_proto.v1 import memory_pb2
from support import kernel
from support.server import Server
from support.waiting import until
from support.worker import PAGE, Worker

from chaos import load, points

KINDS: Final = ("server", "client", "child")
TENANTS: Final = 3
SWEPT: Final = 8
"""Audits, of a second each, until the names of processes that were killed have to be gone."""
REACHED: Final = 6.0
"""Seconds for a process to come to its point. One that does not is killed where it is, and counted as that."""
FOLLOWS: Final = "EVENT_KIND_RESUMED" in memory_pb2.EventKind.keys()  # noqa: SIM118 - an enum's wrapper, not a dict
"""Whether clients connect again to the server that follows, and go on where they were."""

_BEGIN: Final = "from chaos import load\ndef run(remote, *a): load.begin(remote, *a)"
_CALL: Final = "from chaos import load\ndef run(remote, *a): return load.call(remote, *a)"
_DEAD: Final = (EOFError, ConnectionError, OSError)


@dataclass
class Report:
    """What a campaign says in the end."""

    seed: int
    rounds: int = 0
    seconds: float = 0.0
    kills: Counter[str] = field(default_factory=Counter)
    not_reached: int = 0
    written: int = 0
    verified: int = 0
    reconnected: int = 0
    most_merged: int = 0
    audits: int = 0
    audits_partial: int = 0  # they found no difference, and could not look everywhere
    losses: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not (self.losses or self.leaks or self.faults)

    def as_dict(self) -> dict[str, Any]:
        kinds: Counter[str] = Counter()
        for name, count in self.kills.items():
            kinds[name.split(":")[0]] += count
        return {**self.__dict__, "kills": dict(sorted(self.kills.items())), "kinds": dict(kinds), "passed": self.passed}


class ChaosServer(Server):
    """A server that can be armed."""

    module = "chaos.server"

    def __init__(self, directory: Path, address: str | None = None, **settings: object) -> None:
        self.orders = directory / "orders"
        self.environment = {"CHAOS_FILE": str(self.orders), "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        super().__init__(directory, address, **settings)

    def arm(self, point: str, nth: int) -> None:
        self.orders.write_text(f"{point} {nth}")
        os.kill(self.pid, signal.SIGUSR1)

    def dead(self, seconds: float) -> bool:
        assert self.process is not None
        try:
            self.process.wait(seconds)
        except TimeoutError:
            return False
        return True


class Tenant:
    """A client process, its children, and what the campaign knows of them."""

    def __init__(self, number: int, address: str, seed: str, point: str = "", nth: int = 1) -> None:
        self.number = number
        self.worker = Worker(address, env={"CHAOS_POINT": f"{point or 'none'}@{nth}"})
        try:
            self.worker.call("execute", _BEGIN, address, seed)
        except BaseException:
            self.worker.kill()
            raise
        self.counted = (0, 0)
        self.children: list[int] = []

    def call(self, method: str, *args: Any) -> Any:
        return self.worker.call("execute", _CALL, method, *args)

    def send(self, method: str, *args: Any) -> None:
        self.worker.send("execute", _CALL, method, *args)

    def dead(self, seconds: float) -> bool:
        try:
            self.worker.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def bury(self) -> None:
        self.worker.kill()


class Campaign:
    """See the head of this file.

    Args:
        directory: for sockets and reports.
        seed: of everything.
        say: takes a line about every round.
    """

    def __init__(self, directory: Path, seed: int, say: Callable[[str], None] = lambda _: None) -> None:
        self.directory, self.say = directory, say
        self.report = Report(seed)
        self.rng = random.Random(seed)
        self.first = self.rng.sample(KINDS, len(KINDS))  # a short campaign kills one of each, too
        self.before = kernel.names()
        self.server = ChaosServer(directory / "server", poll_millisecs=20, smart_scan=False, sweep_seconds=1)
        self.tenants: list[Tenant] = []
        self.made = 0
        self.told: set[int] = set()  # children whose losses were counted

    def run(self, rounds: int, minutes: float) -> Report:
        began = time.monotonic()
        try:
            while len(self.tenants) < TENANTS:
                self.admit()
            while self.report.rounds < rounds and (not minutes or time.monotonic() - began < minutes * 60):
                self.round()
                if self.report.losses or self.report.faults:
                    break
            self.finish()
        except Exception as error:
            self.report.faults.append(f"round {self.report.rounds}: {error!r}\n{traceback.format_exc()}{self.log()}")
        finally:
            for tenant in self.tenants:
                tenant.bury()
            self.server.kill()
        self.report.leaks += [f"name {name}" for name in sorted(kernel.names() - self.before)]
        self.report.seconds = round(time.monotonic() - began, 1)
        return self.report

    def log(self) -> str:
        """The end of the server's."""
        return "\n".join(self.server.log.read_text().splitlines()[-20:])

    # A round

    def round(self) -> None:
        self.report.rounds += 1
        rng, report = self.rng, self.report
        kind = self.first.pop() if self.first else rng.choices(KINDS, [3, 4, 3])[0]
        nth = rng.choice([1, 1, 2, 3, 5])
        pick = rng.randrange(TENANTS)
        if kind == "server":
            point = self.kill_server(rng.choice(points.known(points.SERVER, points.SERVER_NATIVE)), nth, pick)
        elif kind == "client":
            point = self.kill_client(rng.choice(points.known(points.CLIENT, points.CLIENT_NATIVE)), nth, pick)
        else:
            point = self.kill_child(rng.choice(points.known(points.CHILD, ())), nth, pick)
        report.kills[f"{kind}: {point}"] += 1
        self.look()
        self.audit()
        self.say(f"round {report.rounds}: {kind} at {point}, {report.verified >> 20} MiB verified so far")

    def reached(self, dead: bool, point: str) -> str:
        self.report.not_reached += not dead
        return point if dead else f"{point} not reached, killed elsewhere"

    def stir(self, tenant: Tenant, point: str) -> None:
        """Has a client do what leads to points that everyday work does not come to."""
        if point.lower().startswith(("add", "drop")) or point.startswith("discard"):
            for _ in range(3):
                tenant.send("large")
        elif point.startswith("Bye"):
            tenant.send("close")
        elif point.startswith("freeze"):
            tenant.send("fork", str(self.directory), "none", 1)
        elif not point.startswith("Hello"):
            tenant.send("settle", 2)

    def kill_server(self, point: str, nth: int, pick: int) -> str:
        self.server.arm(point, nth)
        if point.startswith(("hello", "bye")):  # somebody comes, or goes; the first is as good as any
            self.server.arm(point, 1)
            self.guest()
        elif point.startswith(("add_", "drop_")):
            self.server.arm(point, 1)
        expected = self.answers(self.tenants[pick], point)
        place = self.reached(self.server.dead(REACHED), point)
        self.server.kill()
        self.drain(self.tenants[pick], expected)
        alone = self.rng.random() < 0.25
        if alone:  # nobody notices this death: what it leaves, the next server sweeps
            self.mourn(self.tenants[pick])
            self.report.kills["client: while no server was there"] += 1
        self.server.start()
        self.succeed()
        if alone:
            self.admit()
        return place

    def guest(self) -> None:
        """A client that comes and goes."""
        code = "import sys, pagefold\nwith pagefold.connect(sys.argv[1], autostart=False) as c: c.allocate(4096)"
        subprocess.run(
            [sys.executable, "-c", code, self.server.address], timeout=60, check=False, stderr=subprocess.DEVNULL
        )

    def answers(self, tenant: Tenant, point: str) -> int:
        """Stirs a tenant; how many answers it owes."""
        name = {"add_segment": "add", "drop_segment": "drop"}.get(point.split(".")[0], point)
        if name.startswith(("hello", "bye", "reap", "sweep")):
            return 0
        self.stir(tenant, name)
        return 3 if name in ("add", "drop") else 1

    def drain(self, tenant: Tenant, expected: int) -> None:
        for _ in range(expected):
            tenant.worker.receive()

    def succeed(self) -> None:
        """A server has followed. Clients connect again; where they cannot, they live on and make room for others."""
        if FOLLOWS:
            self.follow()
            return
        self.look()
        for tenant in [t for t in self.tenants if not self.connected(t) or self.rng.random() < 0.3]:
            if self.rng.random() < 0.7:
                self.dismiss(tenant)
                self.admit()

    def follow(self) -> None:
        """Every client finds the server that follows, and merging goes on onto the frames that there were."""
        for tenant in self.tenants:
            until(partial(self.connected, tenant), 30, "connecting to the server that follows")
            self.report.reconnected += 1
        for tenant in self.tenants:
            tenant.call("end_children")  # a child keeps its parent's memory from being merged
        until(lambda: all(t.call("verify")["merged"] for t in self.tenants), 30, "merging going on")
        until(lambda: len([n for n in kernel.names() if n.startswith("pagefold-p")]) == 1, 30, "one pool being used")

    def connected(self, tenant: Tenant) -> bool:
        """Whether a client has found the server."""
        return bool(tenant.call("verify")["connected"])

    def kill_client(self, point: str, nth: int, pick: int) -> str:
        if point.startswith("Hello"):
            return self.kill_newcomer(point)
        tenant = self.tenants[pick]
        if point.startswith(("Bye", "Add", "Drop", "freeze")):
            nth = 1
        tenant.call("arm", point, nth)
        with contextlib.suppress(*_DEAD):  # it may have come there already
            self.stir(tenant, point)
        place = self.reached(tenant.dead(REACHED), point)
        self.mourn(tenant)
        self.admit()
        return place

    def kill_newcomer(self, point: str) -> str:
        try:
            tenant = Tenant(-1, self.server.address, "newcomer", point)
        except _DEAD:
            return point
        tenant.bury()
        return self.reached(False, point)

    def kill_child(self, point: str, nth: int, pick: int) -> str:
        tenant = self.tenants[pick]
        if point.startswith("Hello"):
            nth = 1
        elif point.startswith("merge"):
            nth = min(nth, 2)
        pid = tenant.call("fork", str(self.directory), point, nth)
        tenant.children.append(pid)
        dead = load.wait_for(pid, REACHED)
        if not dead:
            os.kill(pid, signal.SIGKILL)
            load.wait_for(pid, REACHED)
        self.read_child(pid)
        return self.reached(dead, point)

    # What must be true all the time

    def look(self) -> None:
        """Every process that lives compares all of its memory."""
        for tenant in self.tenants:
            found = tenant.call("verify")
            self.count(tenant, found)
            for pid in tenant.children:
                self.read_child(pid)

    def count(self, tenant: Tenant, found: dict[str, Any]) -> None:
        report = self.report
        report.written += found["written"] - tenant.counted[0]
        report.verified += found["verified"] - tenant.counted[1]
        report.most_merged = max(report.most_merged, found["merged"])
        tenant.counted = (found["written"], found["verified"])
        report.losses += [f"round {report.rounds}, client {tenant.number}: {text}" for text in found["lost"]]

    def read_child(self, pid: int) -> None:
        try:
            told = json.loads((self.directory / f"child-{pid}").read_text() or "{}")
        except (FileNotFoundError, json.JSONDecodeError):
            return  # killed before, or while, it wrote that
        if told.get("lost") and pid not in self.told:
            self.told.add(pid)
            self.report.losses += [f"round {self.report.rounds}, child {pid}: {text}" for text in told["lost"]]

    def audit(self, whole: bool = False) -> None:
        """Asks `pagefold fsck` for differences; as a whole it has to have looked everywhere."""
        code = "from pagefold.cli import main; main()"
        for _ in range(SWEPT):
            asked = subprocess.run(
                [sys.executable, "-c", code, "fsck", "--json", "--address", self.server.address],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            # A wrong call exits with 2 as well, as does an audit that could not look everywhere: only a report is one.
            told = json.loads(asked.stdout) if asked.stdout.startswith("{") else None
            if told is None or {finding["kind"] for finding in told["findings"]} != {"finding_kind_garbage"}:
                break  # names of who was killed are no difference, but have to be swept soon
        self.report.audits += 1
        if told is None or asked.returncode not in (0, 2) or (whole and not told["clean"]):
            self.report.faults.append(f"round {self.report.rounds}: fsck: {asked.stdout}{asked.stderr}")
        else:
            self.report.audits_partial += not told["clean"]

    # Coming and going

    def admit(self) -> None:
        self.made += 1

        def enter() -> Tenant | None:
            # On a machine with too much to do a server may not answer in the time that a client gives it to begin with.
            with contextlib.suppress(ServerUnavailable):
                return Tenant(self.made, self.server.address, f"{self.report.seed}/{self.made}")
            return None

        self.tenants.append(until(enter, 60, "a client finding the server"))  # type: ignore[arg-type]

    def mourn(self, tenant: Tenant) -> None:
        tenant.bury()
        self.tenants.remove(tenant)
        for pid in tenant.children:
            load.wait_for(pid, 20)  # they end with their parent
            self.read_child(pid)

    def dismiss(self, tenant: Tenant) -> None:
        """Ends a tenant in peace; it leaves nothing."""
        self.count(tenant, tenant.call("verify"))
        self.report.leaks += [f"client {tenant.number}: {text}" for text in tenant.call("close")]
        self.mourn(tenant)

    def finish(self) -> None:
        """Peace: everything merges once more, frames are counted, all leave, and nothing is left."""
        report, server = self.report, self.server
        for tenant in self.tenants:
            tenant.call("end_children")
        self.look()

        def pool_is_all_in_use() -> bool:
            status = server.status()
            return int(status.pool_bytes) == int(status.counters.pages_shared) * PAGE

        try:
            until(pool_is_all_in_use, 20, "every block of the pools having a page that maps it")
        except AssertionError as error:
            report.leaks.append(str(error))
        self.audit(whole=True)
        if not report.most_merged:
            report.faults.append("nothing was ever merged: that nothing was lost says nothing")
        for tenant in list(self.tenants):
            self.dismiss(tenant)
        try:
            until(lambda: not server.clients(), 20, "all sessions ending")
            until(lambda: kernel.names() == self.before, 20, "all names going")
            until(lambda: not load.remains(server.pid), 20, "the server letting go of all memory")
        except AssertionError as error:
            report.leaks += [str(error), *load.remains(server.pid)]
        server.stop()
