"""Books beside mappings: what fits, what differs, what two looks have in common. No process is looked at."""

from __future__ import annotations

import os
import random

import pytest
from pagefold_proto.limits import PAGE
from pagefold_proto.v1 import admin_pb2 as pb
from pagefold_server.audit.differences import Difference, common, compare, pages_of, within, without
from pagefold_server.engine.interface import Columns, Held, Instructions
from pagefold_server.engine.pageset import PageSet
from pagefold_server.engine.states import COPIED, MERGED, NO_FRAME, OWNED, PROPOSED, QUEUED, ZERO
from pagefold_server.procfs import processes
from pagefold_server.procfs.mappings import Mapping, Seen, What, copies, describe_view, parse
from pagefold_server.sessions.touched_pages import TouchedPages

SEGMENT, POOL, OTHER, NONE = (26, 11), (26, 12), (8, 13), (0, 0)
HERE = (3, 1)

STATES = {"owned": OWNED, "queued": QUEUED, "proposed": PROPOSED, "merged": MERGED, "copied": COPIED, "zero": ZERO}
BOTH = {"own", "frame", "kept", "copy"}


@pytest.mark.parametrize(
    ("state", "fits"),
    [
        ("owned", {"own"}),
        ("queued", {"own"}),
        ("proposed", BOTH),
        ("merged", {"frame", "kept"}),
        ("copied", {"frame", "copy"}),
        ("zero", {"anonymous"}),
    ],
)
def test_what_fits_to_which_state(state: str, fits: set[str]) -> None:
    frame = {"owned": NO_FRAME, "zero": -1}.get(state, 7)
    held = [] if state == "owned" else [Held(0, 1, STATES[state], frame)]
    for what in What:
        number = 7 if what in (What.FRAME, What.KEPT, What.COPY) else 0
        found = list(compare(HERE, held, [Seen(0, 1, what, number)], whole=True))
        assert bool(found) == (what.name.lower() not in fits), what
        # Taken over from its parent, what holds no frame may map anything but frames.
        taken = list(compare(HERE, held, [Seen(0, 1, what, number)], whole=True, inherited=True))
        assert bool(taken) == (number == 7 if state == "owned" else bool(found)), what
        # A forked child need not map anything; but what it maps of the pool needs a reference that was given out.
        child = list(compare(HERE, held, [Seen(0, 1, what, number)], whole=False))
        assert bool(child) == (number == 7 and state in ("owned", "queued", "zero")), what


@pytest.mark.parametrize(
    ("held", "what", "number", "kind"),
    [
        (None, What.FRAME, 4, "UNHELD_MAPPING"),
        (Held(0, 1, MERGED, 5), What.KEPT, 4, "UNHELD_MAPPING"),
        (Held(0, 1, QUEUED, 4), What.FRAME, 4, "UNHELD_MAPPING"),
        (Held(0, 1, MERGED, 4), What.OWN, 0, "UNMAPPED_REFERENCE"),
        (Held(0, 1, COPIED, 4), What.NOTHING, 0, "UNMAPPED_REFERENCE"),
        (Held(0, 1, ZERO, -1), What.OWN, 0, "UNMAPPED_REFERENCE"),
        (Held(0, 1, MERGED, 4), What.COPY, 4, "UNREPORTED_COPY"),
        (Held(0, 1, COPIED, 4), What.KEPT, 4, "LOST_COPY"),
        (Held(0, 1, PROPOSED, 4), What.NOTHING, 0, "STRANGE_MAPPING"),
        (None, What.ELSEWHERE, 9, "STRANGE_MAPPING"),
        (None, What.STRANGER, 9, "STRANGE_MAPPING"),
    ],
)
def test_differences_have_a_kind_and_both_sides(held: Held | None, what: What, number: int, kind: str) -> None:
    (found,) = compare(HERE, [held] if held else [], [Seen(0, 1, what, number)], whole=True)
    assert pb.FindingKind.Name(found.kind) == f"FINDING_KIND_{kind}"
    assert found.booked
    assert found.mapped


