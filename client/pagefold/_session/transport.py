"""Calls to the server. They are unary and short. The caller makes each in a turn (`pagefold_core.Turn`); forks wait.

A transport has two methods, so that a test can bring its own (`LocalTransport`). Nothing here retries, knows sessions,
or starts servers. What a failed call means is in `channel.py`.

gRPC writes, polls and closes its descriptors by number. A program that closes all descriptors (daemon libraries do)
closes gRPC's, and its next files get the numbers. So each channel has a *witness*, an open descriptor of the library's.
Once a witness was closed, this process and its children call gRPC no more. And gRPC is set up to do nothing between
calls: its threads sleep then, and touch no descriptor.

Before gRPC is used, two more things are checked. Its threads can be started: gRPC ends the process where one cannot.
And gRPC works after the fork that this process comes from: else its calls never end, whatever their time-out.

A forked child leaves the parent's connection alone: closing or finalizing it would touch gRPC's threads, which do not
exist there. The session's thread, which does not exist there either, holds the reference to it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

import grpc
import pagefold_core
from google.protobuf.message import DecodeError, Message
from pagefold_proto.addresses import Address
from pagefold_proto.descriptor import Descriptor
from pagefold_proto.v1 import memory_pb2 as pb

from pagefold._errors import DescriptorsClosed, ForkedClient, OutOfThreads, ServerFault, ServerUnavailable
from pagefold._process import threads
from pagefold._session.channel import Failure, bearer, open_channel, reason_word

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)

MAX_MESSAGE_BYTES: Final = 4 << 20
"""Most bytes of a message: three times the largest reply. Requests are far below."""
WITNESS: Final = "pagefold-witness"
_CLOSED: Final = (
    "this program has closed descriptors that are not its own, gRPC's among them: this process can reach no server any "
    "more, and nothing more is merged; memory keeps its bytes. Close descriptors before pagefold.connect(), or exec "
    "afterwards"
)

MORE_THREADS: Final = (
    "They are bounded by the user's processes (ulimit -u), by the container's or service's (pids.max, --pids-limit, "
    "TasksMax=), and by memory: raise that bound, or have fewer threads"
)
ATTEMPT_SECONDS: Final = 5.0
"""Time for a connection, which may outlast a call: on a busy machine gRPC's least, 50 ms, are never enough."""
_FORK_SUPPORT: Final = "GRPC_ENABLE_FORK_SUPPORT"
FORK_SUPPORT_OFF: Final = ("0", "f", "false", "n", "no")  # as gRPC reads it; anything else leaves it on

# One for each channel that this process has made or inherited.
_witnesses: dict[object, Descriptor] = {}


@dataclass(frozen=True, slots=True)
class Method(Generic[Q, R]):
    """One of the five calls, with the types of its request and reply."""

    name: str
    request: type[Q]
    reply: type[R]

    @property
    def path(self) -> str:
        """The method's name in gRPC."""
        return f"/pagefold.v1.Memory/{self.name}"


HELLO: Final = Method("Hello", pb.HelloRequest, pb.HelloReply)
ADD_SEGMENT: Final = Method("AddSegment", pb.AddSegmentRequest, pb.AddSegmentReply)
EXCHANGE: Final = Method("Exchange", pb.ExchangeRequest, pb.ExchangeReply)
DROP_SEGMENT: Final = Method("DropSegment", pb.DropSegmentRequest, pb.DropSegmentReply)
BYE: Final = Method("Bye", pb.ByeRequest, pb.ByeReply)


class Transport(Protocol):
    """A way to make calls to a server."""

    def call(self, method: Method[Q, R], request: Q, timeout: float) -> R:
        """Makes a call and waits for its reply.

        Raises:
            ServerUnavailable: no server answered within `timeout` seconds. The call may have been carried out.
            ServerRefused: the server refused the call.
        """

    def close(self) -> None:
        """Ends the connection. Closing twice is fine."""


class LocalTransport:
    """A server inside this process, for tests: one function that takes a request and returns the reply.

    `pagefold.testing.FakeServer` is such a function.

    Args:
        handler: called with the method's name and a copy of the request. Its exceptions reach the caller.
    """

    def __init__(self, handler: Callable[[str, Any], Message]) -> None:
        self._handler = handler
        self.closed = False

    def call(self, method: Method[Q, R], request: Q, timeout: float) -> R:
        """Hands a copy of the request to the handler, and returns a copy of its reply."""
        sent = method.request.FromString(request.SerializeToString())
        return method.reply.FromString(self._handler(method.name, sent).SerializeToString())

    def close(self) -> None:
        """Notes that it was closed."""
        self.closed = True


