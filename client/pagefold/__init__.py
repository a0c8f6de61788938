"""pagefold: identical pages of many processes share one frame of memory; a write gives the writer a copy of its own.

    import pagefold

    with pagefold.connect() as client:
        weights = client.array(load())      # an ordinary ndarray
        client.settle(timeout=10)           # it shares its pages with every process that has equal ones
        print(client.stats().saved_bytes)

This is the client library. Everything in it is thread-safe and survives fork: see `Client`. `pagefold.testing` has
servers for tests.
"""

from pagefold_proto.version import __version__

from pagefold._client import Client
from pagefold._connect import connect
from pagefold._errors import (
    AccessDenied,
    BarrierUnavailable,
    ClientClosed,
    DescriptorsClosed,
    ForkedClient,
    IncompatibleServer,
    LimitReached,
    OutOfSharedMemory,
    OutOfThreads,
    PagefoldError,
    ServerFault,
    ServerRefused,
    ServerUnavailable,
    SessionLost,
    TlsFailed,
    TrackerUnavailable,
)
from pagefold._memory.buffer import Buffer
from pagefold._reports import SettleReport, Stats
from pagefold._session.transport import LocalTransport, Transport

__all__ = [
    "AccessDenied",
    "BarrierUnavailable",
    "Buffer",
    "Client",
    "ClientClosed",
    "DescriptorsClosed",
    "ForkedClient",
    "IncompatibleServer",
    "LimitReached",
    "LocalTransport",
    "OutOfSharedMemory",
    "OutOfThreads",
    "PagefoldError",
    "ServerFault",
    "ServerRefused",
    "ServerUnavailable",
    "SessionLost",
    "SettleReport",
    "Stats",
    "TlsFailed",
    "TrackerUnavailable",
    "Transport",
    "__version__",
    "connect",
]