def test_runs_are_compared_page_by_page() -> None:
    """Against the same said of every page alone, for runs that begin and end anywhere."""
    rng = random.Random(1)
    for _ in range(300):
        held, seen = [], []
        at = 0
        while at < 40:
            state = rng.choice([OWNED, QUEUED, PROPOSED, MERGED, COPIED, ZERO])
            pages = rng.randrange(1, 9)
            if state != OWNED:
                held.append(Held(at, pages, state, -1 if state == ZERO else rng.randrange(3) + at))
            at += pages
        at = 0
        while at < 40:
            what, pages = rng.choice(list(What)), rng.randrange(1, 9)
            seen.append(Seen(at, pages, what, at + rng.randrange(3) if what <= What.ELSEWHERE else 5))
            at += pages
        for whole in (True, False):
            got = [d.part(page, 1) for d in compare(HERE, held, seen, whole) for page in range(d.first, d.end)]
            expected = [
                difference
                for run in seen
                for n in range(run.pages)
                for difference in compare(HERE, _alone(held, run.first + n), [_single(run, n)], whole)
            ]
            assert got == expected


def _alone(held: list[Held], page: int) -> list[Held]:
    return [
        Held(page, 1, run.state, run.frame if run.frame < 0 else run.frame + page - run.first)
        for run in held
        if run.first <= page < run.first + run.pages
    ]


def _single(run: Seen, n: int) -> Seen:
    return Seen(run.first + n, 1, run.what, run.number + n * (run.what <= What.ELSEWHERE))


def test_two_looks_have_in_common_what_is_the_same_on_both_sides() -> None:
    before = [Difference(HERE, 0, 10, MERGED, 100, What.OWN, 0), Difference(HERE, 10, 5, OWNED, -2, What.FRAME, 7)]
    after = [
        Difference(HERE, 3, 4, MERGED, 103, What.OWN, 3),  # the same
        Difference(HERE, 8, 1, MERGED, 109, What.OWN, 8),  # another frame in the books
        Difference(HERE, 9, 3, OWNED, -2, What.FRAME, 6),  # 9 was merged, 10 and 11 are the same
        Difference((3, 2), 0, 10, MERGED, 100, What.OWN, 0),  # of another segment
    ]
    assert list(common(before, after)) == [
        Difference(HERE, 3, 4, MERGED, 103, What.OWN, 3),
        Difference(HERE, 10, 2, OWNED, -2, What.FRAME, 7),
    ]
    assert list(common(after, before)) == list(common(before, after))
    assert [(d.first, d.pages) for d in within(after, pages_of(before))] == [(3, 4), (8, 1), (9, 3)]
    assert without(before, pages_of(before)) == []


def test_sets_of_pages_against_sets() -> None:
    rng = random.Random(2)
    for _ in range(200):
        pages, model = PageSet(), set()
        for _ in range(rng.randrange(8)):
            first, count = rng.randrange(30), rng.randrange(1, 8)
            pages.add("a", first, count)
            model |= set(range(first, first + count))
            at, n = rng.randrange(30), rng.randrange(1, 20)
            inside = [p for first, count in pages.inside("a", at, n) for p in range(first, first + count)]
            outside = [p for first, count in pages.outside("a", at, n) for p in range(first, first + count)]
            assert inside == sorted(model & set(range(at, at + n)))
            assert outside == sorted(set(range(at, at + n)) - model)
        assert list(pages.inside("b", 0, 9)) == []


def test_a_set_that_is_given_the_same_pages_again_and_again_does_not_grow() -> None:
    pages = PageSet()
    for n in range(50_000):
        pages.add("a", n * 7 % 1000 * 2, 1)
    assert len(pages._runs["a"]) < 10_000
    assert sum(count for _, count in pages.inside("a", 0, 5000)) == 1000


def test_pages_are_touched_by_what_changes_a_mapping_and_by_nothing_else() -> None:
    touched = TouchedPages()
    kinds = range(1, 10)  # merged, declined, copied, released, not adopted, excluded, included, written, and a new one
    one = [1] * len(kinds)
    pages = [10 * kind for kind in kinds]
    touched.note(
        Columns(list(kinds), one, pages, one, one, one, one), Instructions([(1, 200, 2, 5)], [(1, 300, 1)]), False
    )
    assert list(touched.pages.inside(1, 0, 1000)) == [(10, 1), (20, 1), (30, 1), (40, 1), (90, 1), (200, 2), (300, 1)]
    assert not touched.shared
    for shared in (True, False):
        touched.note(Columns([], [], [], [], [], [], []), Instructions(), shared)
    assert touched.shared, "at any time"


