"""Whether the kernel shows this process its own pages: /proc/self/pagemap, by which written pages are found.

In a process that is not *dumpable* (prctl(2)) the file belongs to root, and is closed to the process itself. That is so
after a change of user (setuid workers of a root master, gunicorn --user) and where the program's file has capabilities
(setcap).
"""

from __future__ import annotations

import os
from typing import Final

_PAGEMAP: Final = "/proc/self/pagemap"


def why_not() -> str:
    """Why /proc/self/pagemap is closed to a process that is not dumpable, and what to do; empty if this one is."""
    try:
        closed = os.stat(_PAGEMAP).st_uid != os.geteuid() and not os.access(_PAGEMAP, os.R_OK, effective_ids=True)
    except OSError:
        return ""
    if not closed:
        return ""
    return (
        f"the kernel closes {_PAGEMAP} to a process that has changed its user (gunicorn --user, setuid) or has "
        "capabilities from its file (setcap). Start the program as that user; or have it call "
        "prctl(PR_SET_DUMPABLE, 1) after the change and before pagefold.connect(); instead of setcap give it ambient "
        "capabilities (setpriv --ambient-caps, AmbientCapabilities= of systemd)"
    )
