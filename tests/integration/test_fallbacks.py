"""Machines that lack something: memory works, and status, doctor and reports tell the truth."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from support import kernel, variant
from support.apart import run_apart
from support.server import Server
from support.worker import PAGE, Worker

pytestmark = pytest.mark.variants

Work = Callable[..., Worker]
PAGES = 128


def sharing(work: Work, **options: object) -> list[Worker]:
    workers = [work(**options), work(**options)]
    for w in workers:
        w.call("allocate", "a", PAGES * PAGE)
        w.call("fill_pages", "a", list(range(PAGES)))
    return workers


@pytest.mark.parametrize("how", ["asked for", "absent"])
def test_barrier_off_is_plain_memory_and_says_so(how: str, server: Server, work: Work) -> None:
    env = {"PAGEFOLD_DISABLE": "uffd,user"} if how == "absent" else {"PAGEFOLD_BARRIER": "off"}
    one, two = sharing(work, env=env)
    report = one.call("settle")
    assert not report.settled
    assert report.reason
    stats = one.call("stats")
    assert (stats.barrier, stats.merged_bytes, stats.saved_bytes) == ("off", 0, 0)
    assert ("userfaultfd" in stats.trouble) == (how == "absent"), "what is missing is named, with what to do"
    assert one.call("digest", "a") == two.call("digest", "a")
    one.call("write", "a", 0, b"plain memory")
    assert one.call("read", "a", 0, 12) == b"plain memory"
    one.call("advise", "a", False)
    one.call("free", "a")
    assert [c.tier for c in server.clients()] == [3, 3]
    assert ("userfaultfd" if how == "absent" else "barrier='off'") in server.status().trouble


def test_a_barrier_that_cannot_be_had_is_refused_when_asked_for(work: Work) -> None:
    with pytest.raises(Exception, match="userfaultfd"):
        work(env={"PAGEFOLD_DISABLE": "uffd,user"}, barrier="uffd")


@pytest.mark.needs("uffd")
def test_a_tracker_that_cannot_be_had_is_refused_when_asked_for(work: Work) -> None:
    with pytest.raises(Exception, match=r"Linux 6\.7"):
        work(env={"PAGEFOLD_DISABLE": "wp_async"}, tracker="pagemap")
    with pytest.raises(ValueError, match="tracker 'soft-dirty'"):
        work(tracker="soft-dirty")
    assert work(env={"PAGEFOLD_TRACKER": "checksum"}).call("stats").tracker == "checksum"


@pytest.mark.needs("uffd")
@pytest.mark.parametrize("absent", ["pagemap_scan", "wp_unpopulated", "pagemap_scan,wp_unpopulated,wp_async"])
def test_older_kernels_merge_and_break_all_the_same(absent: str, server: Server, work: Work) -> None:
    one, two = sharing(work, env={"PAGEFOLD_DISABLE": absent})
    assert one.call("settle").settled
    has_tracker = absent == "wp_unpopulated" and not variant.TRACKER
    assert one.call("stats").tracker == ("pagemap" if has_tracker else "checksum")
    assert one.call("stats").merged_bytes == (PAGES - 1) * PAGE
    assert one.call("stats").zero_bytes == PAGE
    before = two.call("digest", "a")
    for page in range(0, PAGES, 3):
        one.call("write", "a", page * PAGE, b"written")
    assert one.call("settle").settled
    assert server.status().counters.pages_broken == len(range(0, PAGES, 3))
    assert two.call("digest", "a") == before
    assert [one.call("read", "a", p * PAGE, 7) for p in range(0, PAGES, 3)] == [b"written"] * len(range(0, PAGES, 3))


@pytest.mark.needs("user-uffd")
def test_the_barrier_user_merges_what_the_program_writes_itself(server: Server, work: Work) -> None:
    one, two = sharing(work, barrier="user")
    assert one.call("settle").settled
    assert one.call("stats").barrier == "user"
    assert one.call("stats").merged_bytes == (PAGES - 1) * PAGE
    one.call("write", "a", 5 * PAGE, b"mine")
    assert one.call("read", "a", 5 * PAGE, 4) == b"mine"
    assert two.call("read", "a", 5 * PAGE, 4) != b"mine"


@pytest.mark.parametrize(("disabled", "code"), [("", 0), ("pagemap_scan", 0), ("uffd,user", 1)])
def test_doctor_tells_the_truth(disabled: str, code: int, server: Server) -> None:
    if code == 0 and os.geteuid() != 0:
        pytest.skip("this user may hold no writes, so doctor has something to say")
    env = os.environ | {"PAGEFOLD_DISABLE": disabled, "PAGEFOLD_ADDRESS": server.address}
    ran = subprocess.run(
        [sys.executable, "-m", "pagefold.cli", "doctor", "--json"], env=env, capture_output=True, text=True, check=False
    )
    assert ran.returncode == code, ran.stderr
    found = json.loads(ran.stdout)
    assert "Traceback" not in ran.stderr
    assert found


def test_memory_that_dev_shm_cannot_back_is_refused_with_the_remedy(work: Work) -> None:
    w = work(backing="shm")
    free = os.statvfs(kernel.SHM).f_bavail * os.statvfs(kernel.SHM).f_frsize
    with pytest.raises(MemoryError, match="remount"):
        w.call("allocate", "a", free + (1 << 30))
    w.call("allocate", "a", PAGE)
    w.call("write", "a", 0, b"fine")


@pytest.mark.needs("root", "uffd")
def test_a_full_dev_shm_loses_nothing() -> None:
    # A tmpfs of 24 MiB in a namespace of its own; two workers fill it, merge, and then cannot be taken apart again.
    run_apart(
        """
with Worker(server.address, backing="shm") as one, Worker(server.address, backing="shm") as two:
    pages = (9 << 20) // PAGE
    server.configure(run=0)
    for w in (one, two):
        w.call("allocate", "a", pages * PAGE)
        w.call("fill_pages", "a", list(range(1, pages + 1)))
    digest = one.call("digest", "a")
    server.configure(run=1)
    until(lambda: one.call("settle", 10).settled and one.call("stats").merged_bytes == pages * PAGE, 60, "merging")
    try:
        one.call("allocate", "b", 20 << 20)
    except MemoryError as error:
        assert "remount" in str(error)
    else:
        raise AssertionError("more than there is was handed out")
    one.call("allocate", "b", 12 << 20)
    one.call("fill_pages", "b", [10**6 + i for i in range((12 << 20) // PAGE)])
    server.configure(run=2)  # asks for 9 MiB twice, and 3 are left
    until(lambda: server.status().counters.pages_sharing < pages - 500, 20, "taking apart what there is room for")
    assert one.call("digest", "a") == two.call("digest", "a") == digest
    one.call("write", "a", 0, b"still writable")
    assert one.call("read", "a", 0, 5) == b"still"
    one.call("free", "b")
    until(lambda: server.status().counters.pages_shared == 0, 30, "unmerging once there is room")
    assert two.call("digest", "a") == digest
""",
        size="24m",
    )
