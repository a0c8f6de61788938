"""What a fork does to a client: no call and no window is under way, and the child knows that it is a copy.

    before      no session talks to a server, and none begins to; then, natively: no window, pages frozen
    in parent   pages stay frozen until all children are gone; then they are thawed
    in child    no channel, no thread: memory is a snapshot; the client connects again when it is used

The native half (`native/src/fork/`) does it. The C library calls it at every fork, of Python and of C code, so both
processes keep their bytes. The hooks here have the forking thread wait until no session has a turn
(`pagefold_core.Turn`), so that no fork copies grpc in the middle of a call. They are native functions: an exception
that a signal handler raises comes before or after one.

C code that forks may call all of Python's hooks (PyOS_BeforeFork and its like), some, or none: the native half knows
whether a fork has waited (`can_attach`). Without PyOS_AfterFork_Child a child can use its memory from C, but Python
hangs there sooner or later: threads that do not exist may hold its lock. vfork and posix_spawn, which `subprocess`
uses, call no hooks and need none: their children only exec.
"""

from __future__ import annotations

import os
import sys
from typing import Final

import pagefold_core

from pagefold._process.log import log as _log

GENERATION_POLL: Final = 0.5
"""Seconds between two checks whether forked children are gone."""


def tell_troubles() -> None:
    """Logs what went wrong at the last fork, once."""
    for trouble in pagefold_core.fork_troubles():
        _log.error(
            "a fork went wrong; the child may lack memory, or keep its parent's from merging for good: %s", trouble
        )


def why_not_attach() -> str:
    """Why this process cannot use grpc: a fork on the way to it went past the hooks. Empty if none did."""
    if pagefold_core.can_attach():
        return ""
    if "uwsgi" in sys.modules:
        return (
            "uWSGI has forked it past Python's hooks, perhaps in the middle of a call. Set py-call-uwsgi-fork-hooks "
            "(without it, workers hang whenever any thread of the master runs Python at that moment), or lazy-apps"
        )
    return "C code has forked it past Python's hooks, perhaps in the middle of a call: fork with os.fork(), or exec"


os.register_at_fork(
    before=pagefold_core.before_fork,
    after_in_parent=pagefold_core.after_fork_in_parent,
    after_in_child=tell_troubles,  # an exception in here costs a line of the log, no more
)
