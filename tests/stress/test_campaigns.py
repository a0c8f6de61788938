"""Long campaigns, for `make stress`: what the tests do for seconds, for minutes.

PAGEFOLD_STRESS_MINUTES says for how long, PAGEFOLD_STRESS_SEED repeats the random one.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz.campaign import Campaign
from integration.test_fsck import audit_under_load
from integration.test_hammer import HAMMER
from property.test_memory_model import World, run_machine
from support import kernel
from support.audit import assert_clean, audit
from support.server import Server
from support.waiting import until
from support.worker import PAGE, Worker, page_of

pytestmark = [pytest.mark.stress, pytest.mark.needs("uffd")]

MINUTES = float(os.environ.get("PAGEFOLD_STRESS_MINUTES", "3"))
STATUS_SECONDS = 1.0
"""For an answer to a status call beside a fuzzer. The bound is fuzz.prober.LONGEST; a busy machine adds to it."""


def test_I7_the_memory_model_for_long(tmp_path: Path) -> None:
    world = World(tmp_path)
    try:
        run_machine(world, examples=int(100 * MINUTES), steps=60)
    finally:
        world.close()


@pytest.mark.parametrize(("tracker", "rest"), [("checksum", 0), ("pagemap", 0.08)])
def test_hammering_for_long(
    serve: Callable[..., Server], capsys: pytest.CaptureFixture[str], tracker: str, rest: float
) -> None:
    server = serve(poll_millisecs=10, smart_scan=False)
    with Worker(server.address, tracker=tracker) as worker:
        written, lost, stats = worker.call("execute", HAMMER, MINUTES * 30, 1, rest)
        assert_clean(server)
    assert lost == []
    with capsys.disabled():
        print(
            f"\n  {written} writes, windows: p99 {stats['window_p99_micros']:.0f} us, "
            f"max {stats['window_max_micros']:.0f} us"
        )


def test_audits_while_clients_write_and_merge_for_long(
    serve: Callable[..., Server], capsys: pytest.CaptureFixture[str]
) -> None:
    said = audit_under_load(serve(poll_millisecs=10, smart_scan=False), seconds=MINUTES * 60)
    with capsys.disabled():
        print(f"\n  {said}")


@pytest.mark.needs("root")
def test_a_tenant_says_anything_for_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("PAGEFOLD_STRESS_SEED") or random.randrange(1 << 32))
    with capsys.disabled():
        print(f"\n  PAGEFOLD_STRESS_SEED={seed}")
    report = Campaign(tmp_path, seed).run(MINUTES * 60)
    with capsys.disabled():
        print(f"  {report}")
    assert report.passed, (report.losses, report.leaks, report.faults)
    assert report.most_merged > 0
    assert report.longest < STATUS_SECONDS, report.slow


class Tenant:
    """A worker, and what its memory has to hold."""

    def __init__(self, address: str, rng: random.Random) -> None:
        self.rng = rng
        self.worker = Worker(address)
        self.model: dict[str, list[int]] = {}
        self.made = 0

    def step(self) -> None:
        choice = self.rng.random()
        if choice < 0.3 and len(self.model) < 8:
            self.made += 1
            name, pages = f"b{self.made}", self.rng.choice([1, 3, 40, 700])
            self.worker.call("allocate", name, pages * PAGE)
            self.model[name] = [0] * pages
        elif self.model:
            name = self.rng.choice(list(self.model))
            seeds = self.model[name]
            if choice < 0.7:
                first = self.rng.randrange(len(seeds))
                new = [self.rng.randrange(50) for _ in range(self.rng.randrange(1, len(seeds) - first + 1))]
                self.worker.call("fill_pages", name, new, first)
                seeds[first : first + len(new)] = new
            elif choice < 0.8:
                self.worker.call("free", name)
                del self.model[name]
            elif choice < 0.85:
                self.worker.call("advise", name, self.rng.random() < 0.5)
            else:
                self.check(name)

    def check(self, name: str) -> None:
        seeds = self.model[name]
        assert self.worker.call("read", name, 0, len(seeds) * PAGE) == b"".join(map(page_of, seeds))


def test_random_clients_writers_and_kills(serve: Callable[..., Server], capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("PAGEFOLD_STRESS_SEED") or random.randrange(1 << 32))
    with capsys.disabled():
        print(f"\n  PAGEFOLD_STRESS_SEED={seed}")
    rng = random.Random(seed)
    server = serve(poll_millisecs=20)
    tenants = [Tenant(server.address, rng) for _ in range(4)]
    try:
        _campaign(server, rng, tenants, capsys)
    finally:
        for tenant in tenants:
            if tenant.worker.process.poll() is None:
                tenant.worker.kill()


def _campaign(server: Server, rng: random.Random, tenants: list[Tenant], capsys: pytest.CaptureFixture[str]) -> None:
    end = time.monotonic() + MINUTES * 60
    kills = steps = 0
    while time.monotonic() < end:
        tenant = rng.choice(tenants)
        tenant.step()
        steps += 1
        if rng.random() < 0.01:
            tenant.worker.kill()
            tenants[tenants.index(tenant)] = Tenant(server.address, rng)
            kills += 1
        elif rng.random() < 0.02:
            tenant.worker.call("settle", 5)
    for tenant in tenants:
        for name in tenant.model:
            tenant.check(name)
    # Names of workers that were killed before the server knew them are garbage until the next sweep.
    until(lambda: audit(server).kinds == {}, 120, "a clean audit")
    for tenant in tenants:
        tenant.worker.close()
    until(lambda: not server.clients(), 20, "all sessions ending")
    until(lambda: kernel.shared_bytes() == 0, 20, "all memory going back")
    with capsys.disabled():
        print(f"  {steps} steps, {kills} kills, nothing lost")
