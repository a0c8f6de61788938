"""The figures of all runs as one table: summed up, shown, and written as Markdown. What is not known is a dash."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from figure import Figure
from rich.console import Console
from rich.table import Table

Entry = dict[str, Any]
"""One line, as it is in the JSON."""

HEADINGS = ("", "pagefold", "kernel KSM", "ratio", "to reach", "reached", "at least")
_DASH = "-"


def summarise(figures: Iterable[Figure]) -> list[Entry]:
    """A line for each figure, over all its runs; in the order in which they came."""
    by_key: dict[str, list[Figure]] = {}
    for figure in figures:
        by_key.setdefault(figure.key, []).append(figure)
    return [_entry(runs) for runs in by_key.values()]


def show(entries: Sequence[Entry], failed: Sequence[Entry], console: Console) -> None:
    """The table, and what did not work."""
    table = Table(title="pagefold beside the kernel's KSM: median (least .. most)", caption_justify="left")
    for number, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if number in (0, 4, 5) else "right", overflow="fold")
    for entry in entries:
        style = "red" if entry["met"] is False else ""
        table.add_row(*_cells(entry), style=style)
    console.print(table)
    for entry in entries:
        for note in entry["notes"]:
            console.print(f"{entry['title']}: {note}", highlight=False)
    for failure in failed:
        console.print(f"FAILED: {failure['row']}, run {failure['run']}: {failure['error']}", style="bold red")


def markdown(entries: Sequence[Entry], failed: Sequence[Entry]) -> str:
    """The same for a page of documentation."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---|" + "---:|" * 3 + "---|---|---:|"]
    lines += ["| " + " | ".join(cell.replace("|", "/") for cell in _cells(entry)) + " |" for entry in entries]
    notes = [f"* {entry['title']}: {note}." for entry in entries for note in entry["notes"]]
    notes += [f"* **Failed**: {failure['row']}: {failure['error']}" for failure in failed]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def _entry(runs: Sequence[Figure]) -> Entry:
    first = runs[0]
    entry: Entry = {
        "key": first.key,
        "title": first.title,
        "unit": first.unit,
        "runs": len(runs),
        "pagefold": _side(runs, lambda figure: figure.pagefold, lambda figure: figure.pagefold_over),
        "kernel": _side(runs, lambda figure: figure.kernel, lambda figure: figure.kernel_over),
        "floor": _side(runs, lambda figure: figure.floor, lambda figure: False),
        "notes": list(dict.fromkeys(note for figure in runs for note in figure.notes)),
    }
    comparable = [figure for figure in runs if figure.kernel and not (figure.pagefold_over and figure.kernel_over)]
    ratios = [figure.pagefold / figure.kernel for figure in comparable if figure.kernel]
    entry["ratio"] = statistics.median(ratios) if ratios else None
    # The kernel given up too early: the true ratio is less. Pagefold given up: it is more, and nothing is met by it.
    entry["ratio_at_most"] = bool(ratios and entry["kernel"]["over"] and not entry["pagefold"]["over"])
    entry["target"] = {"most": first.target.most, "of": first.target.of} if first.target else None
    entry["met"] = _met(entry)
    return entry


def _side(
    runs: Sequence[Figure], value: Callable[[Figure], float | None], over: Callable[[Figure], bool]
) -> Entry | None:
    known = [(number, over(figure)) for figure in runs if (number := value(figure)) is not None]
    if not known:
        return None
    numbers = [number for number, _ in known]
    return {
        "median": statistics.median(numbers),
        "least": min(numbers),
        "most": max(numbers),
        "all": numbers,
        "over": any(bound for _, bound in known),
    }


def _met(entry: Entry) -> bool | None:
    target = entry["target"]
    if target is None:
        return None
    if entry["pagefold"]["over"]:
        return False
    value = entry["ratio"] if target["of"] == "ratio" else entry["pagefold"]["median"]
    return None if value is None else value <= target["most"]


def _cells(entry: Entry) -> list[str]:
    unit, met = entry["unit"], entry["met"]
    return [
        entry["title"],
        _text(entry["pagefold"], unit),
        _text(entry["kernel"], unit),
        ("<= " if entry["ratio_at_most"] else "") + _ratio(entry["ratio"]) if entry["ratio"] else _DASH,
        _target(entry["target"], unit),
        _DASH if met is None else "yes" if met else "NO",
        _number(entry["floor"]["median"]) + " " + unit if entry["floor"] else _DASH,
    ]


def _text(side: Entry | None, unit: str) -> str:
    if side is None:
        return _DASH
    text = ("> " if side["over"] else "") + f"{_number(side['median'])} {unit}"
    return text if side["least"] == side["most"] else f"{text} ({_number(side['least'])} .. {_number(side['most'])})"


def _target(target: Entry | None, unit: str) -> str:
    if target is None:
        return _DASH
    if target["of"] == "ratio":
        return f"<= {_ratio(target['most'])} of KSM"
    return f"<= {_number(target['most'])} {unit}"


def _ratio(value: float) -> str:
    return f"1/{1 / value:.3g}" if 0 < value < 0.75 else f"{value:.3g}"


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