class GrpcTransport:
    """A gRPC channel.

    Args:
        address: where the server listens.
        token: sent with every call, as a bearer token; TCP only.
        ca: file with the certificate that the server's was signed with. Without it, TCP is not encrypted.

    Raises:
        DescriptorsClosed: gRPC's descriptors were closed in this process.
        ForkedClient: gRPC does not work after the fork that this process comes from.
        OutOfThreads: gRPC's threads cannot be started.
        OSError: the process has no descriptor left, or `ca` cannot be read.
    """

    def __init__(self, address: Address, token: str | None = None, ca: str | os.PathLike[str] | None = None) -> None:
        options = (
            ("grpc.use_local_subchannel_pool", 1),  # shares nothing with the program's own channels
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.http2.bdp_probe", 0),  # a ping, some time after a call
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", round(ATTEMPT_SECONDS * 1000)),
            ("grpc.max_reconnect_backoff_ms", 2000),
        )
        self._address = address
        self._metadata = bearer(token)
        if not _is_intact():
            raise DescriptorsClosed(_CLOSED)
        if why := why_not_after_fork():
            raise ForkedClient(why)
        _ensure_threads()
        certificate = None
        if ca is not None:
            with open(ca, "rb") as file:
                certificate = file.read()
        self._key = object()
        _witnesses[self._key] = Descriptor(os.memfd_create(WITNESS, os.MFD_CLOEXEC))
        self._channel: grpc.Channel | None = open_channel(address, options, certificate)
        self._calls: dict[str, Callable[..., Any]] = {}

    def call(self, method: Method[Q, R], request: Q, timeout: float) -> R:
        """Makes a call over the channel, and waits for its reply."""
        channel = self._channel
        if not _is_intact():
            self._forget()
            raise DescriptorsClosed(_CLOSED)
        if channel is None:
            raise ServerUnavailable("the connection was closed")
        call = self._calls.get(method.name)
        if call is None:
            call = channel.unary_unary(method.path, method.request.SerializeToString, bytes)
            self._calls[method.name] = call
        try:
            seconds = _by_grpcs_clock(timeout)
            reply: bytes = call(request, timeout=seconds, metadata=self._metadata)
        except grpc.RpcError as error:
            raise Failure.of(error).exception(self._address) from error
        except ValueError as error:  # what grpc raises for a channel that another thread has closed
            raise ServerUnavailable(f"the connection was closed: {error}") from error
        try:
            return method.reply.FromString(reply)  # here: gRPC would print a traceback on the program's stderr
        except DecodeError as error:
            raise ServerFault(
                reason_word(pb.REASON_INTERNAL),
                f"the server's answer cannot be read: {error} (server at {self._address})",
            ) from error

    def close(self) -> None:
        """Closes the channel, unless its descriptors are gRPC's no more."""
        if not _is_intact():
            self._forget()
        channel, self._channel = self._channel, None
        self._calls.clear()
        if channel is not None:
            channel.close()
            if witness := _witnesses.pop(self._key, None):
                witness.close()

    def _forget(self) -> None:
        """Keeps the channel from ever being finalized, even at exit: gRPC's descriptors are other files now."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object((self._channel, self._calls)))
        self._channel, self._calls = None, {}


def _by_grpcs_clock(timeout: float) -> float:
    """The number that has gRPC wait for `timeout` seconds.

    gRPC's Python half adds it to `time.time()`, and its C half asks the kernel. If a test has stopped Python's clock,
    every deadline is over. Only gRPC's own function tells which clock it reads.
    """
    moment_in = getattr(sys.modules.get("grpc._channel"), "_deadline", None)
    if moment_in is None:
        return timeout
    return timeout + threads.wall_clock() - float(moment_in(0.0))


# The process in which a channel was made first, and whether gRPC was told to be of no use in its children.
_first_used: tuple[int, bool] | None = None


def why_not_after_fork() -> str:
    """Why gRPC does not work in this process, which was forked from one that used it; empty if it works."""
    if _first_used is None:
        return ""
    pid, is_off = _first_used
    if pid == os.getpid() or not is_off:
        return ""
    return (
        "this process can reach no server: it was forked from one that had connected, and with "
        f"{_FORK_SUPPORT} off gRPC's calls would hang here for ever. Leave {_FORK_SUPPORT} unset, or connect in the "
        "children only. Inherited memory is a snapshot, and keeps its bytes"
    )


def _ensure_threads() -> None:
    """Makes sure that the threads of a channel and of its session can be started.

    Raises:
        OutOfThreads: they cannot.
    """
    global _first_used
    count = 3  # the session's, the warden's, and one more of gRPC's if all others are busy
    if _first_used is None:
        # gRPC's pool has as many as there are processors, within bounds; beside it are a timer and an overseer.
        count += min(max(os.sysconf("SC_NPROCESSORS_CONF"), 4), 16) + 2
    if not pagefold_core.can_start(count):
        raise OutOfThreads(
            f"the {count} threads of a connection cannot be started, and gRPC would end this process for lack of one. "
            f"{MORE_THREADS}"
        )
    if _first_used is None:
        _first_used = os.getpid(), os.environ.get(_FORK_SUPPORT, "").strip().lower() in FORK_SUPPORT_OFF


def _is_intact() -> bool:
    """Whether gRPC's descriptors are still gRPC's, by its witnesses."""
    # In this order: another thread takes a witness out of the table before it closes it.
    return all(witness.is_there or key not in _witnesses for key, witness in list(_witnesses.items()))
