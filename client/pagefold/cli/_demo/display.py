"""How the demo shows itself: live on a terminal, line by line elsewhere, not at all with --json."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Final, Protocol

from pagefold_proto.text import human
from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

_BAR_WIDTH: Final = 60
_HISTORY: Final = 60
_LEVELS: Final = " ▁▂▃▄▅▆▇█"


class Display(Protocol):
    """Shows what the demo does."""

    def __enter__(self) -> Display: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def step(self, words: str) -> None:
        """A step begins."""

    def done(self, words: str) -> None:
        """The step ended, with this result."""

    def memory(self, nbytes: int) -> None:
        """Physical memory is this much now."""


class _Silent:
    """Shows nothing."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def step(self, words: str) -> None: ...

    def done(self, words: str) -> None: ...

    def memory(self, nbytes: int) -> None: ...


class _Lines(_Silent):
    """Plain lines, for logs and pipes. Memory gets a line when it changed by a tenth of the peak."""

    def __init__(self) -> None:
        self._peak = self._last = 0

    def __enter__(self) -> _Lines:
        return self

    def done(self, words: str) -> None:
        print(words, flush=True)

    def memory(self, nbytes: int) -> None:
        self._peak = max(self._peak, nbytes)
        if abs(nbytes - self._last) * 10 > self._peak:
            print(f"  physical memory {human(nbytes)}", flush=True)
            self._last = nbytes


class _Picture:
    """A live display on a terminal: finished steps, the present one, and a bar of memory."""

    def __init__(self, console: Console) -> None:
        self._done: list[str] = []
        self._now = ""
        self._began = time.monotonic()
        self._bytes = self._peak = 0
        self._history: list[int] = []
        self._live = Live(console=console, refresh_per_second=8, get_renderable=self._render)

    def __enter__(self) -> _Picture:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._now = ""
        self._live.stop()

    def step(self, words: str) -> None:
        self._now, self._began = words, time.monotonic()

    def done(self, words: str) -> None:
        self._now = ""
        self._done.append(words)

    def memory(self, nbytes: int) -> None:
        self._bytes, self._peak = nbytes, max(self._peak, nbytes)
        self._history = [*self._history[1 - _HISTORY :], nbytes]

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = [Text.assemble(("  done  ", "green"), words) for words in self._done]
        if self._now:
            seconds = time.monotonic() - self._began
            parts.append(Text.assemble(("  ....  ", "cyan"), f"{self._now} ({seconds:.0f} s)"))
        if self._peak:
            row = Table.grid(padding=(0, 1))
            row.add_row(
                Text("physical memory", style="bold"),
                Bar(self._peak, 0, self._bytes, width=_BAR_WIDTH, color="cyan"),
                Text(human(self._bytes), style="bold"),
            )
            row.add_row(Text("so far", style="dim"), Text(self._curve(), style="cyan"), "")
            parts += [Text(""), row]
        return Group(*parts)

    def _curve(self) -> str:
        top = len(_LEVELS) - 1
        return "".join(_LEVELS[nbytes * top // self._peak] for nbytes in self._history)


def display(as_json: bool, console: Console) -> Display:
    """The display for JSON, a terminal, or a file."""
    if as_json:
        return _Silent()
    return _Picture(console) if sys.stdout.isatty() else _Lines()
