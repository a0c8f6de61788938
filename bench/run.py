"""`make bench`: measures, and shows one table; the same as JSON in bench/results/.

Every figure is the median of several runs; the spread (least .. most) stands beside it. Absolute figures are of this
machine; the ratio to the kernel's KSM, measured in the same run, is what means something elsewhere. docs/benchmarks.md
says what each row measures, and how it is made fair.

Exit codes: 0 every row was measured, whether it reached its target or not; 1 a row failed; 2 usage; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import interruption
import ksm
import machine
import structlog
import table
from figure import Figure, Plan, Row
from pagefold_server.sessions.sweep import sweep
from rich.console import Console
from rows import ROWS

_RESULTS = Path(__file__).parent / "results"
_BEGIN, _END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"


@dataclass(frozen=True)
class Outcome:
    """What came of it: figures of all runs, and the runs that failed."""

    figures: list[Figure]
    failed: list[dict[str, Any]]


def main() -> int:
    """Does what the command line asks for."""
    given = _arguments()
    console = Console(stderr=True, highlight=False)
    if given.list:
        for row in ROWS:
            print(f"{row.name:14}{row.about}{' (once)' if row.once else ''}")
        return 0
    if given.result:
        result = _merged([json.loads(path.read_text()) for path in given.result])
    else:
        interruption.watch()
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))  # of the sweep
        try:
            result = _measure(given, console)
        except KeyboardInterrupt:
            console.print("interrupted; the kernel's settings are as they were before")
            return 130
        finally:
            sweep()  # names of workers that had to be killed
        path = given.json or _RESULTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n")
        console.print(f"as JSON: {path}")
    table.show(result["rows"], result["failed"], Console(width=None if sys.stdout.isatty() else 180))
    if given.markdown:
        _write_markdown(given.markdown, result)
    return 1 if result["failed"] else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=_rows, default=ROWS, metavar="NAME[,NAME]", help="only these; see --list")
    parser.add_argument("--list", action="store_true", help="name the rows, and do nothing")
    parser.add_argument("--runs", type=int, help="runs of each row (3; --quick: 1); rows that --list marks run once")
    parser.add_argument("--mib", type=int, help="MiB of each process in the largest merge (1024; --quick: 16)")
    parser.add_argument("--quick", action="store_true", help="small and short: does everything work?")
    parser.add_argument("--no-kernel", action="store_true", help="leave KSM alone")
    parser.add_argument("--engine", choices=("native", "reference"), default="", help="the server's (its default)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result goes (bench/results/TIME.json)")
    parser.add_argument("--result", type=Path, nargs="+", metavar="FILE", help="measure nothing, show these results")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the table there too: between the marks that the file has"
    )
    given = parser.parse_args()
    given.runs = given.runs or (1 if given.quick else 3)
    given.mib = given.mib or (16 if given.quick else 1024)
    if given.runs < 1 or given.mib < 16 or given.mib % 16:
        parser.error("--runs is at least 1, --mib a multiple of 16")
    return given


def _rows(names: str) -> Sequence[Row]:
    known = {row.name: row for row in ROWS}
    wrong = [name for name in names.split(",") if name not in known]
    if wrong:
        raise argparse.ArgumentTypeError(f"{', '.join(wrong)}: no such row; there are {', '.join(known)}")
    return [known[name] for name in names.split(",")]


def _measure(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    refused = "asked to leave it alone" if given.no_kernel else ksm.why_not()
    if refused:
        console.print(f"without the kernel's KSM: {refused}")
    began = datetime.now(UTC)
    plan = Plan(mib=given.mib, quick=given.quick, engine=given.engine, kernel=not refused)
    outcome = Outcome([], [])
    for row in given.rows:
        for run in range(1 if row.once else given.runs):
            kernel = plan.kernel and (run == 0 or not row.kernel_once)
            _run(row, run, replace(plan, kernel=kernel), outcome, console)
    return {
        "machine": machine.description(),
        "began": f"{began:%Y-%m-%dT%H:%M:%SZ}",
        "options": {"mib": given.mib, "quick": given.quick, "engine": given.engine, "runs": given.runs},
        "without_kernel": refused,
        "rows": table.summarise(outcome.figures),
        "failed": outcome.failed,
    }


def _run(row: Row, run: int, plan: Plan, outcome: Outcome, console: Console) -> None:
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"{row.name}, run {run + 1}, after {time.monotonic() - began:.0f} s: {text}")

    try:
        outcome.figures.extend(row.measure(replace(plan, say=say)))
    except Exception as error:  # the other rows are measured all the same
        console.print("".join(traceback.format_exception(error)[-3:]), style="red", markup=False)
        say("FAILED")
        outcome.failed.append({"row": row.name, "run": run + 1, "error": f"{type(error).__name__}: {error}"})
    else:
        say("done")


def _merged(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Results of several calls as one; of a line that is in two of them the later counts."""
    lines = {line["key"]: line for result in results for line in result["rows"]}
    failed = [failure for result in results for failure in result["failed"]]
    return {**results[-1], "rows": list(lines.values()), "failed": failed}


def _write_markdown(path: Path, result: dict[str, Any]) -> None:
    where, runs = result["machine"], sorted({line["runs"] for line in result["rows"]}) or [0]
    times = f"{runs[0]}" if len(runs) == 1 else f"{runs[0]} to {runs[-1]}"
    text = (
        f"{result['began'][:10]}, Linux {where['kernel']} on {where['architecture']}, {where['cores']} cores, "
        f"{where['memory_bytes'] / (1 << 30):.0f} GiB, Python {where['python']}; median (least .. most) "
        f"of {times} runs.\n\n{table.markdown(result['rows'], result['failed'])}"
    )
    before = path.read_text() if path.exists() else ""
    if _BEGIN in before and _END in before:
        head, tail = before.partition(_BEGIN)[0], before.partition(_END)[2]
        text = f"{head}{_BEGIN}\n{text}\n{_END}{tail}"
    path.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
