"""States of a page in an engine's books, and what stands there for a frame.

The native engine has the same numbers; tests/engine/test_numbers.py compares them.
"""

from __future__ import annotations

from typing import Final

# States. OWNED is 0: "look at it" is then the falsy case of the scan's inner loop.
OWNED: Final = 0
QUEUED: Final = 1  # proposed, not yet taken
PROPOSED: Final = 2  # taken, not yet answered
MERGED: Final = 3
ZERO: Final = 4
COPIED: Final = 5  # keeps the reference of what it was a copy of
WAITING: Final = 6  # keeps breaking
OVER_BUDGET: Final = 7
REFUSED: Final = 8  # for a reason that the books have no name for
EXCLUDED: Final = 9
# Refused by name.
PINNED: Final = 10
FAILED: Final = 11
FORKED: Final = 12
STATES: Final = 13

MAPPED: Final = bytes((MERGED, ZERO, COPIED))
REFUSALS: Final = bytes((REFUSED, PINNED, FAILED, FORKED))
RESTING: Final = bytes((WAITING, OVER_BUDGET, *REFUSALS))
UNHELD: Final = bytes((OWNED, *RESTING, EXCLUDED))  # has no proposal and maps no frame

# What stands in the frame column.
ZERO_FRAME: Final = -1  # the zero page
NO_FRAME: Final = -2
