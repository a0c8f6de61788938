"""What a fuzzer says, in which order: calls from a seed, without a name, a token or a process in them.

Most calls are well-formed, or every session would end with its second one. The script keeps a rough model of what
it has opened, and begins a session anew soon after a lie. It hears no answers, so the same seed gives the same calls
on every machine; what depends on an answer ("carry out what you were told, but claim another frame") is said by
intent, and the driver fills it in.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from pagefold_proto.v1 import memory_pb2 as pb

SESSIONS: Final = 4
"""Sessions that are open side by side."""

COSTLY: Final = ("leases", "huge", "pools", "names", "scatter", "write")
"""What can be left out of a script: file leases, segments of up to 1 TiB that are all hole, pools that are made up,
thousands of names, events about one page in each block of such a hole, and objects that are written all the time."""

TEBIBYTE: Final = 1 << 28
"""In pages of 4 KiB."""
_BLOCK: Final = 1 << 10  # pages of a segment that the native engine's books keep together
_MOST_EVENTS: Final = 1 << 13  # in a call

_LAST: Final = (1 << 32) - 1
_FRESH_LIES: Final = (
    ("protocol", 2),
    ("page_size", 1 << 16),
    ("label", "x" * 65),
    ("program", "x" * 256),
    ("slot", 1 << 62),
    ("proof", b"\1" * 32),
    ("lease", "/pagefold-l-../" + "0" * 29),
    ("lease", "/pagefold-l-" + "0" * 32),
    ("doorbell", "/pagefold-d-" + "0" * 32),
)
_BAD_NAMES: Final = ("", "/", "/../etc/passwd", "/pagefold-s-" + "A" * 32, "/pagefold-p-" + "0" * 32, "x" * 100_000)
_PLANTS: Final = ("gone", "shrunk", "empty", "fifo", "link", "directory", "stolen", "sealed")


@dataclass(frozen=True)
class Call:
    """One thing to do.

    Attributes:
        what: name of a method of the driver.
        session: which of the sessions does it.
        said: the rest, for that method.
    """

    what: str
    session: int
    said: dict[str, Any] = field(default_factory=dict)


class Believed:
    """What a script believes of one of its sessions."""

    def __init__(self) -> None:
        self.opened = False
        self.spoiled = False  # it has lied, and is excluded as a rule
        self.segments: dict[int, int] = {}
        self.made = 0
        self.tracks = False  # it may report written pages
        self.writes = False  # one of its objects is written by itself, and large


class Script:
    """An endless one.

    Args:
        seed: of everything.
        without: of `COSTLY`, what is left out.
    """

    def __init__(self, seed: str, without: tuple[str, ...] = ()) -> None:
        self._rng = random.Random(seed)
        self._without = without
        self._believed = [Believed() for _ in range(SESSIONS)]

    def __iter__(self) -> Iterator[Call]:
        while True:
            yield self._next()

    def _next(self) -> Call:
        rng = self._rng
        number = rng.randrange(SESSIONS)
        session = self._believed[number]
        if not session.opened:
            return self._hello(number, session)
        if session.spoiled and rng.random() < 0.7:
            return self._end(number, session)
        if not session.segments and (choice := rng.random()) < 0.6:
            return self._scatter(number, session) if choice < 0.03 else self._add(number, session)
        makers: list[tuple[int, Callable[[int, Believed], Call]]] = [
            (62, self._exchange),
            (14, self._add),
            (5, self._drop),
            (6, self._bend),
            (2, self._bell),
            (2, self._plant),
            (1, self._names),
            (1, self._write),
            (2, self._garble),
            (1, self._hello_again),
            (2, self._end),
        ]
        maker = rng.choices([make for _, make in makers], [weight for weight, _ in makers])[0]
        return maker(number, session)

    # Coming and going

    def _hello(self, number: int, session: Believed) -> Call:
        rng = self._rng
        said: dict[str, Any] = {
            "label": rng.choice(["", "", "", "a", "b", "\u00e9" * 64]),
            "tier": rng.choice([pb.TIER_UFFD, pb.TIER_UFFD, pb.TIER_USER, pb.TIER_OFF, 0, 9]),
            "tracker": rng.choice([pb.TRACKER_CHECKSUM, pb.TRACKER_PAGEMAP, 0, 9]),
            "slot": rng.choice([0, 0, rng.randrange(1, 1 << 62)]),
        }
        lie = ""
        if rng.random() < 0.15:
            lie = rng.choice(["said", "unlocked", "stolen", "bell", "leased"])
            if lie == "leased" and "leases" in self._without:
                lie = "said"
            if lie == "said":
                key, value = rng.choice(_FRESH_LIES)
                said[key] = value
        session.opened = lie == ""
        session.spoiled, session.segments, session.made, session.writes = False, {}, 0, False
        session.tracks = said["tracker"] == pb.TRACKER_PAGEMAP
        return Call("hello", number, {"said": said, "lie": lie, "strange": self._strange()})

    def _hello_again(self, number: int, session: Believed) -> Call:
        """A second session behind the same lease; the first one's token is forgotten, or kept for later."""
        session.segments, session.spoiled, session.tracks, session.made, session.writes = {}, False, False, 0, False
        return Call("hello_again", number, {"label": self._rng.choice(["", "a"])})

    def _end(self, number: int, session: Believed) -> Call:
        session.opened = False
        if self._rng.random() < 0.5:
            return Call("bye", number, {"token": self._token()})
        return Call("hang_up", number, {"flying": self._rng.randrange(4)})

    # Segments

    def _add(self, number: int, session: Believed) -> Call:
        rng = self._rng
        pages = rng.choice([1, 2, 7, 64, 64, 300])
        content = rng.choice(["equal", "equal", "equal", "zeros", "hole", "noise"])
        if rng.random() < 0.08 and "huge" not in self._without:
            pages, content = 1 << rng.choice([16, 20, 22, 24, 26, 28]), "hole"
        said = self._fresh(session, pages, content, rng.random() < 0.25)
        lie = rng.random()
        if lie < 0.06:
            said["claimed"] = rng.choice([0, pages + 1, 1 << 28, (1 << 28) + 1, _LAST])
        elif lie < 0.14:
            said["plant"] = rng.choice(_PLANTS)
            said["pages"] = said["claimed"] = min(pages, 300)
        elif lie < 0.18 and "leases" not in self._without:
            said["plant"] = rng.choice(["leased", "read-leased"])
        elif lie < 0.21:
            said["name"] = rng.choice(_BAD_NAMES)
        elif lie < 0.24:
            said["memfd"] = True
            said["holder"] = rng.choice(["init", "parent", "sibling", "nobody", "pipe", "nothing"])
        elif lie < 0.27 and session.segments:
            said["segment"] = rng.choice(list(session.segments))  # of another size, as a rule: a violation
            session.spoiled = True
        else:
            session.segments[said["segment"]] = pages
        said |= {"token": self._token(), "wait": self._wait(), "strange": self._strange()}
        said["address"] = rng.choice([0, 0, 0x7F00_0000_0000, (1 << 64) - 4096, 1])
        said["inherited"] = rng.random() < 0.1
        return Call("add", number, said)

    @staticmethod
    def _fresh(session: Believed, pages: int, content: str, memfd: bool) -> dict[str, Any]:
        """What is said of a new segment, if nothing is wrong with it."""
        session.made += 1
        said = {"segment": session.made, "pages": pages, "claimed": pages, "content": content, "plant": ""}
        said |= {"memfd": memfd, "address": 0, "inherited": False, "token": "own", "wait": "now", "strange": 0}
        return said

    def _scatter(self, number: int, session: Believed) -> Call:
        """A segment that is all hole, and events of one page each in every block of it."""
        if "scatter" in self._without:
            return self._add(number, session)
        rng = self._rng
        said = self._fresh(session, TEBIBYTE, "hole", memfd=rng.random() < 0.5)
        session.segments[said["segment"]] = TEBIBYTE
        kinds = [pb.EVENT_KIND_WRITTEN, pb.EVENT_KIND_EXCLUDED, pb.EVENT_KIND_INCLUDED, pb.EVENT_KIND_RESUMED]
        said |= {"kinds": rng.sample(kinds, rng.choice([1, 1, 2, 4])), "at": rng.randrange(_BLOCK - len(kinds))}
        said["detail"] = 0 if session.tracks else 2  # of what was written
        return Call("scatter", number, said)

    def _write(self, number: int, session: Believed) -> Call:
        """A segment of 64 MiB that is written all the time, while the server scans it and other calls are made."""
        if "write" in self._without or session.writes:
            return self._exchange(number, session)
        session.writes = True
        said = self._fresh(session, 1 << 14, "hole", memfd=True)
        session.segments[said["segment"]] = said["pages"]
        return Call("write", number, said | {"seconds": 1.0})

    def _drop(self, number: int, session: Believed) -> Call:
        rng = self._rng
        segment = rng.choice([*session.segments, 77, _LAST]) if session.segments else 0
        release = rng.random() < 0.8  # else pages may still map frames
        if release:
            session.segments.pop(segment, None)
        return Call("drop", number, {"segment": segment, "release": release, "token": self._token()})

    def _bend(self, number: int, session: Believed) -> Call:
        """Something becomes of an object that the server knows; no call is made."""
        how = ["shrink", "grow", "odd", "write", "unlink", "punch"]
        if "leases" not in self._without:
            how += ["lease", "release"]
        choice = self._rng.choice(how)
        return Call("bend", number, {"pick": self._rng.randrange(64), "how": choice, "to": self._rng.randrange(300)})

    def _bell(self, number: int, _: Believed) -> Call:
        return Call("bell", number, {"size": self._rng.choice([0, 5, 31, 32, 4096, 1 << 20])})

    def _plant(self, number: int, session: Believed) -> Call:
        """A pool that the fuzzer made up, with the tag of its own domain; found by the server of a new domain."""
        if "pools" in self._without:
            return self._exchange(number, session)
        rng = self._rng
        said = {"frames": rng.choice([1, 4, 1 << 12, 1 << 26]), "slots": rng.choice([0, 1, 200])}
        said["leased"] = rng.random() < 0.3 and "leases" not in self._without
        return Call("plant", number, said)

    def _names(self, number: int, session: Believed) -> Call:
        """Names of pools with the tag of a domain, of its own or of another user's."""
        if "names" in self._without:
            return self._exchange(number, session)
        rng = self._rng
        said = {"count": rng.choice([1000, 2000, 4000]), "whose": rng.choice(["own", "another's"])}
        return Call("names", number, said | {"held": rng.random() < 0.5})

    # Talk

    def _exchange(self, number: int, session: Believed) -> Call:
        rng = self._rng
        said: dict[str, Any] = {"events": [], "answer": "", "lie": ""}
        choice = rng.random()
        if choice < 0.5:
            said["answer"] = rng.choices(
                ["honest", "decline", "part", "frame", "pool", "twice", "copied", "released", "not adopted"],
                [60, 15, 5, 3, 3, 3, 25, 15, 5],
            )[0]
            session.spoiled |= said["answer"] in ("frame", "pool", "twice")
        elif choice < 0.8:
            if session.segments:
                said["events"] = [self._true_event(session) for _ in range(rng.choice([1, 1, 3, 20]))]
        elif choice < 0.92:
            said["events"] = self._lies(session)
            session.spoiled = True
        said["settling"] = rng.choice([0, 1, rng.randrange(1, 1000)])
        said["looked"] = rng.choice(["honest"] * 20 + [0, 1 << 40, (1 << 64) - 1])
        said["resuming"] = rng.random() < 0.05
        if rng.random() < 0.2:
            said["gauges"] = {"mappings": rng.choice([0, 9, 1 << 12]), "merged_pages": rng.randrange(1 << 40)}
            if rng.random() < 0.02:  # the user's quota: no session of his can do much until this one ends
                said["gauges"]["mappings"] = _LAST
                session.spoiled = True
        said["sequence"] = rng.choices(["next", "repeat", "skip", "zero", "last"], [100, 8, 1, 1, 1])[0]
        session.spoiled |= said["sequence"] in ("skip", "zero", "last")
        if rng.random() < 0.01:
            said["lie"] = rng.choice(["columns", "many", "large"])
            session.spoiled = True
        said |= {"token": self._token(), "wait": self._wait(), "strange": self._strange()}
        return Call("exchange", number, said)

    def _true_event(self, session: Believed) -> tuple[int, ...]:
        """Something that may be said of any page, as a rule."""
        rng = self._rng
        segment, pages = rng.choice(list(session.segments.items()))
        first = rng.randrange(pages)
        count = min(rng.choice([1, 1, 4, pages]), pages - first, 1 << 20)
        kind = rng.choice([pb.EVENT_KIND_EXCLUDED, *[pb.EVENT_KIND_INCLUDED] * 2, *[pb.EVENT_KIND_WRITTEN] * 3])
        detail = rng.choice([0, 1, 2]) if session.tracks else 2
        return (kind, segment, first, count, 0, 0, detail if kind == pb.EVENT_KIND_WRITTEN else 0)

    def _lies(self, session: Believed) -> list[tuple[int, ...]]:
        rng = self._rng
        known = [*session.segments.items()] or [(1, 64)]
        told = []
        for _ in range(rng.choice([1, 1, 2, 30])):
            segment, pages = rng.choice(known)
            kind = rng.choice([*range(1, 10), pb.EVENT_KIND_RESUMED, pb.EVENT_KIND_MERGED, 0, 99])
            first = rng.choice([0, rng.randrange(pages), pages, _LAST])
            count = rng.choice([1, 1, pages, pages + 1, 0, 1 << 25, _LAST])
            if rng.random() < 0.1:
                segment = rng.choice([0, 77, _LAST])
            frame = rng.choice([0, 1, rng.randrange(1 << 16), _LAST])
            told.append(
                (kind, segment, first, count, rng.choice([0, -1, 1, _LAST]), frame, rng.choice([0, 1, 6, _LAST]))
            )
        return told  # pool -1: the session's own, whichever number that has

    def _garble(self, number: int, _: Believed) -> Call:
        """Bytes that are no protobuf, or no HTTP/2 at all."""
        rng = self._rng
        method = rng.choice(["", "Hello", "AddSegment", "Exchange", "DropSegment", "Bye", "Nothing"])
        return Call("garble", number, {"method": method, "data": rng.randbytes(rng.choice([0, 1, 100, 2000]))})

    def _token(self) -> str:
        return self._rng.choices(["own", "other", "old", "invented", "empty", "long"], [200, 2, 2, 2, 1, 1])[0]

    def _wait(self) -> str:
        """Whether the answer is waited for; taken later, with other calls under way; or not at all."""
        return self._rng.choices(["now", "later", "cancel", "deadline"], [80, 15, 3, 2])[0]

    def _strange(self) -> int:
        """How many bytes of a field that no .proto has."""
        return self._rng.choices([0, 1, 8192, 200_000], [90, 6, 3, 1])[0]


def scattered(said: dict[str, Any]) -> Iterator[list[tuple[int, ...]]]:
    """The events of a `scatter`, for one call after the other."""
    for n, kind in enumerate(said["kinds"]):
        detail = said["detail"] if kind == pb.EVENT_KIND_WRITTEN else 0
        pages = range(said["at"] + n, said["pages"], _BLOCK)
        for begin in range(0, len(pages), _MOST_EVENTS):
            yield [(kind, said["segment"], page, 1, 0, 0, detail) for page in pages[begin : begin + _MOST_EVENTS]]
