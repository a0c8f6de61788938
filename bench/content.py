"""Which bytes a benchmark's pages hold. A page's content is given by a number; the same number, the same bytes.

A layout is an array with a number for each page, and the same in every process but for what depends on `who`:

    identical      1 2 3 4 5 6 7 8        the same everywhere
    unique         every number once, in all processes together
    isolated       every second page has a partner in the other process, elsewhere: no two neighbours merge
    mixed          blocks of 64 pages: 40 % unique, 30 % the same everywhere, 10 % zeros, 20 % never touched
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE = mmap.PAGESIZE
WORDS = PAGE // 8
BLOCK = 64
HOLE, ZEROS = -2, -1

Numbers = NDArray[np.int64]
Pages = NDArray[np.uint64]


def identical(pages: int, who: int) -> Numbers:
    """The same pages in every process."""
    return np.arange(1, pages + 1)


def unique(pages: int, who: int) -> Numbers:
    """No page like another, here or elsewhere."""
    return np.arange(pages) + ((who + 1) << 40)


def isolated(pages: int, who: int, shared: int) -> Numbers:
    """So many pages, each second one, that the other process has in another order; the rest are unique."""
    numbers = unique(pages, who)
    numbers[: 2 * shared : 2] = np.random.default_rng(who).permutation(shared) + 1
    return numbers


def mixed(pages: int, who: int) -> Numbers:
    """Some of everything, in blocks."""
    blocks = pages // BLOCK
    kinds = np.random.default_rng(7).permutation(np.arange(blocks) % 10)  # the same in every process
    numbers = unique(pages, who).reshape(blocks, BLOCK)
    numbers[(kinds >= 4) & (kinds < 7)] -= (who + 1) << 40
    numbers[(kinds >= 4) & (kinds < 7)] += 1
    numbers[kinds == 7] = ZEROS
    numbers[kinds >= 8] = HOLE
    return numbers.reshape(-1)


LAYOUTS: dict[str, Any] = {"identical": identical, "unique": unique, "isolated": isolated, "mixed": mixed}


def fill(words: Pages, numbers: Numbers) -> None:
    """Writes the pages; holes are left alone. Runs of one kind are written at once, without copies in between."""
    pages = words.reshape(-1, WORDS)
    row = np.arange(WORDS, dtype=np.uint64) * np.uint64(0xBF58476D1CE4E5B9)
    starts = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for first, end in runs(np.clip(numbers, HOLE, 1)):
        if numbers[first] == HOLE:
            continue
        for begin in range(first, end, 4096):
            part = slice(begin, min(begin + 4096, end))
            if numbers[first] == ZEROS:
                pages[part] = 0
            else:
                np.add(starts[part, None], row, out=pages[part])


def runs(kinds: Numbers) -> list[tuple[int, int]]:
    """Where stretches of equal values begin and end."""
    edges = np.flatnonzero(np.diff(kinds)) + 1
    return list(zip([0, *edges.tolist()], [*edges.tolist(), len(kinds)], strict=True))
