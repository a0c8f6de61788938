"""The native half of pagefold: everything that touches the address space, and the server's engine.

Windows, merge, adopt, discard and harvest; the scan and its books; with the GIL released throughout. This package takes
numbers and file descriptors; names, defaults and policy live in `pagefold` and `pagefold_server`. The manual is
`_native.pyi`.
"""

from pagefold_core._native import (
    PAGE_SIZE,
    Block,
    Counts,
    Doorbell,
    Engine,
    Events,
    Features,
    Space,
    WindowStats,
    probe,
)

__all__ = [
    "PAGE_SIZE",
    "Block",
    "Counts",
    "Doorbell",
    "Engine",
    "Events",
    "Features",
    "Space",
    "WindowStats",
    "probe",
]
