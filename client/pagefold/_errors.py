"""What can go wrong in the client, as a tree.

    PagefoldError
     |-- ServerUnavailable       (ConnectionError)  no server answers, or it is stopping
     |    `-- DescriptorsClosed                      the program closed gRPC's descriptors: exec, or start anew
     |-- TlsFailed               (ConnectionError)  a server answers without the certificate that was asked for
     |-- ServerRefused                              the server said no; `reason` is its name for why
     |    |-- IncompatibleServer                    another protocol, another page size: install matching versions
     |    |-- AccessDenied                          a wrong token, or memory of another user
     |    |-- LimitReached                          a limit of the server: ask its operator
     |    |-- SessionLost                           the server does not know this client (any more)
     |    `-- ServerFault                           a fault of the server's own: its log says more
     |-- ClientClosed                               the client was closed before
     |-- ForkedClient                               the client belongs to the parent of this process
     |-- OutOfSharedMemory       (MemoryError)      /dev/shm, descriptors or address space are used up
     |-- OutOfThreads            (RuntimeError)     no thread can be started; gRPC would end the process for that
     |-- BarrierUnavailable                         this machine does not allow the barrier that was asked for
     `-- TrackerUnavailable                         this machine does not have the tracker that was asked for

Wrong arguments are ValueError and TypeError, as everywhere. One table, in `_session/channel.py`, says which reason of
the server becomes which exception. A program's memory stays usable, whatever is raised.
"""

from __future__ import annotations


class PagefoldError(Exception):
    """Base of all exceptions of pagefold, except those for wrong arguments."""


class ServerUnavailable(PagefoldError, ConnectionError):
    """No server answers at the address. The text says how to start one."""


class TlsFailed(PagefoldError, ConnectionError):
    """A server listens at the TCP address, and its certificate cannot be trusted: see `connect(ca=...)`."""


class DescriptorsClosed(ServerUnavailable):
    """The program has closed gRPC's descriptors: this process reaches no server any more. Memory stays usable."""


class ServerRefused(PagefoldError):
    """The server refused a call.

    Attributes:
        reason: its stable name: "limit" for REASON_LIMIT of `Reason` in memory.proto; where the server gave none, the
            name of gRPC's status, for example "unimplemented".
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(reason, text)
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[1])


class IncompatibleServer(ServerRefused):
    """Client and server have different versions: install the same version of pagefold on both sides."""


class AccessDenied(ServerRefused):
    """The server refuses this client, or this memory: the token is wrong, or another user owns the memory."""


class LimitReached(ServerRefused):
    """The server, or this user, has as many clients, segments or bytes as the server's operator allows."""


class SessionLost(ServerRefused):
    """The server has no session for this client: the server was restarted, or it excluded the client."""


class ServerFault(ServerRefused):
    """The server failed. Its log says how."""


class ClientClosed(PagefoldError):
    """The client was closed. Its buffers stay usable; connect again to allocate more."""


class ForkedClient(PagefoldError):
    """This process was forked from the client's, and the client cannot connect here. Its memory is a snapshot."""


class OutOfSharedMemory(PagefoldError, MemoryError):
    """There is no room for memory, or for taking it back. The text names sizes and remedy."""


class OutOfThreads(PagefoldError, RuntimeError):
    """The threads of a connection cannot be started. The text says what bounds their number."""


class BarrierUnavailable(PagefoldError):
    """This machine does not allow the barrier that was asked for. The text says why."""


class TrackerUnavailable(PagefoldError):
    """This machine does not have the tracker that was asked for. The text says why."""
