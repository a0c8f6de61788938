"""pagefold: identical pages of many processes share one frame of memory, and a write un-shares them.

    import pagefold

    with pagefold.connect() as client:
        weights = client.array(load())      # an ordinary ndarray
        client.settle(timeout=10)           # now it shares its pages with every process that has the same ones
        print(client.stats().saved_bytes)

What is here is the client library. Everything in it is thread-safe, and survives fork: see `Client`.
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
