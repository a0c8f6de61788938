"""What can go wrong in the client, as a tree.

    PagefoldError
     |-- ServerUnavailable       (ConnectionError)  nobody answers, or the server is stopping
     |    `-- DescriptorsClosed                      the program closed gRPC's descriptors: exec, or start anew
     |-- TlsFailed               (ConnectionError)  somebody answers, but not with the certificate that was asked for
     |-- ServerRefused                              the server said no; `reason` is its name for why
     |    |-- IncompatibleServer                    another protocol, another page size: install matching versions
     |    |-- AccessDenied                          a wrong token, or memory of another user
     |    |-- LimitReached                          a limit of the server: ask its operator
     |    |-- SessionLost                           the server does not know this client (any more)
     |    `-- ServerFault                           a fault of the server's own: its log says more
     |-- ClientClosed                               the client was closed before
     |-- ForkedClient                               the client belongs to the parent of this process
     |-- OutOfSharedMemory       (MemoryError)      /dev/shm, descriptors or address space are used up
     |-- OutOfThreads            (RuntimeError)     no threads are to be had, which gRPC would end the process for
     |-- BarrierUnavailable                         writes cannot be held in the way that was asked for
     `-- TrackerUnavailable                         written pages cannot be found in the way that was asked for

Wrong arguments are ValueError and TypeError, as everywhere. Which of the server's reasons becomes which of these
is one table, in `_session/channel.py`.
"""

from __future__ import annotations


class PagefoldError(Exception):
    """Base of everything that pagefold raises on purpose, wrong arguments aside."""


class ServerUnavailable(PagefoldError, ConnectionError):
    """No server answers at the address. The text says how to start one."""


class TlsFailed(PagefoldError, ConnectionError):
    """Somebody listens at the TCP address, and no connection comes about that can be trusted: see `connect(ca=...)`."""


class DescriptorsClosed(ServerUnavailable):
    """The program has closed the descriptors of gRPC, so this process can reach no server any more. Memory goes on."""


class ServerRefused(PagefoldError):
    """The server answered with a refusal.

    Attributes:
        reason: its stable name: "limit" for REASON_LIMIT of `Reason` in memory.proto; where the server gave none, the
            name of gRPC's status, say "unimplemented".
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(reason, text)
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[1])


class IncompatibleServer(ServerRefused):
    """Client and server cannot work together: install the same version of pagefold on both sides."""


class AccessDenied(ServerRefused):
    """The server does not let this client in, or not at this memory."""


class LimitReached(ServerRefused):
    """The server has as many clients, segments or bytes as its operator allows."""


class SessionLost(ServerRefused):
    """The server has no session for this client: it was restarted, or it excluded the client."""


class ServerFault(ServerRefused):
    """Something broke inside the server. Its log says what."""


class ClientClosed(PagefoldError):
    """The client was closed. Its buffers go on; for new ones, connect again."""


class ForkedClient(PagefoldError):
    """This process was forked from the client's, and the client cannot connect here. Its memory is a snapshot."""


class OutOfSharedMemory(PagefoldError, MemoryError):
    """Memory cannot be backed. The text names the sizes and the remedy."""


class OutOfThreads(PagefoldError, RuntimeError):
    """The threads that a connection takes cannot be started. The text says what bounds them."""


class BarrierUnavailable(PagefoldError):
    """Writes cannot be held in the way that was asked for, so nothing could be merged safely."""


class TrackerUnavailable(PagefoldError):
    """Written pages cannot be found in the way that was asked for."""
