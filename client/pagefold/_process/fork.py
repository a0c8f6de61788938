"""What a fork does to a client: nothing of it is in the middle of anything, and the child is told that it is a copy.

    before      nobody talks to a server, and nobody begins to; then, natively: no window, pages frozen
    in parent   pages stay quarantined until all children are gone; then they are thawed
    in child    no channel, no thread: memory is a snapshot; the client connects anew when it is used

All of it is the native half's business (`native/src/fork/`). It has the C library call it at every fork, Python's and
that of C code alike, so both processes keep their bytes whatever forked. The hooks here only have whoever forks wait
until no session has a turn (`pagefold_core.Turn`), so that grpc is not copied in the middle of a call. They are native
functions: an exception that a signal handler raises comes before one of them, or after it.

C code that forks may call the hooks (PyOS_BeforeFork and its like), some of them, or none: the native half knows
whether a fork has waited (`can_attach`). Without PyOS_AfterFork_Child a child can use its memory from C, but Python
cannot run there for long, whatever we do: threads may be waiting for its lock that do not exist. vfork and posix_spawn,
which `subprocess` uses, call no hooks and need none: their children do nothing but exec.
"""

from __future__ import annotations

import os
import sys
from typing import Final

import pagefold_core

from pagefold._process.log import log as _log

GENERATION_POLL: Final = 0.5
"""Seconds between two looks whether forked children are gone."""


def tell_troubles() -> None:
    """Logs what went wrong at the last fork, once."""
    for trouble in pagefold_core.fork_troubles():
        _log.error("a fork did not go well; the child may lack memory, or hold up merging for good: %s", trouble)


def why_not_attach() -> str:
    """Why grpc cannot be used in this process: a fork on the way to it went past the hooks. Empty if none did."""
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
    after_in_child=tell_troubles,  # there is nothing else to do there, and nothing is lost but a line of the log
)
