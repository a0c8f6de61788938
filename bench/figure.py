"""The words of the benchmark: a plan (what to run, how large), a row, and the figures that a row gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

MIB = 1 << 20
TIMEOUT = 600.0
"""Seconds after which something that has to come true has failed."""


@dataclass(frozen=True)
class Target:
    """What a figure is to reach.

    Attributes:
        most: the value may be no more than this.
        of: which value: the ratio of pagefold to the kernel, or pagefold's own.
    """

    most: float
    of: Literal["ratio", "pagefold"] = "ratio"


@dataclass(frozen=True)
class Figure:
    """One figure of one run.

    Attributes:
        key: names it in the JSON: row.figure.
        title: what was measured, with its sizes.
        unit: of all values.
        pagefold: the value.
        kernel: KSM's in the same run; None where it has no such figure, or may not be measured here.
        floor: what hardware and system calls take for the same at the very least, measured in the same run.
        target: None: for information only.
        pagefold_over: the value is a bound: it was given up then, and the truth is more.
        kernel_over: the same of KSM's.
        notes: what a reader has to know of this run.
    """

    key: str
    title: str
    unit: str
    pagefold: float
    kernel: float | None = None
    floor: float | None = None
    target: Target | None = None
    pagefold_over: bool = False
    kernel_over: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        mib: of each process in the largest merge row; all sizes are in proportion to it.
        quick: few clients and short times: shows that a row works, and measures nothing.
        engine: of the server; empty: its default.
        kernel: whether KSM may be measured.
        say: tells the user how far it has come.
    """

    mib: int = 1024
    quick: bool = False
    engine: str = ""
    kernel: bool = True
    say: Callable[[str], None] = field(default=print)

    @property
    def size(self) -> int:
        """Bytes of each process in the largest merge row."""
        return self.mib * MIB


@dataclass(frozen=True)
class Row:
    """Something to measure, by name.

    Attributes:
        name: for --rows.
        about: a line for --list.
        measure: one run.
        once: it runs once, however many runs are asked for: it takes too long.
        kernel_once: KSM is measured in the first run only, for the same reason.
    """

    name: str
    about: str
    measure: Callable[[Plan], list[Figure]]
    once: bool = False
    kernel_once: bool = False


class WrongResult(Exception):
    """What was measured did not do what it had to: its figures mean nothing."""
