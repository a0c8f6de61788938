"""The table of errors is total: every reason has exactly one exception, and every refusal has a reason."""

from __future__ import annotations

import inspect

import pytest
from grpc import StatusCode
from pagefold_proto.v1 import memory_pb2 as pb
from pagefold_server import errors
from pagefold_server.errors import ProtocolViolation


def test_each_reason_is_mapped_by_exactly_one_exception() -> None:
    mapped = [reason for _, reason in errors.TABLE.values()]
    assert sorted(mapped) == sorted(set(pb.Reason.values()) - {pb.REASON_UNSPECIFIED})


def test_each_refusal_is_in_the_table_and_in_the_tree() -> None:
    refusals = {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.ServerError)
        and not issubclass(kind, errors.StartError)
        and not kind.__subclasses__()
    }
    assert refusals | {ProtocolViolation} == set(errors.TABLE)
    assert errors.__doc__ is not None
    for kind, (_, reason) in errors.TABLE.items():
        assert f"- {kind.__name__} " in errors.__doc__.replace("engine.", "")
        assert pb.Reason.Name(reason).removeprefix("REASON_") in errors.__doc__


def test_what_callers_are_told() -> None:
    assert errors.status_of(errors.BadName("x")) == (StatusCode.INVALID_ARGUMENT, "REASON_BAD_NAME", "x")
    status, reason, text = errors.status_of(ZeroDivisionError("a secret"))
    assert (status, reason) == (StatusCode.INTERNAL, "REASON_INTERNAL")
    assert "secret" not in text


@pytest.mark.parametrize("kind", [errors.AlreadyRunning, errors.AddressRefused])
def test_exit_codes_differ_from_those_of_python_and_of_bad_usage(kind: type[errors.StartError]) -> None:
    assert kind.exit_code not in (0, 1, 2)
