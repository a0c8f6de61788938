"""`pagefold demo`: processes load the same data, memory falls, one of them writes, and only its pages come back.

Nothing is estimated. The kernel says how much memory is in use (`physical`). Every worker compares every byte of its
data with what it wrote, three times: before merging, merged, and after the writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Any, Final

import typer
from pagefold_proto.limits import PAGE, SHM
from pagefold_proto.text import human
from pagefold_proto.v1.memory_pb2 import BACKING_MEMFD

from pagefold.cli._demo.display import Display, display
from pagefold.cli._demo.physical import physical_bytes
from pagefold.cli._demo.workers import PRIVATE_STRIPE, STRIPES, Crew
from pagefold.cli.admin import Admin
from pagefold.cli.exits import CommandError, ExitCode
from pagefold.cli.output import console, facts, print_json
from pagefold.testing import embedded_server

LEAST_SHARE: Final = 0.95
"""Part of the ideal saving that the demo has to reach."""

_TICK: Final = 0.15


@dataclass(frozen=True, slots=True)
class Result:
    """What one run found. All sizes are bytes.

    Attributes:
        workers: number of processes.
        bytes_per_worker: data in each of them.
        distinct_bytes: data if every page that is not zero were kept once.
        physical_before: memory of workers, segments and pool once all data is loaded.
        physical_after: the same, merged.
        physical_written: the same, after the writes.
        returned_bytes: physical_written - physical_after: memory that the writes took.
        saved_bytes: physical_before - physical_after.
        ideal_saved_bytes: workers x bytes_per_worker - distinct_bytes.
        settle_seconds: from the start of merging until nothing was left to merge.
        settled: nothing was left to merge before the timeout.
        written_bytes: pages that one worker overwrote at the end.
        verified: every worker compared every byte, three times, and all were right.
        lost_bytes: bytes that differed.
        barrier: how writes were held.
        window_max_micros: the longest time that writes were held, in any worker.
    """

    workers: int
    bytes_per_worker: int
    distinct_bytes: int
    physical_before: int
    physical_after: int
    physical_written: int
    returned_bytes: int
    saved_bytes: int
    ideal_saved_bytes: int
    settle_seconds: float
    settled: bool
    written_bytes: int
    verified: bool
    lost_bytes: int
    barrier: str
    window_max_micros: float

    @property
    def convincing(self) -> bool:
        """Whether all bytes were right and the saving is large enough."""
        return self.verified and self.saved_bytes >= LEAST_SHARE * self.ideal_saved_bytes


def demo(
    workers: Annotated[int, typer.Option(metavar="N", min=2, max=64, help="Number of processes.")] = 4,
    mib: Annotated[int, typer.Option(metavar="M", min=1, max=1 << 16, help="MiB of data in each process.")] = 64,
    write_pages: Annotated[
        int, typer.Option(metavar="K", min=1, help="Pages that one process writes at the end.")
    ] = 64,
    seed: Annotated[int, typer.Option(metavar="S", min=0, help="Seed of the data.")] = 1,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=1, help="Longest time for merging.")] = 120,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")] = False,
) -> None:
    """Show merging at work: processes load the same data, and physical memory falls.

    The demo runs its own server in a temporary directory, and removes everything at the end. Of 16 parts of the data,
    14 are the same in every process, one is different in each, one is zeros. The demo exits 1 unless every byte was
    right and the saving is at least 95 % of the ideal.

    Examples:
      pagefold demo
      pagefold demo --workers 8 --mib 256
      pagefold demo --json | jq '.saved_bytes / .ideal_saved_bytes'
    """
    if find_spec("numpy") is None:
        raise CommandError("the demo needs NumPy: pip install 'pagefold[numpy]'")
    _check_room((STRIPES - 2 + workers) * (mib << 20) // STRIPES)
    out = console()
    with display(as_json, out) as shown:
        result = _run(workers, mib << 20, write_pages, seed, timeout, shown)
    if as_json:
        print_json(dataclasses.asdict(result))
    else:
        out.print()
        out.print(facts(_table(result)))
        if result.convincing:
            out.print("\n every byte verified, memory saved", style="bold green")
        else:
            out.print(f"\n not as promised: {_complaint(result)}", style="bold red")
    raise typer.Exit(ExitCode.OK if result.convincing else ExitCode.FAILED)


def _run(workers: int, nbytes: int, write_pages: int, seed: int, timeout: float, shown: Display) -> Result:
    page = PAGE
    distinct = (STRIPES - 2 + workers) * (nbytes // STRIPES)
    pages = _spread(write_pages, nbytes // page)
    with contextlib.ExitStack() as stack:
        shown.step("starting a server and the workers")
        server = stack.enter_context(embedded_server(cpu_ceiling_percent=100, sleep_millisecs=0))
        admin = stack.enter_context(Admin(server))
        crew = stack.enter_context(Crew(server, workers, nbytes, seed))
        everybody = list(range(workers))
        gauge = _Gauge(admin, crew, shown)

        def ask(numbers: list[int], method: str, *args: object) -> list[Any]:
            for number in numbers:
                crew.tell(number, method, *args)
            return gauge.follow(numbers)

        barrier = _checked_barrier(ask(everybody, "warm_up"))
        shown.done(f"{workers} worker processes, a server on {server.removeprefix('unix:')}")
        admin.configure({"run": "0"})
        shown.step(f"each loads {human(nbytes)}")
        ask(everybody, "load")
        lost = sum(ask(everybody, "verify"))
        before = gauge.read_memory()
        shown.done(f"each loaded {human(nbytes)}, every byte is right: {human(before)} physical")

        shown.step("merging")
        admin.configure({"run": "1"})
        report = ask([0], "settle", timeout)[0]
        after = gauge.read_memory()
        shown.done(f"merged in {report['seconds']:.1f} s: {human(after)} physical")
        shown.step("comparing every byte")
        lost += sum(ask(everybody, "verify"))
        after = gauge.read_memory()
        shown.done("every worker compared every byte" if not lost else f"{lost} bytes are wrong")

        shown.step(f"worker 0 writes {len(pages)} pages")
        ask([0], "write", pages)
        written = gauge.read_memory()
        lost += sum(ask(everybody, "verify"))
        shown.done(
            f"worker 0 wrote {len(pages)} pages ({human(len(pages) * page)}): {human(written - after)} came back"
            + (f", {lost} bytes are wrong" if lost else ", all else as it was")
        )
        windows = [stats["window_max_micros"] for stats in ask(everybody, "stats")]
        shown.step("cleaning up")
    return Result(
        workers=workers,
        bytes_per_worker=nbytes,
        distinct_bytes=distinct,
        physical_before=before,
        physical_after=after,
        physical_written=written,
        returned_bytes=written - after,
        saved_bytes=before - after,
        ideal_saved_bytes=workers * nbytes - distinct,
        settle_seconds=round(report["seconds"], 3),
        settled=report["settled"],
        written_bytes=len(pages) * page,
        verified=lost == 0,
        lost_bytes=lost,
        barrier=barrier,
        window_max_micros=max(windows),
    )


class _Gauge:
    """Reads physical memory while workers work, and shows it."""

    def __init__(self, admin: Admin, crew: Crew, shown: Display) -> None:
        self._admin, self._crew, self._shown = admin, crew, shown

    def follow(self, numbers: list[int]) -> list[Any]:
        """Waits for the answers of workers, and reads memory meanwhile."""
        for answers in self._crew.answers(numbers, _TICK):
            if answers is not None:
                return answers
            self.read_memory()
        raise AssertionError("answers end with the answers")

    def read_memory(self) -> int:
        """Physical memory now."""
        segments = self._admin.segments().segments
        apart = sum(segment.allocated_bytes for segment in segments if segment.backing == BACKING_MEMFD)
        names = [segment.name for segment in segments if segment.backing != BACKING_MEMFD]
        names += [domain.pool for domain in self._admin.domains().domains]
        found = physical_bytes(self._crew.pids, names) + apart
        self._shown.memory(found)
        return found


def _spread(count: int, pages: int) -> list[int]:
    """Page numbers at equal distances, all in parts of the array that merge."""
    merging = [page for page in range(pages) if page * STRIPES // pages != PRIVATE_STRIPE]
    count = min(count, len(merging))
    return [merging[number * len(merging) // count] for number in range(count)]


def _checked_barrier(told: list[dict[str, str]]) -> str:
    first = told[0]
    if first["barrier"] == "off":
        raise CommandError(f"nothing can be merged here ({first['trouble']}): pagefold doctor says what to do")
    return first["barrier"]


def _check_room(needed: int) -> None:
    found = os.statvfs(SHM)
    free = found.f_bavail * found.f_frsize
    if found.f_blocks and free < needed * 1.1:
        raise CommandError(
            f"{SHM} has {human(free)} free, the demo's shared frames take {human(int(needed * 1.1))} of it: "
            f"take less (--workers, --mib), or enlarge it: mount -o remount,size=SIZE {SHM}"
        )


def _complaint(result: Result) -> str:
    if not result.verified:
        return f"{result.lost_bytes:,} bytes were lost; please report this"
    hint = "" if result.settled else " (not settled in time: give it more with --timeout)"
    return f"less than {LEAST_SHARE:.0%} of the possible saving{hint}; pagefold doctor may know why"


def _table(result: Result) -> dict[str, str]:
    share = result.saved_bytes / result.ideal_saved_bytes
    return {
        "data": f"{result.workers} workers x {human(result.bytes_per_worker)}, {human(result.distinct_bytes)} distinct",
        "physical memory before": human(result.physical_before),
        "merged": human(result.physical_after),
        f"after one wrote {human(result.written_bytes)}": f"{human(result.physical_written)}, "
        f"{human(result.returned_bytes)} came back",
        "saved": f"{human(result.saved_bytes)}, {share:.1%} of what is possible",
        "time to settle": f"{result.settle_seconds:.2f} s",
        "writes were held for": f"{result.window_max_micros:.0f} us at most (barrier {result.barrier})",
        "bytes lost": f"{result.lost_bytes}",
    }
