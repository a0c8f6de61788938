"""Whatever keeps pages from merging is told, with a number and a remedy, in the same words everywhere.

settle() said True, stats() had no trouble, status said "merging" and doctor "this machine can merge" while nothing
merged at all: mincore forbidden, memory locked, no room for frames, the mapping budget used up. Each case here forces
one obstacle, and is told by all four or, where it was found a way around, does no harm: then everything is merged.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pagefold_proto import obstacle_table
from pagefold_proto.v1 import memory_pb2 as pb
from support import faults, kernel, seccomp, variant
from support.inside import Inside
from support.server import Server
from support.waiting import until
from support.worker import PAGE, Worker

pytestmark = [
    pytest.mark.needs("root", "uffd"),
    pytest.mark.skipif(not faults.AVAILABLE, reason="this build has no fault points"),
]

PAGES = 600

LOCK = """
import ctypes
def run(remote):
    assert ctypes.CDLL(None, use_errno=True).mlockall(3) == 0, ctypes.get_errno()  # MCL_CURRENT | MCL_FUTURE
"""
FORK = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)
def run(remote):
    read, remote.child_waits = os.pipe()
    if os.fork() == 0:
        os.close(remote.child_waits)
        os.read(read, 1)
        os._exit(0)
"""
FORK_AND_WAIT = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)
def run(remote):
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
"""
ARM = """
from support import faults
def run(remote, point, fault):
    faults.arm(point, fault)
"""
TAKE_DESCRIPTORS = """
import os
def run(remote):
    null = os.open("/dev/null", os.O_RDONLY)
    for name in os.listdir("/proc/self/fd"):
        try:
            if "/pagefold-p-" in os.readlink(f"/proc/self/fd/{name}"):
                os.dup2(null, int(name))
        except OSError:
            pass
"""
LIMIT_DATA = """
import resource
def run(remote):
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + (32 << 20), resource.RLIM_INFINITY))
"""
LIE = """
from types import SimpleNamespace
def run(remote):
    columns = dict(kind=[1], segment=[1], first=[0], count=[1], pool=[1], frame=[7], detail=[0])
    remote.client._session.conversation._outbox._chunks.append(SimpleNamespace(**columns))
    remote.client._session.kick()
"""
HIDE_PAGEMAP = """
import ctypes, os, stat
def run(remote, node):
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(0x20000) == 0  # CLONE_NEWNS
    assert libc.mount(None, b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
    os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(4095, 1))  # nobody drives it
    assert libc.mount(node.encode(), b"/proc/self/pagemap", None, 0x1000, None) == 0, ctypes.get_errno()  # MS_BIND
"""


@dataclass
class Scene:
    """A server, and two workers whose pages are all equal to each other's. What is forced, is forced on the first."""

    server: Any
    one: Worker
    two: Worker

    def arm(self, point: str, fault: str) -> None:
        self.one.call("execute", ARM, point, fault)

    def write(self) -> None:
        for page in range(0, PAGES, 2):
            self.one.call("write", "a", page * PAGE, b"written")

    def merge(self) -> None:
        self.server.configure(run=1)
        until(lambda: self.two.call("settle").settled, 30, "merging before anything is in the way")
        assert self.one.call("stats").merged_bytes == PAGES * PAGE

    def lose_names(self) -> None:
        for name in kernel.names():
            if name.startswith("pagefold-p-"):
                (kernel.SHM / name).unlink()

    def limit_files(self, nbytes: int) -> None:
        resource.prlimit(self.server.pid, resource.RLIMIT_FSIZE, (nbytes, resource.RLIM_INFINITY))


def nothing(scene: Scene) -> None:
    """It was forced by how the client was made."""


@dataclass(frozen=True)
class Case:
    """One obstacle: how it is forced on the first worker, and who is asked.

    `by`: which worker is asked. `run`: the setting in the end. `errno`: the kernel says why. `around`: a client may
    find a way around it, and then everything is merged.
    """

    kind: pb.ObstacleKind
    force: Callable[[Scene], object] = nothing
    env: dict[str, str] = field(default_factory=dict)
    connect: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    by: str = "one"
    run: int = 1
    errno: bool = False
    around: bool = False


