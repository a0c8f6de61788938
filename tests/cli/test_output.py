"""What commands print: numbers, sizes and times for people, and messages as JSON."""

from __future__ import annotations

import json

import pytest
from pagefold.cli import output
from pagefold.cli.output import count, duration, pages, plain
from pagefold.cli.status import line, render
from pagefold_proto.v1 import admin_pb2 as pb
from pagefold_proto.v1 import memory_pb2


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59, "59 s"),
        (60, "1 min 0 s"),
        (3725, "1 h 2 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_count_and_pages() -> None:
    assert [count(n, "page") for n in (0, 1, 12345)] == ["0 pages", "1 page", "12,345 pages"]
    assert count(2, "pass", "passes") == "2 passes"
    assert (pages(0, 4096), pages(256, 4096)) == ("0", "256 (1 MiB)")


def test_messages_become_json_with_every_field_and_real_numbers() -> None:
    info = pb.ClientInfo(client=3, bytes=1 << 40, tier=memory_pb2.TIER_UFFD, gauges=memory_pb2.Gauges(mappings=7))
    told = json.loads(json.dumps(plain(info)))
    assert told["bytes"] == 1 << 40
    assert (told["tier"], told["tracker"]) == ("uffd", "unspecified")
    assert told["gauges"]["mappings"] == 7
    assert set(told) == {field.name for field in pb.ClientInfo.DESCRIPTOR.fields}


def test_repeated_fields_become_lists() -> None:
    assert plain(pb.ListDomainsReply()) == {"domains": [], "tenants": []}
    reply = pb.ListDomainsReply(domains=[pb.DomainInfo(uid=1), pb.DomainInfo(uid=2)])
    assert [domain["uid"] for domain in plain(reply)["domains"]] == [1, 2]


def test_an_enum_of_the_future_stays_a_number() -> None:
    assert plain(pb.ClientInfo(tier=77))["tier"] == 77  # type: ignore[arg-type]


def test_json_is_one_line_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({"a": [1, 2]})
    assert capsys.readouterr().out == '{"a": [1, 2]}\n'


def test_status_for_people_has_the_trouble_in_it() -> None:
    status = pb.Status(
        page_size=4096, clients=1, saved_bytes=4096, trouble="no room", counters=pb.Counters(full_scans=1)
    )
    assert line(status).endswith("trouble: no room")
    assert "scanned 0 in 1 pass, 1 client," in line(status)
    console = output.console()
    with console.capture() as shown:
        console.print(render(status))
    assert "saves 4 KiB" in shown.get()
    assert "trouble: no room" in shown.get()
