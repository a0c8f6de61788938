"""What strangers call themselves, in front of an operator: shown, escaped, and nothing that a terminal obeys."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from pagefold._session import channel
from pagefold.cli import app as cli
from pagefold.cli import doctor
from pagefold.cli.admin import Admin
from pagefold.cli.checks import Check
from pagefold.cli.exits import CommandError
from pagefold_proto.text import printable
from pagefold_proto.v1 import admin_pb2 as pb
from pagefold_proto.v1.memory_pb2 import SettleReport

HOSTILE = "[/x][bold]b[/bold][link=http://x]y[/link]:smile:\x1b[31m\x1b]0;t\x07\x1b[2J\n\r\t\x9b1m\u202e\u2028e"
SHOWN = printable(HOSTILE)

COMMANDS = [
    ("status",),
    ("status", "--domains"),
    ("status", "--watch"),
    ("clients",),
    ("clients", "--segments"),
    ("config", "get"),
    ("config", "get", HOSTILE),
    ("config", "set", f"{HOSTILE}=1"),
    ("scan", "now"),
    ("scan", "start"),
    ("stop",),
    ("fsck",),
    ("fsck", "--names"),
    ("doctor",),
]


def filled(message: Message) -> Any:
    """The message with that text in every field that takes one, and one entry in every list."""
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if isinstance(value, str):
            setattr(message, field.name, HOSTILE)
        elif isinstance(value, Message):
            filled(value).SetInParent()
        elif field.message_type is not None:
            filled(value.add())
        elif not isinstance(value, (int, float, bytes)):
            value.append(HOSTILE if field.type == field.TYPE_STRING else 0)
    return message


@pytest.fixture
def strange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that says nothing but this."""

    def call(self: Admin, name: str, request: Message, reply: type[Message], timeout: float = 0) -> Any:
        answer = filled(reply())
        if isinstance(answer, pb.Status):
            answer.run, answer.page_size, answer.protocol, answer.log_lines_lost = 1, 4096, 1, 3
        if isinstance(answer, pb.ScanNowReply):
            answer.report.CopyFrom(SettleReport(settled=True))
        return answer

    def stream(self: Admin, name: str, request: Message, reply: type[Message]) -> Iterator[Any]:
        if reply is pb.Status:
            yield call(self, name, request, reply)
            return
        for kind in ("finding", "name", "progress", "summary"):
            news = pb.FsckNews()
            filled(getattr(news, kind)).SetInParent()
            yield news

    monkeypatch.setattr(Admin, "_call", call)
    monkeypatch.setattr(Admin, "_stream", stream)
    monkeypatch.setattr(doctor, "machine_checks", lambda *_: [Check(HOSTILE, "fail", HOSTILE, HOSTILE, HOSTILE)])


@pytest.mark.usefixtures("strange")
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words)[:20])
@pytest.mark.parametrize("as_json", [False, True], ids=["people", "json"])
def test_nothing_of_it_reaches_a_terminal(
    words: tuple[str, ...], as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Escape sequences did, and markup ended `clients` with a traceback."""
    monkeypatch.setattr(sys, "argv", ["pagefold", *words, *(["--json"] if as_json else [])])
    monkeypatch.setenv("COLUMNS", "5000")
    monkeypatch.setenv("PAGEFOLD_ADDRESS", "unix:/nowhere/x.sock")
    cli.run()
    said = capsys.readouterr()
    for line in [*said.out.split("\n"), *said.err.split("\n")]:
        assert line.isprintable(), line
    if as_json and said.out:
        json.loads(said.out)
    elif said.out and words[0] not in ("scan", "stop"):
        assert SHOWN in said.out, "shown as it is, markup included"


def test_an_error_of_a_server_is_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    cli.print_error(str(CommandError(HOSTILE)))
    assert capsys.readouterr().err == f"pagefold: {SHOWN}\n"
    for status in grpc.StatusCode:
        assert str(channel.Failure(status, "", HOSTILE).exception("unix:/x")).isprintable()


def test_what_is_printable() -> None:
    assert SHOWN.isprintable()
    assert printable(SHOWN) == SHOWN
    assert "\\x1b[31m" in SHOWN
    assert printable("caf\u00e9 \u65e5\u672c [x] \\n") == "caf\u00e9 \u65e5\u672c [x] \\n"
    assert printable("\udce9\u202e\U000e0001") == "\\udce9\\u202e\\U000e0001"
