"""What a fuzzer says follows from its seed and from nothing else, and it says everything that it can say."""

from __future__ import annotations

import itertools
import os
from collections import Counter

import pytest
from fuzz import driver
from fuzz.calls import COSTLY, SESSIONS, Call, Script
from fuzz.campaign import Report
from google.protobuf.unknown_fields import UnknownFieldSet
from pagefold_proto.v1 import memory_pb2 as pb


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
        *("hello", "hello_again", "bye", "hang_up", "add", "drop", "bend", "bell", "plant", "exchange", "garble")
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
    assert not [call for call in made if call.what == "plant"]
    assert max(call.said["pages"] for call in made if call.what == "add") <= 300
    assert "lease" not in "".join(str(call.said.get("how", "")) + str(call.said.get("plant", "")) for call in made)
    assert not [call for call in made if call.said.get("lie") == "leased"]


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
