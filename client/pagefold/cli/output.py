"""What commands print: tables for people, JSON for scripts. Results go to stdout, everything else to stderr.

Any user chooses names, so text for people is escaped, and markup in it has no effect. JSON escapes by itself.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

from google.protobuf.message import Message
from pagefold_proto.text import human, printable
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pagefold.cli.exits import CommandError

_PIPE_WIDTH: Final = 160
PROSE_WIDTH: Final = 80
"""Columns of prose in a log or a pipe, where people read, mail and paste it."""


class Output(io.FileIO):
    """Standard output. A write that fails ends the command with a sentence.

    Later output is dropped: else Python would write it again when it exits, and complain.
    """

    def write(self, data: Any) -> int:
        """Writes bytes, and returns how many. A failure is a BrokenPipeError or a CommandError."""
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_NONBLOCK)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if isinstance(error, BrokenPipeError):
                raise
            raise CommandError(f"standard output cannot be written: {error.strerror}") from error


def guard_stdout() -> None:
    """Puts an `Output` under `sys.stdout`."""
    old = sys.stdout
    if isinstance(old, io.TextIOWrapper):
        old.flush()
        raw = io.BufferedWriter(Output(old.fileno(), "w", closefd=False))
        sys.stdout = io.TextIOWrapper(
            raw, old.encoding, old.errors, line_buffering=old.line_buffering, write_through=old.write_through
        )


def console(width: int = _PIPE_WIDTH) -> Console:
    """Standard output, for people.

    Args:
        width: columns where neither a terminal nor $COLUMNS says how many; the default fits a row of a table.
    """
    unknown = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(highlight=False, markup=False, emoji=False, width=width if unknown else None)


def print_json(value: object, one_line: bool = False) -> None:
    """Prints one object: indented on a terminal, else on one line."""
    print(json.dumps(value, indent=2 if sys.stdout.isatty() and not one_line else None), flush=True)


def print_error(text: str) -> None:
    """Prints one line on stderr, after the program's name. If that fails, the exit code says enough."""
    with contextlib.suppress(OSError):
        print(f"pagefold: {printable(text)}", file=sys.stderr)


def plain(message: Message) -> dict[str, Any]:
    """A message as JSON. It has every field; 64-bit numbers are numbers; enums are short lower-case names."""
    return {field.name: _plain_field(message, field) for field in message.DESCRIPTOR.fields}


def _plain_field(message: Message, field: Any) -> Any:
    # Not by the descriptor's `label` or `is_repeated`: new protobufs deprecate the one, old ones lack the other.
    value = getattr(message, field.name)
    if isinstance(value, (str, bytes, int, float, Message)):
        return _plain_value(value, field)
    return [_plain_value(item, field) for item in value]


def _plain_value(value: Any, field: Any) -> Any:
    if isinstance(value, Message):
        return plain(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return enum_word(field.enum_type.name, known.name) if known else value
    return value.hex() if isinstance(value, bytes) else value


def enum_word(enum: str, name: str) -> str:
    """TIER_UFFD of Tier as "uffd"."""
    return name.removeprefix(f"{enum.upper()}_").lower()


class Rows(Table):
    """A table whose cells show text as it is, without markup."""

    def row(self, *cells: str | Text) -> None:
        """Adds a row. Strings may come from any user and are escaped; `Text` is the program's own."""
        self.add_row(*(Text(printable(cell)) if isinstance(cell, str) else cell for cell in cells))


def table(*columns: str, right: Iterable[str] = (), wrap: Iterable[str] = ()) -> Rows:
    """An empty table with a head. Columns in `right` hold numbers; those in `wrap` may take several lines."""
    made = Rows(box=box.SIMPLE_HEAD, pad_edge=False)
    numbers, texts = set(right), set(wrap)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in numbers else "left"
        made.add_column(column, justify=justify, overflow="fold", no_wrap=column not in texts)
    return made


def facts(values: Mapping[str, str]) -> Rows:
    """A table of names and values, one pair in each row."""
    made = Rows(box=None, show_header=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in values.items():
        made.row(name, value)
    return made


def count(number: int, unit: str, plural: str = "") -> str:
    """1 page, 2 pages, 12,345 pages."""
    return f"{number:,} {unit if number == 1 else plural or unit + 's'}"


def pages(number: int, page_size: int) -> str:
    """12,345 (48.2 MiB)."""
    return f"{number:,} ({human(number * page_size)})" if number else "0"


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
