"""What a fuzzer says follows from its seed and from nothing else, and it says everything that it can say."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from typing import Any

import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from pagefold_proto import shm_names
from pagefold_proto.v1 import memory_pb2 as pb
from pagefold_server.api.memory import MAX_EVENTS, MAX_MESSAGE_BYTES
from pagefold_server.sessions.sweep import sweep
from support.worker import PAGE, page_of

from fuzz import driver
from fuzz.calls import COSTLY, SESSIONS, Call, Script, scattered
from fuzz.campaign import Report
from fuzz.objects import SHM, Objects


def calls(seed: str, number: int = 5000, without: tuple[str, ...] = ()) -> list[Call]:
    return list(itertools.islice(Script(seed, without), number))


def test_the_same_seed_makes_the_same_calls() -> None:
    assert calls("one") == calls("one")
    assert list(map(repr, calls("one"))) == list(map(repr, calls("one")))
    assert calls("one") != calls("two")


def test_everything_is_said_and_the_driver_can_do_it() -> None:
    made = calls("all")
    kinds = Counter(call.what for call in made)
    assert {call.session for call in made} == set(range(SESSIONS))
    assert set(kinds) == {
        *("hello", "hello_again", "bye", "hang_up", "add", "drop", "bend", "bell", "plant", "exchange", "garble"),
        *("names", "scatter", "write"),
    }
    assert all(hasattr(driver.Driver, f"_{kind}") for kind in kinds)
    assert kinds["exchange"] > len(made) / 4
    events = {event[0] for call in made if call.what == "exchange" for event in call.said["events"]}
    assert events == {*range(10), 99}
    plants = {call.said["plant"] for call in made if call.what == "add"}
    assert {"leased", "read-leased", "shrunk", "stolen", "fifo"} <= plants
    assert {call.said["wait"] for call in made if call.what == "exchange"} == {"now", "later", "cancel", "deadline"}
    assert max(call.said["pages"] for call in made if call.what == "add") == 1 << 28


def test_most_calls_are_well_formed() -> None:
    exchanges = [call.said for call in calls("well-formed") if call.what == "exchange"]
    true = [said for said in exchanges if said["token"] == "own" and said["sequence"] == "next" and not said["lie"]]
    assert len(true) > 0.8 * len(exchanges)


@pytest.mark.parametrize("seed", ["a", "b"])
def test_what_costs_most_can_be_left_out(seed: str) -> None:
    made = calls(seed, without=COSTLY)
    assert not [call for call in made if call.what in ("plant", "names", "scatter", "write")]
    assert max(call.said["pages"] for call in made if call.what == "add") <= 300
    assert "lease" not in "".join(str(call.said.get("how", "")) + str(call.said.get("plant", "")) for call in made)
    assert not [call for call in made if call.said.get("lie") == "leased"]


def said_by(what: str) -> list[dict[str, Any]]:
    return [call.said for call in calls("many") if call.what == what]


def test_scattered_events_are_one_page_in_each_block_of_a_tebibyte() -> None:
    made = said_by("scatter")
    assert {kind for said in made for kind in said["kinds"]} == {
        *(pb.EVENT_KIND_WRITTEN, pb.EVENT_KIND_EXCLUDED, pb.EVENT_KIND_INCLUDED, pb.EVENT_KIND_RESUMED)
    }
    said = next(said for said in made if len(said["kinds"]) == 2)
    messages = list(scattered(said))
    for message in messages:
        assert len(message) <= MAX_EVENTS
        assert driver._events(message).ByteSize() < MAX_MESSAGE_BYTES - 100
    for kind in said["kinds"]:
        pages = [first for message in messages for k, _, first, count, *_ in message if k == kind and count == 1]
        assert pages == list(range(pages[0], 1 << 28, 1024)), "it is not spread evenly"
        assert len(pages) == 1 << 18
    first = [message[0][2] for message in messages]
    assert len(set(first)) == len(first), "what one kind says of a page would rule out the other"


def test_a_session_writes_one_large_object() -> None:
    for said in said_by("write"):
        assert (said["pages"] * PAGE, said["memfd"], said["seconds"]) == (64 << 20, True, 1.0)
    writing = 0
    for call in (call for call in calls("many") if call.session == 0):
        writing = 0 if call.what in ("hello", "hello_again") else writing + (call.what == "write")
        assert writing <= 1


@pytest.mark.parametrize("held", [True, False])
def test_planted_names_stay_while_they_are_held_and_go_in_the_end(held: bool, no_names: None) -> None:
    assert {said["whose"] for said in said_by("names")} == {"own", "another's"}
    objects = Objects()
    tag = shm_names.tag_of("here", 0, "fuzz")
    objects.plant_names(tag, 50, held)
    names = [name for name in os.listdir(SHM) if name.endswith(tag)]
    assert len(names) == 50 + held
    assert all(shm_names.is_name(shm_names.POOL, f"/{name}") for name in names)
    sweep()
    assert len([name for name in os.listdir(SHM) if name.endswith(tag)]) == (51 if held else 0)
    objects.close()


def test_an_object_is_written_as_a_whole_while_others_go_on(no_names: None) -> None:
    objects = Objects()
    made = objects.segment(300, "hole", memfd=True)
    writer = objects.write_for(made, 0.01)
    writer.join()
    assert os.pread(made.fd, 300 * PAGE, 0) == b"".join(page_of(1 + n % 200) for n in range(300))
    objects.close()


@pytest.mark.parametrize("size", [1, 127, 128, 8192, 200_000])
def test_strange_fields_are_well_formed(size: int) -> None:
    said = driver._with(pb.HelloRequest(), {"pid": 7, "tier": 9}, size)
    (field,) = UnknownFieldSet(pb.HelloRequest.FromString(said.SerializeToString()))
    assert (field.field_number, len(field.data)) == (2047, size)
    assert said.pid == 7


def test_a_memfd_has_a_holder_when_no_process_has_a_higher_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of processes wrap. A campaign that had the highest one saw its fuzzers end at their first memfd."""
    monkeypatch.setattr(os, "getppid", lambda: 1 << 22)
    assert driver._holder("", 5) == (os.getpid(), 5)
    assert driver._holder("sibling", 5) == (1, 9)


@pytest.mark.parametrize("what", ["losses", "leaks", "faults"])
def test_a_report_with_anything_in_it_has_not_passed(what: str) -> None:
    report = Report(1)
    assert report.passed
    getattr(report, what).append("something")
    assert not report.passed
