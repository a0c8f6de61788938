"""For tests of programs that use pagefold, and for demonstrations: servers that neither find nor leave anything.

with embedded_server() as address:                            a real one, in a process of its own
client = pagefold.connect(address)

server = FakeServer()                                         none at all: memory works, and nothing is merged
client = pagefold.connect(transport=LocalTransport(server))   unless `server.replies` says so
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from pagefold_proto.addresses import MAX_SOCKET_PATH
from pagefold_proto.v1 import memory_pb2 as messages

from pagefold._errors import ServerUnavailable
from pagefold._launch.launch import NotLaunched, NotReady, launch, server_environment
from pagefold._launch.user_server import tail
from pagefold._session.outbox import COLUMNS
from pagefold._session.transport import LocalTransport, Method, Transport

__all__ = ["FakeServer", "LocalTransport", "Method", "Transport", "embedded_server", "messages"]

_SHORT: Final = "/tmp"  # noqa: S108 - the directory that is made there is private
_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 10.0
_IDLE_EXIT_SECONDS: Final = 20


@contextlib.contextmanager
def embedded_server(**settings: object) -> Iterator[str]:
    """Runs a server for the time of a `with` block, and gives its address.

    It is a process of its own, on a socket in a private temporary directory. If the program is killed, the server ends
    by itself 20 s after its last client. It needs `pagefold[server]`.

    Args:
        settings: the server's, by name; see docs/configuration.md. What the environment says is not used.

    Raises:
        ServerUnavailable: it does not start; the text has the end of its log.

    Example:
        >>> with embedded_server(cpu_ceiling_percent=100) as address:
        ...     with pagefold.connect(address) as client:
        ...         buf = client.allocate(1 << 20)
    """
    with tempfile.TemporaryDirectory(prefix="pagefold-", dir=_parent()) as directory:
        address, log = f"unix:{directory}/server.sock", f"{directory}/server.log"
        flags = {"idle_exit_seconds": _IDLE_EXIT_SECONDS, "log_format": "json", "log_file": log, **settings}
        log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        try:
            process = launch(address, flags, server_environment(False), log_fd, _START_SECONDS)
        except (NotLaunched, NotReady) as error:
            words = str(error) if isinstance(error, NotLaunched) else tail(log)
            raise ServerUnavailable(f"the embedded server does not start: {words}") from None
        finally:
            os.close(log_fd)
        try:
            yield address
        finally:
            process.end(_STOP_SECONDS)


def _parent() -> str | None:
    """Where the directory is made; None: where temporary files go. A long $TMPDIR leaves a socket's path no room."""
    longest = len("/pagefold-12345678/server.sock")
    return None if len(os.fsencode(tempfile.gettempdir())) + longest <= MAX_SOCKET_PATH else _SHORT


@dataclass
class FakeServer:
    """A server inside the process, for `LocalTransport`. It keeps what it is told, and answers what it is told to.

    It finds no equal pages by itself: what it is to have merged is put into `replies`. Messages are those of
    memory.proto (`messages`).

    Attributes:
        requests: all calls so far: method, request.
        replies: answers of the next calls of Exchange, first to last; then empty ones.
        failures: (method, exception), first to last: raised in place of an answer, once that method ("*": any) is
            called.
        lost: exceptions, first to last: raised once a call of Exchange was carried out, as if its answer got lost.
        settle: whether a settle() is answered at once.
        booked: events that Exchange brought, as (kind, segment, first, count, pool, frame, detail). A call that is made
            again books nothing.
        called: called with method and request before anything else; what it raises reaches the client.

    Example:
        >>> server = FakeServer()
        >>> with pagefold.connect(transport=LocalTransport(server)) as client:
        ...     report = client.settle(timeout=5)
        >>> [method for method, request in server.requests][0]
        'Hello'
    """

    requests: list[tuple[str, Any]] = field(default_factory=list)
    replies: deque[messages.ExchangeReply] = field(default_factory=deque)
    failures: deque[tuple[str, Exception]] = field(default_factory=deque)
    lost: deque[Exception] = field(default_factory=deque)
    settle: bool = True
    booked: list[tuple[int, ...]] = field(default_factory=list)
    called: Callable[[str, Any], None] | None = None
    _sequences: dict[bytes, int] = field(default_factory=dict, repr=False)  # by session
    _answer: messages.ExchangeReply = field(default_factory=messages.ExchangeReply, repr=False)

    def __call__(self, method: str, request: Any) -> Any:
        """Takes a request, and returns the reply."""
        self.requests.append((method, request))
        if self.called is not None:
            self.called(method, request)
        if self.failures and self.failures[0][0] in (method, "*"):
            raise self.failures.popleft()[1]
        if method == "Hello":
            session = len(self._sequences).to_bytes(16, "big")
            self._sequences[session] = 0
            return messages.HelloReply(
                session=session, max_batch_pages=4096, max_message_bytes=1 << 20, poll_millisecs=50
            )
        if method == "Exchange":
            return self._exchange(request)
        reply: dict[str, type[Any]] = {
            "AddSegment": messages.AddSegmentReply,
            "DropSegment": messages.DropSegmentReply,
            "Bye": messages.ByeReply,
        }
        return reply[method]()

    def _exchange(self, request: messages.ExchangeRequest) -> messages.ExchangeReply:
        if request.sequence != self._sequences[request.session]:
            assert request.sequence == self._sequences[request.session] + 1, "sequence numbers count up"
            self._sequences[request.session] = request.sequence
            length = len(request.events.kind)
            columns = [list(getattr(request.events, name)) or [0] * length for name in COLUMNS]
            self.booked += list(zip(*columns, strict=True))
            self._answer = self.replies.popleft() if self.replies else messages.ExchangeReply()
            if request.settling and self.settle:
                report = messages.SettleReport(settling=request.settling, settled=True, passes=1)
                self._answer.settle_report.MergeFrom(report)
        if self.lost:
            raise self.lost.popleft()
        return self._answer

    def of(self, method: str) -> list[Any]:
        """The requests of one method, first to last."""
        return [request for name, request in self.requests if name == method]
