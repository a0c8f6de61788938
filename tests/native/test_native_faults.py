"""Faults at every step of the native half, under writers: nobody is held for good, no byte is lost, books are right.

Each test runs in a child of its own, since a fault may end a thread or the process. Writers write all the time, each to
pages of its own, which are merged and adopted meanwhile, and look whether they hold what was written. What the space
says of its pages is compared with what the kernel has mapped (/proc/self/maps).
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import faults

pytestmark = [
    pytest.mark.needs("uffd", "wp_async"),
    pytest.mark.skipif(not faults.AVAILABLE, reason="the extension was built without faults: make setup"),
]

MERGING = [p for p in faults.POINTS if p.startswith(("window.", "merge.", "view.", "tracker.let", "tracker.take"))]
ADOPTING = [p for p in faults.POINTS if p.startswith("adopt.")]
DISCARDING = [p for p in faults.POINTS if p.startswith("discard.")]
FORKING = [p for p in faults.POINTS if p.startswith(("freeze.", "thaw."))]
LOOKING = [p for p in faults.POINTS if p.startswith("harvest.") or p == "tracker.watch"]

TESTS = Path(__file__).resolve().parents[1]


def cases(points: list[str], kinds: list[str]) -> list[tuple[str, str]]:
    """Errors only where there is a way to fail with one."""
    return [(p, kind) for p in points for kind in kinds if faults.POINTS[p] or not kind.startswith("error")]


def run(scenario: str, point: str, fault: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Runs a scenario of support/fault_scenarios.py in a process of its own, with a fault armed."""
    return subprocess.run(
        [sys.executable, "-m", "support.fault_scenarios", scenario, point, fault],
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def told(ended: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found: dict[str, object] = json.loads(ended.stdout.splitlines()[-1])
    assert found["passed"], "the fault has not happened"
    assert found["lost"] == [], "bytes were lost"
    assert found["stuck"] == 0, "writers are held by nobody's window"
    assert found["wrong"] == [], "the books are not what is mapped"
    return found


def test_every_point_is_in_a_scenario() -> None:
    elsewhere = ("engine.", "arena.")  # those are the server's; test_arena.py has these
    client = {point for point in faults.POINTS if not point.startswith(elsewhere)}
    assert {*MERGING, *ADOPTING, *DISCARDING, *FORKING, *LOOKING} == client


@pytest.mark.parametrize("kind", ["panic", "exit"])
@pytest.mark.parametrize("point", MERGING)
def test_I8_merging_breaks_off_at_a_panic_or_a_killed_thread(point: str, kind: str) -> None:
    found = told(run("merge", point, f"{kind}@2"))
    assert found["unanswered"] == 0, "every proposal is merged or declined"
    assert found["unpunched"] == 0, "merged pages were given back"
    assert found["again"], "the space goes on: it merges"


@pytest.mark.parametrize("point", ["merge.held", "merge.mapped", "window.end", "window.wake"])
def test_I8_the_warden_ends_a_window_whose_thread_was_killed(point: str) -> None:
    assert told(run("alone", point, "exit"))["again"]


@pytest.mark.parametrize("point", [p for p in MERGING if faults.POINTS[p]])
def test_I8_merging_goes_on_after_errors(point: str) -> None:
    found = told(run("merge", point, f"error:{errno.ENOMEM}@2"))
    assert found["unanswered"] == 0
    assert found["again"]


@pytest.mark.parametrize("kind", ["panic", "exit"])
@pytest.mark.parametrize("point", ADOPTING)
def test_adopting_breaks_off_and_keeps_every_byte(point: str, kind: str) -> None:
    assert told(run("adopt", point, f"{kind}@2"))["again"]


@pytest.mark.parametrize("point", [p for p in ADOPTING if faults.POINTS[p]])
def test_adopting_goes_on_after_errors(point: str) -> None:
    assert told(run("adopt", point, f"error:{errno.ENOSPC}@2"))["again"]


@pytest.mark.parametrize(("point", "kind"), cases(DISCARDING, ["panic", "exit", f"error:{errno.ENOMEM}"]))
def test_discarded_memory_reads_as_zeros_at_the_next_try(point: str, kind: str) -> None:
    assert told(run("discard", point, kind))["again"]


@pytest.mark.parametrize(
    ("point", "kind"),
    cases(
        [p for p in FORKING if p.startswith("freeze.")],
        ["panic", "panic@1+", f"error:{errno.ENOMEM}", f"error:{errno.ENOMEM}@1+"],
    ),
)
def test_I4_a_child_never_writes_to_its_parent_whatever_freezing_meets(point: str, kind: str) -> None:
    assert told(run("fork", point, kind))["again"]


@pytest.mark.parametrize(
    ("point", "kind"), cases([p for p in FORKING if p.startswith("thaw.")], ["panic", "exit", f"error:{errno.ENOMEM}"])
)
def test_thawing_breaks_off_and_is_done_at_the_next_try(point: str, kind: str) -> None:
    assert told(run("fork", point, kind))["again"]


@pytest.mark.parametrize(("point", "kind"), cases(LOOKING, ["panic", "exit", f"error:{errno.ENOMEM}"]))
def test_no_write_is_missed_by_a_look_that_breaks_off(point: str, kind: str) -> None:
    assert told(run("look", point, kind))["again"]


@pytest.mark.parametrize("point", [p for p in MERGING if p.startswith(("window.", "merge."))])
def test_a_long_delay_holds_writers_and_loses_nothing(point: str) -> None:
    assert told(run("merge", point, "delay:50@2"))["again"]


@pytest.mark.parametrize(("kind", "sig"), [("kill", signal.SIGKILL), ("abort", signal.SIGABRT)])
@pytest.mark.parametrize("point", ["merge.held", "merge.mapped", "window.wake", "view.punch"])
def test_a_process_that_dies_in_a_window_is_dead(point: str, kind: str, sig: signal.Signals) -> None:
    assert run("merge", point, kind).returncode == -sig


def test_faults_are_read_from_the_environment_and_mistakes_are_fatal() -> None:
    code = "from support.spaces import Bench\nb = Bench()\nb.put(0, 1)\nprint(b.merge(0, 1, 1))\nb.close()"
    for fault, ends in (("merge.map=error:12", "0\n"), ("merge.map=error:12@2", "1\n"), ("merge.mop=panic", None)):
        env = os.environ | {"PAGEFOLD_FAULTS": fault}
        ended = subprocess.run(
            [sys.executable, "-c", code], cwd=TESTS, env=env, capture_output=True, text=True, timeout=60, check=False
        )
        if ends is None:
            assert ended.returncode == -signal.SIGABRT
        else:
            assert ended.stdout == ends
