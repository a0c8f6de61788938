"""The bearer token of callers over TCP. Over a Unix socket there is none: the directory's permissions decide."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
from pagefold_proto.tls import checked_token

from pagefold_server.errors import AddressRefused, BadToken, abort

_OPEN: Final = "/grpc.health.v1.Health/"  # says whether the server lives, and nothing else
_LEAST: Final = 16

if TYPE_CHECKING:  # generic in the stubs only
    _Details = grpc.HandlerCallDetails
    _Handler = grpc.RpcMethodHandler[Any, Any]


def read_token(path: Path) -> bytes:
    """Reads the token that callers must show: the file's content without surrounding white space.

    Raises:
        AddressRefused: there is none, it is too short, or other users may read it.
    """
    try:
        mode = path.stat().st_mode
        token = path.read_bytes().strip()
    except OSError as error:
        raise AddressRefused(f"token_file {path} cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise AddressRefused(f"token_file {path} is open to other users: chmod 600 {path}")
    if len(token) < _LEAST:
        raise AddressRefused(f"token_file {path} has fewer than {_LEAST} characters: openssl rand -hex 32 > {path}")
    try:
        return checked_token(token.decode()).encode()
    except ValueError as error:
        raise AddressRefused(f"token_file {path}: {error}") from error


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Lets calls pass that carry `authorization: Bearer TOKEN`, and those that ask for health."""

    def __init__(self, token: bytes) -> None:
        self._expected = b"Bearer " + token

    async def intercept_service(
        self, continuation: Callable[[_Details], Awaitable[_Handler]], handler_call_details: _Details
    ) -> _Handler:
        """Looks at a call's metadata."""
        if str(handler_call_details.method).startswith(_OPEN) or self._passes(handler_call_details):
            return await continuation(handler_call_details)
        found = await continuation(handler_call_details)
        return _refusal(found)

    def _passes(self, call: _Details) -> bool:
        shown = [value for key, value in call.invocation_metadata or () if key == "authorization"]
        if len(shown) != 1:
            return False
        value = shown[0].encode() if isinstance(shown[0], str) else shown[0]
        return hmac.compare_digest(value, self._expected)


_WANTED: Final = (
    "the call has no valid token. Show the one in the server's token_file: connect(token=...) or $PAGEFOLD_TOKEN; "
    "without the library, metadata `authorization: Bearer TOKEN`"
)


async def _refuse(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await abort(context, BadToken(_WANTED))


def _refusal(handler: _Handler | None) -> _Handler:
    """A handler of the same kind that refuses every call."""
    if handler is not None and handler.request_streaming:
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(_refuse)
        return grpc.stream_unary_rpc_method_handler(_refuse)
    if handler is not None and handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(_refuse)
    return grpc.unary_unary_rpc_method_handler(_refuse)