CASES = {
    "no userfaultfd": Case(pb.OBSTACLE_KIND_BARRIER, env={"PAGEFOLD_DISABLE": "uffd,user"}),
    "userfaultfd denied": Case(pb.OBSTACLE_KIND_BARRIER, env={"DENY": "userfaultfd"}, around=True),
    "user mode only": Case(pb.OBSTACLE_KIND_BARRIER, env={"PAGEFOLD_DISABLE": "uffd"}),
    "barrier off": Case(pb.OBSTACLE_KIND_OFF, connect={"barrier": "off"}),
    "no data limit left": Case(pb.OBSTACLE_KIND_DATA, lambda scene: scene.one.call("execute", LIMIT_DATA)),
    "memory locked": Case(pb.OBSTACLE_KIND_LOCKED, lambda scene: scene.one.call("execute", LOCK), around=True),
    "looks fail": Case(
        pb.OBSTACLE_KIND_LOOK,
        lambda scene: scene.arm("harvest.look", "error:12@1+"),
        connect={"tracker": "pagemap"},
        settings={"silent_seconds": 1},
        errno=True,
    ),
    "a quota of bytes": Case(pb.OBSTACLE_KIND_SEGMENT, settings={"tenant_max_bytes": 1 << 20}),
    "a limit of pages": Case(pb.OBSTACLE_KIND_SEGMENT, settings={"max_segment_pages": PAGES // 2}),
    "a budget of mappings": Case(pb.OBSTACLE_KIND_BUDGET, connect={"mapping_budget": 1}),
    "a budget in the environment": Case(pb.OBSTACLE_KIND_BUDGET, env={"PAGEFOLD_MAPPING_BUDGET": "1"}),
    "no mappings": Case(pb.OBSTACLE_KIND_MAPPINGS, lambda scene: scene.arm("merge.map", "error:12@1+")),
    "a forked child": Case(pb.OBSTACLE_KIND_FORKED, lambda scene: scene.one.call("execute", FORK)),
    "pinned": Case(pb.OBSTACLE_KIND_PINNED, lambda scene: scene.one.call("pin", "a")),
    "no registration": Case(pb.OBSTACLE_KIND_FAILED, lambda scene: scene.arm("window.register", "error:1@1+")),
    "no protection": Case(pb.OBSTACLE_KIND_FAILED, lambda scene: scene.arm("window.protect", "error:22@1+")),
    "no mapping of frames": Case(pb.OBSTACLE_KIND_FAILED, lambda scene: scene.arm("merge.map", "error:1@1+")),
    "descriptors closed": Case(pb.OBSTACLE_KIND_REFUSED, lambda scene: scene.one.call("execute", TAKE_DESCRIPTORS)),
    "no room to take back": Case(
        pb.OBSTACLE_KIND_STUCK,
        lambda scene: [scene.merge(), scene.arm("adopt.save", "error:28@1+"), scene.write()],
    ),
    "stopped": Case(
        pb.OBSTACLE_KIND_SILENT,
        lambda scene: os.kill(scene.one.pid, signal.SIGSTOP),
        settings={"silent_seconds": 1},
        by="two",
    ),
    "excluded": Case(pb.OBSTACLE_KIND_EXCLUDED, lambda scene: scene.one.call("execute", LIE), by="two"),
    "no room for frames": Case(pb.OBSTACLE_KIND_FULL, lambda scene: scene.limit_files(256 * PAGE), errno=True),
    "the pool has no name": Case(pb.OBSTACLE_KIND_NAMELESS, lambda scene: [scene.merge(), scene.lose_names()]),
    "scanning stopped": Case(pb.OBSTACLE_KIND_STOPPED, run=0),
    "unmerging": Case(pb.OBSTACLE_KIND_UNMERGING, lambda scene: scene.merge(), run=2),
}


@contextlib.contextmanager
def scene_of(serve: Callable[..., Server], case: Case) -> Iterator[Scene]:
    server = serve(run=0, **case.settings)
    with Worker(server.address, env=case.env, **case.connect) as one, Worker(server.address) as two:
        try:
            yield load(Scene(server, one, two))
        finally:
            os.kill(one.pid, signal.SIGCONT)


def load(scene: Scene) -> Scene:
    for worker in (scene.one, scene.two):
        worker.call("allocate", "a", PAGES * PAGE)
        worker.call("fill_pages", "a", list(range(1, PAGES + 1)))
    return scene


def command(address: str, *words: str) -> Any:
    ran = subprocess.run(
        [sys.executable, "-m", "pagefold.cli", *words, "--json", "--address", address],
        env={key: value for key, value in os.environ.items() if not key.startswith("PAGEFOLD_")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "Traceback" not in ran.stderr, ran.stderr
    return json.loads(ran.stdout)


def sentence_of(kind: pb.ObstacleKind) -> re.Pattern[str]:
    """Its words, with a number of pages and of bytes before and the remedy behind."""
    words = obstacle_table.TABLE[kind]
    number = r"[1-9][\d,]* pages? \([\d.]+ \w+\) (are|is) "
    return re.compile(number + re.escape(f"{words.what}: {words.why}") + r"(?: \(.*?\))*: " + re.escape(words.remedy))


def assert_told_everywhere(address: str, speaker: Worker, kind: pb.ObstacleKind) -> None:
    said, blocks = sentence_of(kind), obstacle_table.TABLE[kind].blocks
    report = speaker.call("settle", 20)
    if blocks or kind == pb.OBSTACLE_KIND_OFF:
        assert not report.settled
        assert said.search(report.reason), report.reason
    until(lambda: said.search(speaker.call("stats").trouble), 15, f"stats: {speaker.call('stats').trouble}")
    status = command(address, "status")
    assert said.search(status["trouble"]), status["trouble"]
    told = [each for each in status["troubles"] if each["code"] == obstacle_table.TABLE[kind].code]
    assert said.fullmatch(told[0]["text"]), told
    assert told[0]["blocks"] == blocks
    doctor = command(address, "doctor")
    assert any(said.search(check["meaning"]) for check in doctor["checks"]), doctor
    found = {check["name"]: check for check in doctor["checks"]}
    assert found["client"]["state"] != "ok" or not blocks, found["client"]


@pytest.mark.parametrize("name", CASES)
def test_an_obstacle_is_told_by_all_or_does_no_harm(name: str, serve: Callable[..., Server]) -> None:
    case = CASES[name]
    if "DENY" in case.env and not seccomp.AVAILABLE:
        pytest.skip("the numbers of this machine's system calls are not known here")
    with scene_of(serve, case) as scene:
        case.force(scene)
        scene.server.configure(run=case.run)
        speaker = scene.two if case.by == "two" else scene.one
        report = speaker.call("settle", 20)
        if case.around and report.settled:
            assert scene.one.call("stats").merged_bytes == PAGES * PAGE
            assert scene.two.call("settle", 20).settled
            assert scene.one.call("stats").merged_bytes == PAGES * PAGE, "and it is still merged"
            return
        assert_told_everywhere(scene.server.address, speaker, case.kind)
        if case.kind in (pb.OBSTACLE_KIND_SILENT, pb.OBSTACLE_KIND_EXCLUDED):
            return
        status = command(scene.server.address, "status")
        whose = {each["pid"] for each in status["troubles"] if each["code"] == obstacle_table.TABLE[case.kind].code}
        assert whose & {scene.one.pid, 0}, "it says which client's pages they are"
        if case.errno:
            assert any(each["obstacle"]["error"] for each in status["troubles"])


def test_a_pool_without_a_name_keeps_a_later_client_from_merging(serve: Callable[..., Server]) -> None:
    # RemoveIPC=yes, or somebody who cleans /dev/shm.
    server = serve()
    with Worker(server.address) as first:
        first.call("allocate", "a", PAGE)
        scene = Scene(server, first, first)
        scene.lose_names()
        with Worker(server.address) as one, Worker(server.address) as two:
            load(Scene(server, one, two))
            assert_told_everywhere(server.address, one, pb.OBSTACLE_KIND_POOL)


def test_a_program_that_may_not_read_its_pagemap_says_so(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    with Worker(server.address) as one, Worker(server.address) as two:
        one.call("close_client")
        one.call("execute", HIDE_PAGEMAP, str(tmp_path / "node"))
        one.call("connect", server.address, {})
        load(Scene(server, one, two))
        assert_told_everywhere(server.address, one, pb.OBSTACLE_KIND_PAGEMAP)


def test_a_domain_whose_engine_has_failed(tmp_path: Path) -> None:
    with Inside(tmp_path / "server") as server, Worker(server.address) as one, Worker(server.address) as two:
        load(Scene(server, one, two))
        server.in_domain(lambda domain: domain.fail(RuntimeError("told so")))
        assert_told_everywhere(server.address, one, pb.OBSTACLE_KIND_FAULT)


def test_an_excluded_client_says_so_itself(serve: Callable[..., Server]) -> None:
    with scene_of(serve, Case(pb.OBSTACLE_KIND_LOST)) as scene:
        scene.one.call("execute", LIE)
        until(lambda: not scene.one.call("stats").connected, 10, "the exclusion")
        said = sentence_of(pb.OBSTACLE_KIND_LOST)
        assert said.search(scene.one.call("settle", 5).reason)
        assert said.search(scene.one.call("stats").trouble)


def test_a_server_that_is_gone_is_told(serve: Callable[..., Server]) -> None:
    with scene_of(serve, Case(pb.OBSTACLE_KIND_UNREACHABLE)) as scene:
        scene.server.kill()
        said = sentence_of(pb.OBSTACLE_KIND_UNREACHABLE)
        until(lambda: said.search(scene.one.call("settle", 0.2).reason), 20, "settle() noticing")
        assert said.search(scene.one.call("stats").trouble)
        doctor = command(scene.server.address, "doctor")
        assert "none at" in next(check["found"] for check in doctor["checks"] if check["name"] == "server")


def test_a_timeout_has_a_number_and_what_is_in_the_way(serve: Callable[..., Server]) -> None:
    with scene_of(serve, Case(pb.OBSTACLE_KIND_TIMEOUT, connect={"mapping_budget": 1})) as scene:
        scene.server.configure(run=1)
        assert sentence_of(pb.OBSTACLE_KIND_TIMEOUT).search(scene.one.call("settle", 0).reason)
        scene.two.call("settle")
        until(lambda: scene.one.call("stats").trouble, 10, "the budget being told")
        both = scene.one.call("settle", 0).reason
        assert sentence_of(pb.OBSTACLE_KIND_TIMEOUT).search(both)
        assert sentence_of(pb.OBSTACLE_KIND_BUDGET).search(both)


def test_a_closed_client_whose_arrays_live_is_seen_in_status(serve: Callable[..., Server]) -> None:
    with scene_of(serve, Case(pb.OBSTACLE_KIND_CLOSED)) as scene:
        scene.merge()
        scene.one.call("allocate", "b", 5 * PAGE)
        scene.one.call("fill_pages", "b", [77_000 + n for n in range(5)])
        scene.two.call("settle")
        scene.one.call("close_client")
        said = sentence_of(pb.OBSTACLE_KIND_CLOSED)
        until(lambda: said.search(command(scene.server.address, "status")["trouble"]), 10, "status")
        assert scene.two.call("settle").settled, "it is the program's wish"


def test_memory_that_was_refused_merges_once_what_refused_it_is_raised_for_good(serve: Callable[..., Server]) -> None:
    """As the remedy says. What is raised live is for memory that comes later: nobody offers what was refused again."""
    with scene_of(serve, Case(pb.OBSTACLE_KIND_SEGMENT, settings={"tenant_max_bytes": 1 << 20})) as scene:
        assert not scene.one.call("settle", 20).settled
        scene.server.stop()
        scene.server.settings |= {"tenant_max_bytes": 0, "run": 1}
        scene.server.start()

        def is_merged() -> bool:  # once the other client has come back too
            return scene.one.call("settle", 20).settled and scene.one.call("stats").merged_bytes == PAGES * PAGE

        until(is_merged, 20, "merging")


def test_a_child_that_has_ended_is_in_nobodys_way(serve: Callable[..., Server]) -> None:
    """settle() said for half a second that a child shares memory, which its program had waited for."""
    with scene_of(serve, Case(pb.OBSTACLE_KIND_FORKED)) as scene:
        scene.server.configure(run=1)
        for _ in range(3):
            scene.one.call("fill_pages", "a", list(range(1, PAGES + 1)))
            scene.one.call("execute", FORK_AND_WAIT)
            report = scene.one.call("settle", 20)
            assert report.settled, report.reason


def test_nothing_is_told_where_nothing_is_in_the_way(serve: Callable[..., Server]) -> None:
    with scene_of(serve, Case(pb.OBSTACLE_KIND_UNSPECIFIED)) as scene:
        scene.merge()
        assert scene.two.call("settle").reason == scene.one.call("stats").trouble == ""
        assert command(scene.server.address, "status")["troubles"] == []
        doctor = command(scene.server.address, "doctor")
        found = {check["name"]: check for check in doctor["checks"]}
        assert found["client"]["state"] == "ok"
        assert "128 of 128 pages merged" in found["client"]["found"]
        if not variant.TRACKER:  # the doctor's client is not told of another one
            assert found["tracker"]["found"] == scene.two.call("stats").tracker


def test_what_a_client_saves_is_not_what_one_saved_that_has_ended(serve: Callable[..., Server]) -> None:
    # stats() went by totals as old as the client's last call, and a client with nothing to say does not call.
    with scene_of(serve, Case(pb.OBSTACLE_KIND_UNSPECIFIED)) as scene:
        scene.merge()
        assert scene.one.call("stats").saved_bytes > 0
        scene.two.kill()
        until(lambda: scene.one.call("stats").saved_bytes == 0, 15, "the survivor's stats() following")


def test_obstacles_that_a_client_reports_are_believed_as_far_as_it_can_know_them() -> None:
    from pagefold_server.sessions.obstacles import believable

    told = [
        pb.Obstacle(kind=pb.OBSTACLE_KIND_LOCKED, pages=2**64 - 1, error=2**32 - 1, detail="\x1b[31m"),
        pb.Obstacle(kind=pb.OBSTACLE_KIND_FULL, pages=7),
        pb.Obstacle(kind=pb.OBSTACLE_KIND_LOST, pages=7),
        pb.Obstacle(kind=12345, pages=7),  # type: ignore[arg-type]
    ]
    (kept,) = believable(told)
    assert (kept.kind, kept.error, kept.detail) == (pb.OBSTACLE_KIND_LOCKED, 0, "")
    assert kept.pages < 2**60
    assert len(believable(told * 10_000)) == 1


def test_the_table_has_words_for_every_kind_and_a_case_for_those_that_can_be_forced() -> None:
    kinds = set(pb.ObstacleKind.values()) - {pb.OBSTACLE_KIND_UNSPECIFIED}
    assert set(obstacle_table.TABLE) == kinds
    assert len({words.code for words in obstacle_table.TABLE.values()}) == len(kinds)
    text = Path(__file__).read_text()
    missing = [pb.ObstacleKind.Name(kind) for kind in kinds if f"pb.{pb.ObstacleKind.Name(kind)}" not in text]
    # A kernel before 5.19, and a userfaultfd that opens and then does not: no test can have either.
    assert set(missing) == {"OBSTACLE_KIND_KERNEL", "OBSTACLE_KIND_SPACE"}
