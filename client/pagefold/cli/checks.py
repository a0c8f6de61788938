"""The checks of `pagefold doctor`: each reads one thing of this machine and says what it means for merging.

A check never raises and changes nothing. It reads through `Machine`, which a test can replace.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from pagefold_core import Features, make_object, probe
from pagefold_proto.limits import SHM
from pagefold_proto.text import human

from pagefold._errors import BarrierUnavailable, TrackerUnavailable
from pagefold._options import barriers, trackers
from pagefold._options.backings import BACKINGS
from pagefold._options.options import choice, disabled_features
from pagefold._process import dumpable

State = Literal["ok", "warn", "fail"]

SMALL_SHM: Final = 256 << 20
"""Bytes. Containers have 64 MiB unless told otherwise."""
DEFAULT_MAP_COUNT: Final = 65530
_FIRST_LOGIN_UID: Final = 1000
_LOGIND: Final = (
    "/usr/lib/systemd/logind.conf",
    "/usr/lib/systemd/logind.conf.d",
    "/etc/systemd/logind.conf",
    "/etc/systemd/logind.conf.d",
)


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check.

    Attributes:
        name: stable, for scripts.
        state: "fail" prevents merging; "warn" costs something, now or later; "ok" does neither.
        found: what the machine has.
        meaning: what that means for merging.
        remedy: what to do about it; empty: nothing.
    """

    name: str
    state: State
    found: str
    meaning: str
    remedy: str = ""


@dataclass(frozen=True)
class Machine:
    """What checks read.

    Attributes:
        root: prefix of every path under /proc, /sys and /etc.
        shm: the directory of shared-memory objects.
        environ: the environment.
        uid: the effective user.
    """

    root: Path = Path("/")
    shm: Path = Path(SHM)
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    uid: int = field(default_factory=os.geteuid)

    def read(self, path: str) -> str:
        """The text of a small file; empty if it cannot be read."""
        try:
            return (self.root / path.lstrip("/")).read_text().strip()
        except OSError:
            return ""

    def chosen(self, path: str) -> str:
        """The word in brackets, as files of /sys/kernel/mm/transparent_hugepage mark the choice."""
        words = self.read(path).split()
        return next((word.strip("[]") for word in words if word.startswith("[")), "")

    def features(self) -> Features:
        """The kernel's features, without those that $PAGEFOLD_DISABLE names."""
        return probe(disabled_features(self.environ))


def machine_checks(machine: Machine, used: str = "") -> list[Check]:
    """All checks of kernel and user, the most important first. `used`: the tracker of a client that was tried."""
    features = machine.features()
    return [
        barrier(machine, features),
        tracker(machine, features, used),
        *own_pages(),
        shared_memory(machine),
        backing(machine),
        map_count(features.max_map_count, features.page_size),
        huge_pages(machine),
        overcommit(machine),
        kernel_ksm(machine),
        *remove_ipc(machine),
    ]


def barrier(machine: Machine, features: Features) -> Check:
    """How a client holds writes."""
    meaning = {
        "uffd": "all writes are held while a page is remapped, those of system calls too: pages can be merged",
        "user": "a system call that writes into a page while it is remapped fails with EFAULT",
        "off": "memory is usable, and nothing is merged",
    }
    source = {"syscall": "userfaultfd(2)", "device": "/dev/userfaultfd"}.get(features.userfaultfd_source, "none")
    asked = machine.environ.get("PAGEFOLD_BARRIER", "")
    try:
        chosen, _ = barriers.choose(choice("barrier", None, machine.environ, barriers.BARRIERS), features)
    except (BarrierUnavailable, ValueError) as error:
        return Check(
            "barrier", "fail", f"PAGEFOLD_BARRIER={asked}", f"connect() fails: {error}", "unset PAGEFOLD_BARRIER"
        )
    if chosen == "uffd":
        return Check("barrier", "ok", f"uffd ({source})", meaning[chosen])
    if chosen == "user":
        return Check("barrier", "warn", f"user ({source})", meaning[chosen], barriers.why_not("uffd", features))
    if asked:
        return Check("barrier", "fail", f"off (PAGEFOLD_BARRIER={asked})", meaning[chosen], "unset PAGEFOLD_BARRIER")
    return Check(
        "barrier", "fail", "off", f"{meaning[chosen]}: {barriers.why_not('uffd', features)}", _uffd_remedy(features)
    )


def _uffd_remedy(features: Features) -> str:
    if features.userfaultfd != "none" and not features.wp_shmem:
        return "use Linux 5.19 or newer (6.7 or newer is better)"
    return (
        "echo vm.unprivileged_userfaultfd=1 > /etc/sysctl.d/60-pagefold.conf; sysctl --system   (or a udev rule for "
        "/dev/userfaultfd on Linux 6.1, or CAP_SYS_PTRACE: docs/machine.md; in a container allow userfaultfd in the "
        "seccomp profile; or PAGEFOLD_BARRIER=user, with which a system call that writes into a page while it is "
        "remapped fails with EFAULT)"
    )


