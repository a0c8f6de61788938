"""The command line as a whole: help for everything, exit codes, and words instead of tracebacks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import grpc
import pagefold
import pytest
from pagefold.cli import app as cli
from pagefold.cli.admin import Admin, parse_address
from pagefold.cli.exits import CommandError, ExitCode
from pagefold.cli.serve import pairs
from typer.main import get_command


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pagefold", *words])
    return cli.run()


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield words, command
    for name, sub in getattr(command, "commands", {}).items():
        yield from commands(sub, (*words, name))


ALL = list(commands(get_command(cli.app)))


@pytest.mark.parametrize("words", [words for words, _ in ALL], ids=" ".join)
def test_help_of_everything_has_exit_codes(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *words, "--help") == 0
    assert "3 no server" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", [c for _, c in ALL if not hasattr(c, "commands")], ids=lambda c: c.name)
def test_every_command_shows_examples(command: Any) -> None:
    assert "\nExample" in command.help
    assert f"pagefold {command.name}" in command.help or f" {command.name}" in command.help


@pytest.mark.parametrize("command", [c for _, c in ALL if not hasattr(c, "commands")], ids=lambda c: c.name)
def test_every_command_but_the_servers_has_json(command: Any) -> None:
    flags = {flag for param in command.params for flag in param.opts}
    assert ("--json" in flags) == (command.name != "serve")
    assert ("--address" in flags) == (command.name != "demo")


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"pagefold {pagefold.__version__}\n"
    try:
        assert version("pagefold") == pagefold.__version__
    except PackageNotFoundError:
        pytest.skip("pagefold is not installed here, so there is no metadata to compare with")


@pytest.mark.parametrize(
    "words", [["nonsense"], ["status", "--nonsense"], ["config", "set"], ["demo", "--workers", "1"]]
)
def test_usage_errors_are_2(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, *words) == ExitCode.USAGE


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["status", "--address", "nowhere"], "write unix:/path/server.sock or tcp:HOST:PORT"),
        (["status", "--watch", "--domains"], "do not go together"),
        (["config", "set", "run"], "write KEY=VALUE"),
        (["serve", "--set", "sleep=1"], "there is no such setting"),
        (["serve", "--set", "run=9"], "run: "),
        (["serve", "--config", "/nonexistent.toml"], "No such file"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    words: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *words) == ExitCode.USAGE
    said = capsys.readouterr()
    assert said.out == ""
    assert text in said.err
    assert said.err.count("\n") == 1


def test_no_server_is_3_and_says_how_to_start_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PAGEFOLD_ADDRESS", f"unix:{tmp_path}/none.sock")
    for words in (["status"], ["status", "--watch"], ["clients"], ["scan", "now"], ["config", "get"]):
        assert run(monkeypatch, *words) == ExitCode.NO_SERVER
        said = capsys.readouterr().err
        assert "pagefold serve" in said
        assert f"{tmp_path}/none.sock" in said


def test_ctrl_c_is_130_without_a_word(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Admin, "status", interrupt)
    assert run(monkeypatch, "status") == ExitCode.INTERRUPTED
    assert "Traceback" not in capsys.readouterr().err


def test_without_typer_there_is_one_line_with_the_remedy() -> None:
    code = "import sys; sys.modules['typer'] = None; from pagefold.cli import main; main()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr == "pagefold: the command line needs typer: pip install 'pagefold[server]'\n"


def test_the_library_imports_nothing_of_the_command_line() -> None:
    code = "import sys, pagefold; print({'typer', 'rich', 'structlog', 'pydantic', 'numpy'} & set(sys.modules))"
    told = subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60)
    assert told == "set()\n"


def test_assignments() -> None:
    assert pairs(["a=1", "b-c = x=y"]) == {"a": "1", "b_c": "x=y"}
    with pytest.raises(CommandError, match="KEY=VALUE"):
        pairs(["=1"])


def test_empty_address_is_this_users_own() -> None:
    assert parse_address("").scheme == "unix"


class Refusal(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str = "", reason: str = "") -> None:
        self._told = code, details, reason

    def code(self) -> grpc.StatusCode:
        return self._told[0]

    def details(self) -> str:
        return self._told[1]

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("pagefold-reason", self._told[2]),) if self._told[2] else ()


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (Refusal(grpc.StatusCode.UNAVAILABLE), ExitCode.NO_SERVER, "pagefold serve"),
        (Refusal(grpc.StatusCode.DEADLINE_EXCEEDED), ExitCode.NO_SERVER, "pagefold serve"),
        (Refusal(grpc.StatusCode.UNAVAILABLE, "x", "REASON_SHUTTING_DOWN"), ExitCode.NO_SERVER, "try again"),
        (Refusal(grpc.StatusCode.UNAUTHENTICATED, "x", "REASON_BAD_TOKEN"), ExitCode.FAILED, "--token-file"),
        (Refusal(grpc.StatusCode.INVALID_ARGUMENT, "run: no", "REASON_BAD_CONFIG"), ExitCode.USAGE, "run: no"),
        (Refusal(grpc.StatusCode.UNIMPLEMENTED, "Method not found"), ExitCode.FAILED, "no pagefold server"),
        (Refusal(grpc.StatusCode.INTERNAL), ExitCode.FAILED, "log says more"),
    ],
)
def test_refusals_say_what_to_do(error: Refusal, code: ExitCode, text: str) -> None:
    with Admin("unix:/tmp/x/y.sock") as admin:
        told = admin._failed(error)
    assert told.code == code
    assert text in str(told)
