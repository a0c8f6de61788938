"""`make bench`: one table, and the same as JSON in bench/results/.

Every figure is the median of several runs; the spread (least to most) stands beside it. Absolute figures are of this
machine; the ratio to the kernel's KSM, measured in the same run, is what means something elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import ksm
from rich.console import Console
from rich.table import Table
from rows import ROWS, Figure

_RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="runs of each row (default 3)")
    parser.add_argument("--mib", type=int, default=1024, help="MiB of each process that is merged (default 1024)")
    parser.add_argument("--no-kernel", action="store_true", help="leave KSM alone")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)  # so that KSM is put back then too
    console = Console(stderr=True)
    refused = "asked to leave it alone" if given.no_kernel else ksm.why_not()
    if refused:
        console.print(f"without the kernel's KSM: {refused}")
    sizes = {"merge": given.mib << 20, "unique": given.mib << 21}
    figures: list[Figure] = []
    try:
        for row in ROWS:
            for run in range(given.runs):
                console.print(f"{row.__name__}, run {run + 1} of {given.runs} ...")
                figures += row(sizes, not refused)
    except KeyboardInterrupt:
        console.print("interrupted; the kernel's settings are as they were")
        return 130
    summary = _summarise(figures)
    _print(summary)
    _RESULTS.mkdir(exist_ok=True)
    path = _RESULTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    machine = {"kernel": platform.release(), "cores": os.cpu_count(), "python": platform.python_version()}
    path.write_text(json.dumps({"machine": machine, "runs": given.runs, "rows": summary}, indent=2) + "\n")
    console.print(f"as JSON: {path}")
    return 0


def _summarise(figures: list[Figure]) -> list[dict[str, object]]:
    names = dict.fromkeys(figure.row for figure in figures)
    return [_row([figure for figure in figures if figure.row == name]) for name in names]


def _row(runs: list[Figure]) -> dict[str, object]:
    ours = [run.pagefold for run in runs]
    theirs = [run.kernel for run in runs if run.kernel is not None]
    ratios = [run.pagefold / run.kernel for run in runs if run.kernel]
    return {
        "row": runs[0].row,
        "unit": runs[0].unit,
        "pagefold": statistics.median(ours),
        "pagefold_spread": [min(ours), max(ours)],
        "kernel": statistics.median(theirs) if theirs else None,
        "kernel_spread": [min(theirs), max(theirs)] if theirs else None,
        "ratio": statistics.median(ratios) if ratios else None,
    }


def _print(summary: list[dict[str, object]]) -> None:
    table = Table(title="pagefold beside the kernel's KSM")
    for heading in ("", "unit"):
        table.add_column(heading)
    for heading in ("pagefold", "spread", "KSM", "spread", "ratio"):
        table.add_column(heading, justify="right")
    for row in summary:
        table.add_row(
            str(row["row"]),
            str(row["unit"]),
            _number(row["pagefold"]),
            _spread(row["pagefold_spread"]),
            _number(row["kernel"]),
            _spread(row["kernel_spread"]),
            _number(row["ratio"]),
        )
    Console(width=140 if not sys.stdout.isatty() else None).print(table)


def _number(value: object) -> str:
    return f"{value:,.3g}" if isinstance(value, float) and value < 1000 else "-" if value is None else f"{value:,.0f}"


def _spread(value: object) -> str:
    return f"{_number(value[0])} .. {_number(value[1])}" if isinstance(value, list) else "-"


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
