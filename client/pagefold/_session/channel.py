"""What the library and the command line have in common of gRPC: how a channel is made, and what a failed call means.

It has the client's half of the error table: reason -> exception. `pagefold_server.errors` has the server's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import grpc
from pagefold_proto.addresses import Address
from pagefold_proto.limits import REASON_KEY
from pagefold_proto.text import printable
from pagefold_proto.v1 import memory_pb2 as pb

from pagefold._errors import (
    AccessDenied,
    IncompatibleServer,
    LimitReached,
    PagefoldError,
    ServerFault,
    ServerRefused,
    ServerUnavailable,
    SessionLost,
)

MAX_DETAILS: Final = 1000
"""Characters of a server's text that are kept."""

ERRORS: Final[dict[int, type[PagefoldError]]] = {
    pb.REASON_UNSPECIFIED: ServerFault,
    pb.REASON_PROTOCOL_MISMATCH: IncompatibleServer,
    pb.REASON_PAGE_SIZE_MISMATCH: IncompatibleServer,
    pb.REASON_UNKNOWN_SESSION: SessionLost,
    pb.REASON_BAD_NAME: ServerRefused,
    pb.REASON_NOT_A_SEGMENT: ServerRefused,
    pb.REASON_BAD_SIZE: ServerRefused,
    pb.REASON_WRONG_OWNER: AccessDenied,
    pb.REASON_LEASE_NOT_HELD: ServerRefused,
    pb.REASON_LIMIT: LimitReached,
    pb.REASON_PROTOCOL_VIOLATION: SessionLost,
    pb.REASON_BAD_TOKEN: AccessDenied,
    pb.REASON_BAD_CONFIG: ServerRefused,
    pb.REASON_SHUTTING_DOWN: ServerUnavailable,
    pb.REASON_SEGMENT_IN_USE: ServerRefused,
    pb.REASON_INTERNAL: ServerFault,
}
"""What each of the server's reasons is for a caller. Total; a test compares it with memory.proto."""

_NOBODY: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)
"""Without a reason, these mean that no server answered; the others, that something broke."""

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """What gRPC says of a failed call.

    Attributes:
        status: gRPC's.
        reason: the server's, as memory.proto names it; empty: it gave none.
        details: text for people.
    """

    status: grpc.StatusCode
    reason: str
    details: str

    @classmethod
    def of(cls, error: Any) -> Failure:
        """The failure behind a `grpc.RpcError` of a call."""
        reason = next((value for key, value in error.trailing_metadata() or () if key == REASON_KEY), "")
        return cls(error.code(), str(reason), error.details() or "")

    @property
    def is_silence(self) -> bool:
        """Whether no server answered."""
        return not self.reason and self.status in _NOBODY

    def exception(self, address: Address | str) -> PagefoldError:
        """The library's exception for it.

        Args:
            address: of the server, for the text.
        """
        details = printable(self.details[:MAX_DETAILS])
        if self.is_silence:
            return ServerUnavailable(f"no server answers at {address}: {details}")
        known = self.reason in pb.Reason.keys()  # noqa: SIM118 - it is no dict
        kind = ERRORS[pb.Reason.Value(self.reason) if known else pb.REASON_UNSPECIFIED]
        if issubclass(kind, ServerRefused):
            return kind(_word(self.reason or self.status.name), f"{details} (server at {address})")
        return kind(f"{details} (server at {address})")


def is_silence(error: Exception) -> bool:
    """Whether an exception that a call raised means that no server answered, and not that one refused."""
    return isinstance(error.__cause__, grpc.RpcError) and Failure.of(error.__cause__).is_silence


def reason_word(reason: pb.Reason) -> str:
    """REASON_LIMIT as "limit", which `ServerRefused.reason` says."""
    return _word(pb.Reason.Name(reason))


def _word(name: str) -> str:
    return name.removeprefix("REASON_").lower()


def open_channel(address: Address, options: tuple[tuple[str, int], ...], certificate: bytes | None) -> grpc.Channel:
    """A channel to a server on this machine.

    Args:
        address: where the server listens.
        options: gRPC's.
        certificate: PEM, that the server's was signed with; None: no encryption.
    """
    options = ("grpc.enable_http_proxy", 0), *options
    if certificate is None:
        return grpc.insecure_channel(address.grpc_target, options)
    return grpc.secure_channel(address.grpc_target, grpc.ssl_channel_credentials(certificate), options)


def bearer(token: str | None) -> Metadata:
    """What shows a token with a call; of none, nothing."""
    return (("authorization", f"Bearer {token}"),) if token else ()