def tracker(machine: Machine, features: Features, used: str = "") -> Check:
    """How written pages are found: the tracker that a client uses, or would use."""
    asked = machine.environ.get("PAGEFOLD_TRACKER", "")
    try:
        way = used or trackers.choose(choice("tracker", None, machine.environ, trackers.TRACKERS), features, "uffd")
    except (TrackerUnavailable, ValueError) as error:
        return Check("tracker", "fail", f"PAGEFOLD_TRACKER={asked}", f"connect() fails: {error}", "unset it")
    more = ""
    if not features.wp_unpopulated:
        more = "; untouched pages are touched before they are protected (Linux 6.4 protects them as they are)"
    if way == "pagemap":
        return Check("tracker", "ok", way, f"the kernel says which pages were written: only those are read{more}")
    if not features.pagemap_scan:
        more += "; looking for copies reads /proc/self/pagemap, which is slower"
    why = trackers.why_not(features, "uffd")
    if why:
        remedy = "use Linux 6.7 or newer"
    elif asked:
        remedy = "leave out PAGEFOLD_TRACKER (and tracker=)"
    else:
        remedy = "see barrier: nobody looks for written pages where nothing can be merged"
    meaning = f"the server reads every page in every pass{f': {why}' if why else ''}{more}"
    return Check("tracker", "warn", way, meaning, remedy)


def own_pages() -> list[Check]:
    """Whether the kernel shows a process like this one its own pages. No check if it does."""
    why = dumpable.why_not()
    if not why:
        return []
    what, _, remedy = why.partition(". ")
    return [Check("own_pages", "fail", "/proc/self/pagemap is closed", f"nothing is merged: {what}", remedy)]