def test_lines_of_maps() -> None:
    text = (
        b"7f0000000000-7f0000003000 rw-s 00002000 00:1a 11    /dev/shm/pagefold-s-0 (deleted)\n"
        b"7f0000003000-7f0000004000 rw-p 00000000 00:00 0 \n"
        b"7f0000004000-7f0000005000 r--p 00a01000 103:02 4711  /a name\twith 7f-7f rw-s 0 0:0 0\n"
    )
    assert list(parse(text)) == [
        Mapping(0x7F0000000000, 0x7F0000003000, 0x2000, (os.makedev(0, 26), 11), True, True),
        Mapping(0x7F0000003000, 0x7F0000004000, 0, (0, 0), False, True),
        Mapping(0x7F0000004000, 0x7F0000005000, 0xA01000, (os.makedev(0x103, 2), 4711), False, False),
    ]
    with open("/proc/self/maps", "rb") as maps:
        mine = maps.read()
    assert len(list(parse(mine))) == mine.count(b"\n")


def test_a_view_is_what_its_mappings_make_of_it() -> None:
    base = 100 * PAGE

    def at(page: int, pages: int, key: tuple[int, int], offset: int, shared: bool = True) -> Mapping:
        start = base + page * PAGE
        return Mapping(start, start + pages * PAGE, offset * PAGE, key, shared, True)

    mappings = [
        at(-5, 3, OTHER, 0),
        at(-2, 4, NONE, 0, shared=False),  # reaches into the view
        at(2, 2, SEGMENT, 2),
        at(4, 1, SEGMENT, 4, shared=False),  # frozen by a fork
        at(5, 3, POOL, 70, shared=False),
        at(8, 1, POOL, 80),  # a frame must not be mapped shared there
        at(10, 1, SEGMENT, 11),
        at(11, 9, OTHER, 3),  # and goes on behind it
    ]
    assert list(describe_view(mappings, base, 13, SEGMENT, POOL)) == [
        Seen(0, 2, What.ANONYMOUS, 0),
        Seen(2, 2, What.OWN, 2),
        Seen(4, 1, What.OWN, 4),
        Seen(5, 3, What.FRAME, 70),
        Seen(8, 1, What.STRANGER, POOL[1]),
        Seen(9, 1, What.NOTHING, 0),
        Seen(10, 1, What.ELSEWHERE, 11),
        Seen(11, 2, What.STRANGER, OTHER[1]),
    ]
    assert list(describe_view([], base, 4, SEGMENT, POOL)) == [Seen(0, 4, What.NOTHING, 0)]


def test_copies_are_told_by_flags() -> None:
    present, of_file, swapped, exclusive = 1 << 63, 1 << 61, 1 << 62, 1 << 56
    entries = [0, present | of_file, present | of_file, present | exclusive, swapped, present | of_file | exclusive]
    pagemap = b"".join(entry.to_bytes(8, "little") for entry in entries)
    assert list(copies(pagemap, Seen(10, 7, What.FRAME, 50))) == [
        Seen(10, 1, What.FRAME, 50),
        Seen(11, 2, What.KEPT, 51),
        Seen(13, 1, What.COPY, 53),
        Seen(14, 1, What.FRAME, 54),
        Seen(15, 1, What.KEPT, 55),
        Seen(16, 1, What.FRAME, 56),  # the file ended early: the process is gone
    ]


def test_a_process_that_may_not_be_read_is_told_apart_from_one_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> bytes:
        raise PermissionError(13, "Permission denied") if pid == os.getpid() else ProcessLookupError(3, "gone")

    monkeypatch.setattr(processes, "read", refuse)
    ((found, text),) = processes.find([os.getpid(), 1])
    assert (found.readable, text) == (False, b"")
    assert os.getpid() in found.numbers
