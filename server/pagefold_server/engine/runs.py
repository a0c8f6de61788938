"""Finding runs in a column with a byte for each page."""

from __future__ import annotations

import re


def any_of(values: bytes) -> re.Pattern[bytes]:
    """A pattern that finds runs of these values in a column; regular expressions search at the speed of C."""
    return re.compile(b"[" + re.escape(values) + b"]+", re.DOTALL)


def runs(pattern: re.Pattern[bytes], column: bytearray, first: int, end: int) -> list[tuple[int, int]]:
    """Runs (first, count) of what the pattern looks for, between two pages."""
    return [(found.start(), found.end() - found.start()) for found in pattern.finditer(column, first, end)]
