"""What can go wrong in the server, and what callers are told.

    Exception
     |-- ProtocolViolation                PROTOCOL_VIOLATION    the caller's session takes no further part
     |-- ServerError
          |-- StartError                  (no call: the server does not start; run() returns its exit code)
          |    |-- AlreadyRunning
          |    `-- AddressRefused
          |-- ProtocolMismatch            PROTOCOL_MISMATCH
          |-- PageSizeMismatch            PAGE_SIZE_MISMATCH
          |-- UnknownSession              UNKNOWN_SESSION
          |-- LimitReached                LIMIT
          |-- BadToken                    BAD_TOKEN
          |-- BadConfig                   BAD_CONFIG
          |-- ShuttingDown                SHUTTING_DOWN
          |-- SegmentInUse                SEGMENT_IN_USE
          |-- InternalError               INTERNAL              also what everything unexpected becomes
          `-- ForeignObjectError          (one of:)
               |-- BadName                BAD_NAME
               |-- NotASegment            NOT_A_SEGMENT
               |-- BadSize                BAD_SIZE
               |-- WrongOwner             WRONG_OWNER
               `-- LeaseNotHeld           LEASE_NOT_HELD

`TABLE` is the only place that knows statuses and reasons. A client decides by the reason, which travels in
the trailing metadata by its name in memory.proto. The status is for tools that know nothing of pagefold, the
text for people.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, TypeVar

import grpc
import structlog
from grpc import StatusCode
from pagefold_proto.limits import REASON_KEY
from pagefold_proto.text import printable
from pagefold_proto.v1 import memory_pb2 as pb

_log = structlog.get_logger("pagefold.rpc")


class ProtocolViolation(Exception):
    """A client reported something that its own proposals and pages rule out."""


class ServerError(Exception):
    """Base of everything that the server raises on purpose."""


class StartError(ServerError):
    """The server cannot start. `exit_code` is what the process exits with."""

    exit_code = 1


class AlreadyRunning(StartError):
    """Another server has this socket."""

    exit_code = 3


class AddressRefused(StartError):
    """The address cannot be listened on, or only at the price of safety."""

    exit_code = 4


class ProtocolMismatch(ServerError):
    """The client speaks a protocol that this server does not."""


class PageSizeMismatch(ServerError):
    """Client and server disagree about the size of a page."""


class UnknownSession(ServerError):
    """No session has this token."""


class LimitReached(ServerError):
    """A limit of this server is reached."""


class BadToken(ServerError):
    """The bearer token is missing or wrong."""


class BadConfig(ServerError):
    """A configuration key or value was not accepted. The text names the key and the remedy."""


class ShuttingDown(ServerError):
    """The server is stopping."""


class SegmentInUse(ServerError):
    """Pages of the segment still map frames, or are about to."""


class InternalError(ServerError):
    """A fault of the server's own."""


class ForeignObjectError(ServerError):
    """An object that a client named cannot be used."""


class BadName(ForeignObjectError):
    """The name is not of the form that pagefold gives."""


class NotASegment(ForeignObjectError):
    """There is no such object, or it is not a plain shared-memory object."""


class BadSize(ForeignObjectError):
    """The object is smaller than claimed, or its size is out of bounds."""


class WrongOwner(ForeignObjectError):
    """The object belongs to another user."""


class LeaseNotHeld(ForeignObjectError):
    """No process holds the lease's lock."""


TABLE: dict[type[Exception], tuple[StatusCode, pb.Reason]] = {
    ProtocolMismatch: (StatusCode.FAILED_PRECONDITION, pb.REASON_PROTOCOL_MISMATCH),
    PageSizeMismatch: (StatusCode.FAILED_PRECONDITION, pb.REASON_PAGE_SIZE_MISMATCH),
    UnknownSession: (StatusCode.NOT_FOUND, pb.REASON_UNKNOWN_SESSION),
    BadName: (StatusCode.INVALID_ARGUMENT, pb.REASON_BAD_NAME),
    NotASegment: (StatusCode.FAILED_PRECONDITION, pb.REASON_NOT_A_SEGMENT),
    BadSize: (StatusCode.OUT_OF_RANGE, pb.REASON_BAD_SIZE),
    WrongOwner: (StatusCode.PERMISSION_DENIED, pb.REASON_WRONG_OWNER),
    LeaseNotHeld: (StatusCode.FAILED_PRECONDITION, pb.REASON_LEASE_NOT_HELD),
    LimitReached: (StatusCode.RESOURCE_EXHAUSTED, pb.REASON_LIMIT),
    ProtocolViolation: (StatusCode.INVALID_ARGUMENT, pb.REASON_PROTOCOL_VIOLATION),
    BadToken: (StatusCode.UNAUTHENTICATED, pb.REASON_BAD_TOKEN),
    BadConfig: (StatusCode.INVALID_ARGUMENT, pb.REASON_BAD_CONFIG),
    ShuttingDown: (StatusCode.UNAVAILABLE, pb.REASON_SHUTTING_DOWN),
    SegmentInUse: (StatusCode.FAILED_PRECONDITION, pb.REASON_SEGMENT_IN_USE),
    InternalError: (StatusCode.INTERNAL, pb.REASON_INTERNAL),
}


def status_of(error: Exception) -> tuple[StatusCode, str, str]:
    """What a caller is told of an error: status, reason, text. Texts of unexpected errors stay in the log."""
    for kind in type(error).__mro__:
        if kind in TABLE:
            status, reason = TABLE[kind]
            return status, pb.Reason.Name(reason), printable(str(error))
    status, reason = TABLE[InternalError]
    return (
        status,
        pb.Reason.Name(reason),
        f"{type(error).__name__}: a fault of the server's. Memory stays as it is; report what its log says",
    )


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> None:
    """Ends a call with an error from the table. Never returns."""
    status, reason, text = status_of(error)
    await context.abort(status, text, trailing_metadata=((REASON_KEY, reason),))


_Servicer = TypeVar("_Servicer")
_Request = TypeVar("_Request")
_Reply = TypeVar("_Reply")
_Method = Callable[[_Servicer, _Request, grpc.aio.ServicerContext[Any, Any]], Awaitable[_Reply]]


def reports_errors(method: _Method[_Servicer, _Request, _Reply]) -> _Method[_Servicer, _Request, _Reply]:
    """Turns every exception of a servicer's method into an error of the call, so that none ends the server."""

    @wraps(method)
    async def wrapper(self: _Servicer, request: _Request, context: grpc.aio.ServicerContext[Any, Any]) -> _Reply:
        try:
            return await method(self, request, context)
        except Exception as error:
            name = getattr(method, "__name__", "?")
            if status_of(error)[0] is StatusCode.INTERNAL:
                _log.exception("call failed", method=name)
            else:
                _log.info("call refused", method=name, reason=status_of(error)[1], detail=str(error)[:500])
            await abort(context, error)
            raise  # not reached: abort raises

    return wrapper
