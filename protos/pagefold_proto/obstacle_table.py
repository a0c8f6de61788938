"""What keeps pages from merging: one table of obstacles, with words and a remedy for each.

Client and server both use it, so `SettleReport.reason`, `Stats.trouble`, `pagefold status` and `pagefold doctor` say
the same. A message (`Obstacle` in memory.proto) carries a number of the table and a number of pages: no text of a
client's reaches a terminal.

The rule: a settle() is True only if everything mergeable is merged, and so is False while an obstacle that blocks
concerns a page. An obstacle that does not block is the program's own wish, or will do harm later.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final, NamedTuple, TypeAlias

from pagefold_proto.limits import PAGE
from pagefold_proto.text import human
from pagefold_proto.v1 import memory_pb2 as pb

Obstacle = pb.Obstacle
Kind: TypeAlias = "pb.ObstacleKind"


class Words(NamedTuple):
    """An entry of the table.

    Attributes:
        code: stable, for scripts.
        why: the reason.
        remedy: what to do about it.
        blocks: settle() is False while it concerns a page.
        what: the state of the pages.
    """

    code: str
    why: str
    remedy: str
    blocks: bool = True
    what: str = "not merged"


HOLD_WRITES: Final = (
    "set sysctl vm.unprivileged_userfaultfd=1, or let this user read /dev/userfaultfd (Linux 6.1), or give the program "
    "CAP_SYS_PTRACE (docs/machine.md: how each lasts over a restart). Where a seccomp profile forbids userfaultfd, "
    "allow it; where none does, connect(barrier='user') ($PAGEFOLD_BARRIER) needs no permission: with it a system "
    "call that writes into a page while it is remapped fails with EFAULT"
)
_NAMES_GONE: Final = (
    "restart the server and the programs that were there when it went (loginctl enable-linger, or RemoveIPC=no, keeps "
    "names)"
)
_UNKNOWN: Final = "not known to be merged"
_MORE_SHM: Final = "make /dev/shm larger (mount -o remount,size=SIZE /dev/shm, or docker run --shm-size=SIZE)"

TABLE: Final[dict[Kind, Words]] = {
    # A client knows these by itself.
    pb.OBSTACLE_KIND_BARRIER: Words(
        "barrier",
        "this user may not hold writes while a page is remapped (there is no userfaultfd that holds the kernel's)",
        HOLD_WRITES,
    ),
    pb.OBSTACLE_KIND_KERNEL: Words(
        "kernel", "this kernel cannot write-protect shared memory", "use Linux 5.19 or later (6.7 or later is better)"
    ),
    pb.OBSTACLE_KIND_OFF: Words(
        "off", "barrier='off' was asked for", "leave out barrier= and PAGEFOLD_BARRIER", blocks=False
    ),
    pb.OBSTACLE_KIND_PAGEMAP: Words(
        "pagemap",
        "the kernel closes /proc/self/pagemap to a process that has changed its user (gunicorn --user, setuid) or has "
        "capabilities from its file (setcap)",
        "start the program as that user; or have it call prctl(PR_SET_DUMPABLE, 1) after the change and before "
        "pagefold.connect(); instead of setcap give it ambient capabilities (setpriv --ambient-caps, "
        "AmbientCapabilities= of systemd)",
    ),
    pb.OBSTACLE_KIND_SPACE: Words(
        "space",
        "the kernel refuses what merging needs",
        "allow userfaultfd, ioctl and /proc/self/pagemap (seccomp, AppArmor and SELinux may forbid them)",
    ),
    pb.OBSTACLE_KIND_DATA: Words(
        "data",
        "merged memory takes at most half of what the rest of the program leaves of RLIMIT_DATA, and leaves 64 MiB",
        "raise it (ulimit -d, LimitDATA= of a systemd unit)",
    ),
    pb.OBSTACLE_KIND_LOCKED: Words(
        "locked",
        "the program locks all its memory ahead (mlockall with MCL_FUTURE), so that the kernel would copy a page as "
        "soon as it is merged",
        "lock with MCL_FUTURE | MCL_ONFAULT, or what needs it (mlock)",
    ),
    pb.OBSTACLE_KIND_POOL: Words(
        "pool",
        "the pool of shared frames cannot be opened",
        f"if its name is gone from /dev/shm, {_NAMES_GONE}; if descriptors are short, raise ulimit -n",
    ),
    pb.OBSTACLE_KIND_LOOK: Words(
        "look",
        "the kernel does not say which pages were written",
        "free memory, or raise its limit; connect(tracker='checksum') does without",
        what=_UNKNOWN,
    ),
    pb.OBSTACLE_KIND_SEGMENT: Words(
        "segment",
        "the server does not take this memory",
        "what the server said names the setting, or the limit: raise it for good, and restart the server",
    ),
    pb.OBSTACLE_KIND_LOST: Words("lost", "the session with the server is over", "connect again"),
    pb.OBSTACLE_KIND_UNREACHABLE: Words(
        "unreachable", "the server does not answer", "start one (pagefold serve): merging goes on by itself then"
    ),
    pb.OBSTACLE_KIND_TIMEOUT: Words(
        "timeout", "the timeout of settle() was too short", "settle(timeout=SECONDS), or look again later"
    ),
    pb.OBSTACLE_KIND_FORKED: Words(
        "forked",
        "a forked child shares them, so writes to them are not tracked",
        "they merge when the child has ended, has called exec, or has released them; allocate after the fork",
    ),
    # The server knows these.
    pb.OBSTACLE_KIND_BUDGET: Words(
        "budget",
        "the mapping budget of their client is used up",
        "raise it: connect(mapping_budget=N) or PAGEFOLD_MAPPING_BUDGET, and sysctl vm.max_map_count, of which it is "
        "half by default; then restart the clients",
    ),
    pb.OBSTACLE_KIND_MAPPINGS: Words(
        "mappings",
        "the kernel gives their client no more mappings, address space or memory",
        "raise sysctl vm.max_map_count, ulimit -v and ulimit -d, or, with vm.overcommit_memory=2, the commit limit",
    ),
    pb.OBSTACLE_KIND_PINNED: Words(
        "pinned",
        "pinned() keeps them for a device",
        "leave pinned() when the transfer is over",
        blocks=False,
    ),
    pb.OBSTACLE_KIND_FAILED: Words(
        "failed",
        "a system call failed when they were to be remapped",
        "see whether seccomp, AppArmor or SELinux forbid ioctl on userfaultfd, or mmap",
    ),
    pb.OBSTACLE_KIND_REFUSED: Words(
        "refused",
        "their client declined them",
        "they are proposed again some passes later; if that does not help, see the client's log (the logger pagefold): "
        "a program that closes descriptors of others may have closed the pool's",
    ),
    pb.OBSTACLE_KIND_STUCK: Words(
        "stuck",
        "they were written after they were merged, and cannot be taken back",
        f"free memory, raise the limit of the container or control group, or {_MORE_SHM}; where a pin or a child was "
        "in the way, it is tried again some passes later",
    ),
    pb.OBSTACLE_KIND_SILENT: Words(
        "silent",
        "their client does not answer",
        "pagefold clients shows which; its process is stopped, gets no processor, or holds Python's lock",
        what=_UNKNOWN,
    ),
    pb.OBSTACLE_KIND_EXCLUDED: Words(
        "excluded", "their client violated the protocol and was excluded", "restart that program, and report this"
    ),
    pb.OBSTACLE_KIND_CLOSED: Words(
        "closed",
        "their client was closed, and its buffers and arrays live on",
        "keep a client open as long as its arrays",
        blocks=False,
    ),
    pb.OBSTACLE_KIND_FULL: Words("full", "there is no room for frames", f"{_MORE_SHM}, or free memory there"),
    pb.OBSTACLE_KIND_NAMELESS: Words(
        "nameless",
        "the pool of shared frames has lost its name in /dev/shm",
        _NAMES_GONE,
        blocks=False,
        what="not shared with clients that connect later",
    ),
    pb.OBSTACLE_KIND_STOPPED: Words("stopped", "scanning is stopped (run=0)", "pagefold scan start"),
    pb.OBSTACLE_KIND_UNMERGING: Words("unmerging", "all pages are being unmerged (run=2)", "pagefold scan start"),
    pb.OBSTACLE_KIND_FAULT: Words("fault", "the server has failed", "restart the server, and report this"),
}

OWN: Final = frozenset(kind for kind in TABLE if kind < pb.OBSTACLE_KIND_BUDGET)
"""Obstacles that clients know by themselves."""
UNSAID: Final = frozenset((pb.OBSTACLE_KIND_LOST, pb.OBSTACLE_KIND_UNREACHABLE, pb.OBSTACLE_KIND_TIMEOUT))
"""Of these: those that a client can tell its program only."""


JUDGED: Final = frozenset((pb.OBSTACLE_KIND_FORKED,))
"""Of these: those of which the server knows the number of pages better."""
CAUSES: Final = OWN - {pb.OBSTACLE_KIND_OFF, pb.OBSTACLE_KIND_SEGMENT, pb.OBSTACLE_KIND_FORKED, pb.OBSTACLE_KIND_LOOK}
"""Of these: those for which a client declines proposals."""
_LATER: Final = frozenset(
    (pb.OBSTACLE_KIND_LOST, pb.OBSTACLE_KIND_UNREACHABLE, pb.OBSTACLE_KIND_EXCLUDED, pb.OBSTACLE_KIND_STOPPED)
)
"""Obstacles that may come when memory is merged already, which it stays."""
_HINDRANCES: Final = {"locked": pb.OBSTACLE_KIND_LOCKED, "data": pb.OBSTACLE_KIND_DATA}


class Obstacles:
    """The obstacles that a client knows by itself. One thread may change it, and any may read it."""

    def __init__(self) -> None:
        self._known: dict[Kind, int] = {}

    def put(self, kind: Kind, there: bool, error: int = 0) -> None:
        """Adds or removes an obstacle; `error` is its errno."""
        known = dict(self._known)
        known.pop(kind, None)
        if there:
            known[kind] = error
        self._known = known

    def set_hindrance(self, by: str | None) -> None:
        """Notes which of the program's own limits keeps pages from merging, as `Space.hindrance` names it."""
        for name, kind in _HINDRANCES.items():
            if (kind in self._known) != (name == by):
                self.put(kind, name == by)

    def kinds(self) -> frozenset[Kind]:
        """The kinds that there are."""
        return frozenset(self._known)

    def listed(self, pages: int) -> list[Obstacle]:
        """The obstacles, each with this number of pages."""
        return [Obstacle(kind=kind, pages=pages, error=error) for kind, error in self._known.items()]


