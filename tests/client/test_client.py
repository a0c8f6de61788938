"""What a program sees of the package: names, errors, reports, and what importing it costs."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NoReturn

import grpc
import pagefold
import pytest
from pagefold import _errors
from pagefold._options import barriers
from pagefold._options.options import choice
from pagefold._reports import SettleReport
from pagefold._session import channel
from pagefold_proto import addresses, obstacle_table
from pagefold_proto.text import human
from pagefold_proto.v1 import memory_pb2 as pb

ROOT = Path(__file__).parents[2]
HEAVY = ["typer", "rich", "structlog", "pydantic", "numpy", "xxhash", "grpc_health", "grpc_reflection"]


def test_what_is_public_is_sorted_and_there() -> None:
    assert pagefold.__all__ == sorted(pagefold.__all__)
    for name in pagefold.__all__:
        assert getattr(pagefold, name) is not None
    public = {name for name, value in vars(_errors).items() if isinstance(value, type)}
    assert public <= set(pagefold.__all__), "every exception can be caught by name"


def test_the_version_is_that_of_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert pagefold.__version__ == project["version"]


def test_a_label_that_is_no_text_is_refused_with_words() -> None:
    with pytest.raises(ValueError, match="is no text"):
        pagefold.connect("unix:/nowhere/x.sock", label="caf\udce9")


def test_importing_it_imports_nothing_heavy() -> None:
    # grpc imports its companions, where they are installed, all by itself.
    code = f"import sys, grpc; had = set(sys.modules); import pagefold; print({{*{HEAVY}}} & set(sys.modules) - had)"
    assert subprocess.check_output([sys.executable, "-W", "error", "-c", code], text=True).strip() == "set()"


def test_every_reason_has_an_exception_and_every_exception_of_the_server_a_reason() -> None:
    assert set(channel.ERRORS) == set(pb.Reason.values())
    server_side = {e for e in channel.ERRORS.values() if issubclass(e, _errors.ServerRefused)}
    assert server_side == {_errors.ServerRefused, *_errors.ServerRefused.__subclasses__()}


def test_the_servers_half_of_the_table_is_understood() -> None:
    errors = pytest.importorskip("pagefold_server.errors")
    for status, reason in errors.TABLE.values():
        name = pb.Reason.Name(reason)
        error = channel.Failure(status, name, "why").exception("unix:/x")
        assert type(error) is channel.ERRORS[reason]
        word = channel.reason_word(reason)
        assert getattr(error, "reason", word) == word == name.removeprefix("REASON_").lower()
    assert errors.REASON_KEY == channel.REASON_KEY


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, "", _errors.ServerUnavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", _errors.ServerUnavailable),
        (grpc.StatusCode.UNIMPLEMENTED, "", _errors.ServerFault),
        (grpc.StatusCode.UNKNOWN, "REASON_OF_THE_FUTURE", _errors.ServerFault),
        (grpc.StatusCode.UNAVAILABLE, "REASON_SHUTTING_DOWN", _errors.ServerUnavailable),
    ],
)
def test_failures_without_a_known_reason(
    status: grpc.StatusCode, reason: str, kind: type[_errors.PagefoldError]
) -> None:
    error = channel.Failure(status, reason, "details").exception("unix:/x")
    assert type(error) is kind
    assert "details" in str(error)
    assert "unix:/x" in str(error)


@pytest.mark.parametrize(("reason", "silent"), [("", True), ("REASON_SHUTTING_DOWN", False)])
def test_only_a_server_that_does_not_answer_is_said_not_to(
    reason: str, silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that was stopping, and said so, connect() said that it does not answer."""

    class Refusal(grpc.RpcError):
        code, details, trailing_metadata = (
            staticmethod(lambda: grpc.StatusCode.UNAVAILABLE),
            staticmethod(lambda: "so it says"),
            staticmethod(lambda: ((channel.REASON_KEY, reason),) if reason else ()),
        )

    def refuse(method: str, request: object) -> NoReturn:
        raise channel.Failure.of(Refusal()).exception("unix:/x") from Refusal()

    monkeypatch.setattr(addresses, "stuck", lambda where: f"process 7 listens at {where}")
    with pytest.raises(_errors.ServerUnavailable, match="so it says") as caught:
        pagefold.connect(transport=pagefold.LocalTransport(refuse))
    assert ("process 7" in str(caught.value)) == silent
    assert ("pagefold serve" in str(caught.value)) != silent


def test_the_tree_at_the_top_of_the_file_is_the_tree() -> None:
    assert _errors.__doc__ is not None
    for name in (n for n, v in vars(_errors).items() if isinstance(v, type)):
        assert name in _errors.__doc__
    assert issubclass(_errors.OutOfSharedMemory, MemoryError)
    assert issubclass(_errors.ServerUnavailable, ConnectionError)


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(_errors.LimitReached("limit", "too many")))
    assert (type(error), error.reason, str(error)) == (_errors.LimitReached, "limit", "too many")
    assert str(pickle.loads(pickle.dumps(_errors.OutOfSharedMemory("full")))) == "full"


def test_reports_are_plain_values_on_request() -> None:
    report = SettleReport(settled=True, reason="", seconds=0.5, pages_sharing=3, zero_pages=2)
    assert report.saved_bytes == 5 * 4096
    assert report.as_dict()["saved_bytes"] == report.saved_bytes
    assert re.search(r"settled=True, .*pages_sharing=3, .*saved_bytes=20480\)$", repr(report))
    assert pickle.loads(pickle.dumps(report)) == report
    with pytest.raises(AttributeError):
        report.settled = False  # type: ignore[misc]


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (64 << 20, "64 MiB"),
        (1 << 62, "4 EiB"),
    ],
)
def test_sizes_for_people(nbytes: int, text: str) -> None:
    assert human(nbytes) == text


class Features:
    """Of a kernel that has all, unless told otherwise."""

    wp_shmem = True
    userfaultfd_error = "EPERM"

    def __init__(self, userfaultfd: str = "full", wp_shmem: bool = True) -> None:
        self.userfaultfd, self.wp_shmem = userfaultfd, wp_shmem


def test_the_barrier_is_what_was_asked_for_or_an_error() -> None:
    choose = barriers.choose
    assert choose(None, Features()) == ("uffd", None)  # type: ignore[arg-type]
    assert choose("user", Features("user-mode")) == ("user", None)  # type: ignore[arg-type]
    assert choose(None, Features("user-mode")) == ("off", pb.OBSTACLE_KIND_BARRIER)  # type: ignore[arg-type]
    assert choose(None, Features(wp_shmem=False)) == ("off", pb.OBSTACLE_KIND_KERNEL)  # type: ignore[arg-type]
    assert choose("off", Features()) == ("off", pb.OBSTACLE_KIND_OFF)  # type: ignore[arg-type]
    remedy = obstacle_table.TABLE[pb.OBSTACLE_KIND_BARRIER].remedy
    assert "vm.unprivileged_userfaultfd=1" in remedy
    assert "barrier='user'" in remedy, "README alone named it"
    assert "EFAULT" in remedy, "and never without its price"
    for barrier, features in [
        ("uffd", Features("user-mode")),
        ("user", Features("none")),
        ("uffd", Features(wp_shmem=False)),
    ]:
        with pytest.raises(pagefold.BarrierUnavailable, match=r"EPERM|5\.19"):
            choose(barrier, features)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'uffd', 'user' or 'off'"):
        choice("barrier", "yes", {}, barriers.BARRIERS)
