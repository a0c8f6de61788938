"""What one tenant's flood does to another one's merging: the same work alone and beside it, by turns, on one server.

The flood is another user's, at the address that the server has for those; the victim is root, which has no privilege
in this. Alone and beside a flood follow each other in pairs, so that what else the machine does is in both. A process
that only spins is measured in the same way: it takes as much of the machine, and nothing of the server.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from figure import MIB, TIMEOUT, Figure, Plan, Row, Target
from machine import PAGE, cpu_seconds, warm
from processes import Server, Worker, everybody, fill, settled, verify, workers

_STRANGERS = "messages of nobody"
_FLOODS = ("segments", "messages", "large messages", _STRANGERS, "batches")
_NOBODY = 65534
_PAIRS = 5
_HEAD_START = 0.5  # seconds that the flood has been going on
_MOST = 2.0


def _tenants(plan: Plan) -> list[Figure]:
    if os.geteuid() != 0:
        plan.say("left out: it takes root to be two users")
        return []
    size = max(plan.size // 8, 2 * MIB)
    with _house(plan) as (server, shared), workers(2) as crew:
        everybody(crew, "connect", server.address)
        spinning, _ = _ratio(plan, server, shared, crew, size, "spin")
        return [_figure(size, kind, *_ratio(plan, server, shared, crew, size, kind), spinning) for kind in _FLOODS]


ROWS = (Row("tenants", "two users: what one's flood does to the other's merging", _tenants),)


def _figure(size: int, kind: str, ratio: float, note: str, spinning: float) -> Figure:
    key = kind.replace(" ", "-")
    title = f"2 x {size // MIB} MiB identical beside another user's flood of {kind}: until merged, to alone"
    return Figure(f"tenants.{key}", title, "x", ratio, floor=spinning, target=Target(_MOST, "pagefold"), notes=(note,))


def _ratio(plan: Plan, server: Server, shared: str, crew: list[Worker], size: int, kind: str) -> tuple[float, str]:
    """How many times as long it takes beside the flood, and how it came to that."""
    alone, beside, rates, used, booked = [], [], [], 0.0, 0.0
    with Worker("flood.py") as flood:
        flood("become", _NOBODY)
        flood("prepare", shared, kind)
        for _ in range(1 if plan.quick else _PAIRS):
            alone.append(_merge(crew, size))
            used, booked = used - cpu_seconds(server.pid), booked - server.booked()
            flood("start")
            time.sleep(_HEAD_START)  # the flood is to have reached its full height
            began = time.perf_counter()
            beside.append(_merge(crew, size))
            took = time.perf_counter() - began + _HEAD_START
            rates.append(flood("stop") / took)
            used, booked = used + cpu_seconds(server.pid), booked + server.booked()
    plan.say(f"{kind}: {_seconds(alone)} alone, {_seconds(beside)} beside it")
    ratio = statistics.median(after / before for before, after in zip(alone, beside, strict=True))
    unit = {"batches": "pages merged in words", "spin": "turns"}.get(kind, "calls")
    note = f"{statistics.median(alone):.2f} s alone, {statistics.median(rates):,.0f} {unit} a second of the flood's"
    if kind != _STRANGERS:  # what these cost is booked on nobody who is listed
        note += f", {booked / used:.0%} of the server's processor time booked on one of the two"
    return ratio, note


def _merge(crew: list[Worker], size: int) -> float:
    """Seconds of settle(), over memory that was never merged before."""
    everybody(crew, "allocate", size)
    warm(3 * size)
    sums = fill(crew, "identical")
    began = time.perf_counter()
    report = crew[0]("settle", TIMEOUT)
    took = time.perf_counter() - began
    settled(report, pages_sharing=size // PAGE)
    verify(crew, sums)
    return took


def _seconds(times: list[float]) -> str:
    return f"{statistics.median(times):.2f} s ({min(times):.2f} .. {max(times):.2f})"


@contextmanager
def _house(plan: Plan) -> Iterator[tuple[Server, str]]:
    """A server, and the address at which other users reach it."""
    with tempfile.TemporaryDirectory(prefix="pagefold-bench-") as directory:
        Path(directory).chmod(0o755)
        shared = f"unix:{directory}/shared.sock"
        with Server(plan.engine, tenants_address=shared) as server:
            yield server, shared