def blocks(obstacle: Obstacle) -> bool:
    """Whether settle() is False because of this obstacle."""
    words = TABLE.get(obstacle.kind)
    return words is not None and words.blocks and obstacle.pages > 0


def sentence(obstacle: Obstacle) -> str:
    """Words for an obstacle: how many pages, why, and what to do.

    Example:
        >>> sentence(Obstacle(kind=pb.OBSTACLE_KIND_STOPPED, pages=512))
        '512 pages (2 MiB) are not merged: scanning is stopped (run=0): pagefold scan start'
    """
    words = TABLE.get(obstacle.kind)
    if words is None:
        return f"{_count(obstacle.pages)} not merged, for a reason that this version does not know"
    why = f"{words.why} ({os.strerror(obstacle.error)})" if obstacle.error else words.why
    if obstacle.detail:
        why += f" ({obstacle.detail})"
    what = f"{_count(obstacle.pages)} {words.what}"
    if obstacle.pages == 0 and obstacle.kind in _LATER:
        what = "nothing more is merged"
    return f"{what}: {why}: {words.remedy}"


def text(obstacles: Iterable[Obstacle]) -> str:
    """Words for all obstacles in one string, those that block first; empty: there is none."""
    return "; ".join(sentence(obstacle) for obstacle in sorted(obstacles, key=lambda each: not blocks(each)))


def summed(obstacles: Iterable[Obstacle]) -> list[Obstacle]:
    """Obstacles summed by kind: one of each, with all its pages."""
    found: dict[int, Obstacle] = {}
    for obstacle in obstacles:
        if obstacle.kind in found:
            found[obstacle.kind].pages += obstacle.pages
        else:
            found[obstacle.kind] = Obstacle()
            found[obstacle.kind].CopyFrom(obstacle)
    return list(found.values())


def _count(pages: int) -> str:
    if pages == 0:
        return "memory is"
    return f"{pages:,} page{'s' if pages > 1 else ''} ({human(pages * PAGE)}) {'are' if pages > 1 else 'is'}"
