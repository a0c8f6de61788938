"""The rows of the table, by theme. Each measures pagefold and, where it may, the kernel's KSM doing the same."""

from __future__ import annotations

from figure import Row
from rows import books, crowd, idle, large, merging, soon, tenants, writes

ROWS: tuple[Row, ...] = (
    *merging.ROWS,
    *idle.ROWS,
    *writes.ROWS,
    *books.ROWS,
    *soon.ROWS,
    *crowd.ROWS,
    *large.ROWS,
    *tenants.ROWS,
)