def shared_memory(machine: Machine) -> Check:
    """Whether /dev/shm has room for memory and frames."""
    try:
        found = os.statvfs(machine.shm)
    except OSError as error:
        return Check("shm", "fail", str(error), "no memory can be allocated", f"mount -t tmpfs tmpfs {machine.shm}")
    size, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    told = f"{human(free)} free of {human(size)}" if size else "no limit"
    try:
        with tempfile.TemporaryFile(dir=machine.shm):
            pass
    except OSError as error:
        remedy = f"mount -o remount,rw {machine.shm}; chmod 1777 {machine.shm}"
        return Check("shm", "fail", f"{told}, not writable ({error.strerror})", "no memory can be had", remedy)
    if size and (size < SMALL_SHM or free < SMALL_SHM // 4):
        return Check(
            "shm",
            "warn",
            told,
            "memory comes from memfd objects instead (unless backing='shm' was asked for), but frames are here: when "
            "it is full, nothing more is merged, and `pagefold status` says so",
            f"mount -o remount,size=8G {machine.shm}   (docker run --shm-size=8g; in Kubernetes an emptyDir with "
            "medium: Memory)",
        )
    return Check("shm", "ok", told, "memory and frames come from here")


def backing(machine: Machine) -> Check:
    """Where segments are, and whether memfd objects can be made."""
    asked = machine.environ.get("PAGEFOLD_BACKING", "")
    try:
        chosen = choice("backing", None, machine.environ, BACKINGS) or "auto"
    except ValueError as error:
        return Check("backing", "fail", f"PAGEFOLD_BACKING={asked}", f"connect() fails: {error}", "unset it")
    try:
        os.close(make_object("memfd", 0)[1])
    except OSError as error:
        found = f"{chosen}, no memfd ({os.strerror(error.errno or 0)})"
        remedy = "allow memfd_create (seccomp profiles of containers may forbid it)"
        if chosen == "memfd":
            return Check("backing", "fail", found, "no memory can be had", remedy)
        return Check("backing", "warn", found, "memory that /dev/shm has no room for raises MemoryError", remedy)
    meaning = {
        "auto": "memory is in /dev/shm while that has room to spare, else in memfd objects, which memory alone bounds; "
        "the server opens those through /proc, so it has to be in the clients' PID namespace",
        "shm": "all memory is in /dev/shm, and bounded by it",
        "memfd": "memory is bounded by memory alone; the server has to be in the clients' PID namespace",
    }
    return Check("backing", "ok", f"{chosen}{' (PAGEFOLD_BACKING)' if asked else ''}", meaning[chosen])


def map_count(limit: int, page_size: int) -> Check:
    """The kernel's limit for mappings of a process."""
    budget = limit // 2
    meaning = (
        f"a client cuts its memory into at most {budget:,} mappings. A run of merged pages takes one, an isolated page "
        f"up to two: at the very worst {human(budget // 2 * page_size)} can be merged"
    )
    remedy = (
        "if status reports pages over budget: echo vm.max_map_count=1048576 > /etc/sysctl.d/60-pagefold.conf; "
        "sysctl --system, and restart the clients"
    )
    state: State = "ok" if limit >= DEFAULT_MAP_COUNT else "warn"
    return Check("max_map_count", state, f"{limit:,}", meaning, remedy)


def huge_pages(machine: Machine) -> Check:
    """Transparent huge pages: of /dev/shm by mount option, of memfd objects by shmem_enabled, of anonymous memory."""
    base = "/sys/kernel/mm/transparent_hugepage"
    mounts = [line.split() for line in machine.read("/proc/self/mounts").splitlines()]
    options = next((words[3] for words in reversed(mounts) if words[1:2] == [str(machine.shm)]), "")
    mount = next((word.removeprefix("huge=") for word in options.split(",") if word.startswith("huge=")), "never")
    shmem, anon = machine.chosen(f"{base}/shmem_enabled"), machine.chosen(f"{base}/enabled")
    found = f"{machine.shm} {mount}, memfd {shmem or 'none'}, anonymous {anon or 'none'}"
    if {mount, shmem} & {"always", "force", "within_size"}:
        return Check(
            "huge_pages",
            "warn",
            found,
            "programs' memory is in single pages all the same. What the server and the C library write is in huge "
            "ones: a pool of frames grows by 2 MiB at a time, and a client's two small objects may take 2 MiB each",
            f"mount -o remount,huge=never {machine.shm}; echo never > {base}/shmem_enabled",
        )
    return Check("huge_pages", "ok", found, "memory is allocated, merged and given back page by page")


def overcommit(machine: Machine) -> Check:
    """Whether the kernel promises only memory that it has."""
    mode = machine.read("/proc/sys/vm/overcommit_memory")
    if mode == "2":
        return Check(
            "overcommit",
            "warn",
            "vm.overcommit_memory=2",
            "the kernel counts every merged page as if it were copied: merging stops at the commit limit, memory stays "
            "usable",
            "sysctl -w vm.overcommit_memory=0, or raise vm.overcommit_ratio (docs/machine.md: how it lasts)",
        )
    return Check("overcommit", "ok", f"vm.overcommit_memory={mode or 'unknown'}", "mappings of frames are not limited")


def kernel_ksm(machine: Machine) -> Check:
    """The kernel's own page merging."""
    run = machine.read("/sys/kernel/mm/ksm/run")
    sharing = machine.read("/sys/kernel/mm/ksm/pages_sharing") or "0"
    found = {"": "not in this kernel", "0": "off", "1": "on", "2": "unmerging"}.get(run, run)
    if run == "1":
        found += f", {sharing} pages sharing"
    meaning = "kernel KSM merges no shared memory: it neither helps nor harms pagefold"
    return Check("ksm", "ok", found, meaning)


def remove_ipc(machine: Machine) -> list[Check]:
    """Whether logind unlinks this user's shared memory at logout. No check for system users."""
    if machine.uid < _FIRST_LOGIN_UID or not (machine.root / "run/systemd/system").is_dir():
        return []
    if (machine.root / "var/lib/systemd/linger").is_dir() and _lingers(machine):
        return [Check("remove_ipc", "ok", "this user lingers", "shared memory outlives the logout")]
    if _removes(machine):
        return [
            Check(
                "remove_ipc",
                "warn",
                "RemoveIPC=yes",
                "at this user's last logout logind unlinks the names in /dev/shm of running programs: they keep their "
                "memory, and a restarted server cannot find it",
                "loginctl enable-linger   (or RemoveIPC=no in /etc/systemd/logind.conf)",
            )
        ]
    return [Check("remove_ipc", "ok", "RemoveIPC=no", "shared memory outlives the logout")]


def _lingers(machine: Machine) -> bool:
    user = machine.environ.get("USER", "")
    return bool(user) and "/" not in user and (machine.root / "var/lib/systemd/linger" / user).exists()


def _removes(machine: Machine) -> bool:
    """RemoveIPC= of logind's configuration, where the last file wins; default yes."""
    value = "yes"
    for place in _LOGIND:
        path = machine.root / place.lstrip("/")
        files = sorted(path.glob("*.conf")) if path.is_dir() else [path]
        for file in files:
            for line in machine.read("/" + str(file.relative_to(machine.root))).splitlines():
                key, _, text = line.partition("=")
                if key.strip() == "RemoveIPC":
                    value = text.strip().lower()
    return value not in ("no", "false", "0", "off")
