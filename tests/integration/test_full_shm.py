"""/dev/shm fills up, whenever that could hurt: nobody is killed, no byte is lost, and errors say what to do.

Each test has a /dev/shm of its own, which only root can mount.
"""

from __future__ import annotations

import pytest
from support.apart import run_apart

pytestmark = pytest.mark.needs("root")

# Takes all of /dev/shm but so many bytes, as somebody else would; `stuff.close()` gives it back.
STUFF = """
def stuff(leave=0):
    file = open("/dev/shm/somebody-elses", "wb")
    found = os.statvfs("/dev/shm")
    size = found.f_bavail * found.f_frsize - leave
    if size > 0:
        os.posix_fallocate(file.fileno(), 0, size)
    os.unlink("/dev/shm/somebody-elses")
    return file
"""


def test_connecting_without_any_room_says_what_to_do() -> None:
    run_apart(
        STUFF
        + """
taken = stuff()
try:
    Worker(server.address)
except MemoryError as error:
    assert "--shm-size" in str(error), error
else:
    raise AssertionError("there was no room for a doorbell")
assert [n for n in os.listdir("/dev/shm") if "pagefold-l-" in n or "pagefold-d-" in n] == []
taken.close()
with Worker(server.address) as w:
    w.call("allocate", "a", PAGE)
""",
        size="1m",
    )


def test_what_was_handed_out_can_be_touched_though_others_take_the_rest() -> None:
    # It was SIGBUS: two programs were each promised the same room, or a third took it before it was touched.
    run_apart(
        STUFF
        + """
server.configure(run=0)
with Worker(server.address, backing="shm") as one, Worker(server.address, backing="shm") as two:
    pages = (9 << 20) // PAGE
    one.call("allocate", "a", pages * PAGE)
    two.call("allocate", "a", pages * PAGE)
    for w in (one, two):
        try:
            w.call("allocate", "b", pages * PAGE)
        except MemoryError as error:
            assert "--shm-size" in str(error) and "memfd" in str(error), error
        else:
            raise AssertionError("the same room was handed out twice")
    taken = stuff()
    for w in (one, two):
        w.call("fill_pages", "a", list(range(1, pages + 1)))
    assert one.call("digest", "a") == two.call("digest", "a")
    # Given back and handed out again, it is reserved again.
    one.call("free", "a")
    one.call("allocate", "a", (8 << 20))
    again = stuff()
    one.call("fill_pages", "a", list(range(1, (8 << 20) // PAGE + 1)))
    assert one.call("read", "a", 100 * PAGE, PAGE) == page_of(101)
""",
        size="24m",
    )


def test_with_auto_memory_goes_on_when_dev_shm_is_full() -> None:
    run_apart(
        STUFF
        + """
with Worker(server.address) as one:
    taken = stuff()
    pages = (32 << 20) // PAGE
    one.call("allocate", "a", pages * PAGE)
    one.call("fill_pages", "a", list(range(1, pages + 1)))
    assert one.call("stats").memfd_bytes == pages * PAGE
    assert one.call("read", "a", (pages - 1) * PAGE, PAGE) == page_of(pages)
""",
        size="24m",
    )


@pytest.mark.needs("uffd")
def test_a_pool_that_cannot_grow_is_reported_and_merging_goes_on_when_there_is_room() -> None:
    run_apart(
        STUFF
        + """
with Worker(server.address, backing="memfd") as one, Worker(server.address, backing="memfd") as two:
    pages = 2048
    for w in (one, two):
        w.call("allocate", "a", pages * PAGE)
        w.call("fill_pages", "a", list(range(1, pages + 1)))
    digest = one.call("digest", "a")
    taken = stuff(leave=100 * PAGE)
    server.configure(run=1)  # and not before: the pool could have grown already
    report = one.call("settle", 20)
    assert not report.settled
    assert "room for frames" in report.reason, report
    assert "remount" in server.status().trouble, server.status().trouble
    assert 0 < server.status().counters.pages_shared <= 100
    assert one.call("digest", "a") == two.call("digest", "a") == digest
    one.call("write", "a", 0, b"written")
    two.call("fill_pages", "a", list(range(1, pages + 1)))
    taken.close()
    until(lambda: one.call("settle", 20).settled, 40, "merging with room again")
    assert server.status().trouble == ""
    assert server.status().counters.pages_shared == pages - 1
    assert two.call("digest", "a") == digest
    assert one.call("read", "a", 0, 7) == b"written"
""",
        size="24m",
        run=0,
    )


@pytest.mark.needs("uffd")
@pytest.mark.parametrize("backing", ["shm", "auto"])
def test_what_cannot_be_adopted_keeps_its_bytes(backing: str) -> None:
    # Copied pages are to go back to their segment, which was punched when they were merged: their room is gone.
    run_apart(
        STUFF
        + f"""
with Worker(server.address, backing={backing!r}) as one, Worker(server.address, backing={backing!r}) as two:
    pages = 1024
    for w in (one, two):
        w.call("allocate", "a", pages * PAGE)
        w.call("fill_pages", "a", list(range(1, pages + 1)))
    digest = two.call("digest", "a")
    until(lambda: one.call("settle", 20).settled and one.call("stats").merged_bytes == pages * PAGE, 40, "merging")
    taken = stuff()
    for page in range(0, pages, 3):
        one.call("write", "a", page * PAGE, b"written")
    try:
        one.call("advise", "a", False)
    except MemoryError as error:
        assert {backing!r} == "shm" and "remount" in str(error), error
    else:
        assert {backing!r} == "auto", "memfd pages need no room in /dev/shm"
    for page in range(pages):
        was = page_of(page + 1)
        now = b"written" + was[7:] if page % 3 == 0 else was
        assert one.call("read", "a", page * PAGE, PAGE) == now, page
    assert two.call("digest", "a") == digest
    taken.close()
    one.call("advise", "a", False)
    assert one.call("stats").owned_bytes == pages * PAGE
    for page in range(pages):
        was = page_of(page + 1)
        assert one.call("read", "a", page * PAGE, PAGE) == (b"written" + was[7:] if page % 3 == 0 else was), page
""",
        size="24m",
    )
