"""The Admin service of a server, as plain calls. Failures become `CommandError`, with what to do about them.

The first call makes the connection. Unlike the library it may use gRPC's streams: operators' tools do not fork.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, TypeVar

import grpc
from google.protobuf.message import Message
from pagefold_proto import addresses
from pagefold_proto.tls import checked_token, why_not
from pagefold_proto.v1 import admin_pb2 as pb
from pagefold_proto.v1.memory_pb2 import (
    REASON_BAD_CONFIG,
    REASON_BAD_TOKEN,
    REASON_SHUTTING_DOWN,
    Reason,
    SettleReport,
)

from pagefold._session.channel import Failure, Metadata, bearer, open_channel
from pagefold.cli.exits import CommandError, ExitCode

_SERVICE: Final = "/pagefold.v1.Admin/"
_SECONDS: Final = 10.0
_LONGEST: Final = 1e8
"""Seconds: three years. gRPC takes a much later deadline for one in the past."""
_STOPPING: Final = Reason.Name(REASON_SHUTTING_DOWN)
_BAD_CONFIG: Final = Reason.Name(REASON_BAD_CONFIG)
_BAD_TOKEN: Final = Reason.Name(REASON_BAD_TOKEN)

R = TypeVar("R", bound=Message)


class Admin:
    """One server's operator side.

    Args:
        address: of the server, in either form; empty: this user's own server.
        token_file: holds the bearer token, for TCP.
        ca: certificate that the server's is signed with; None: TCP is not encrypted.

    Raises:
        CommandError: the address is not one, or a file cannot be read.
    """

    def __init__(self, address: str = "", token_file: Path | None = None, ca: Path | None = None) -> None:
        self.address = parse_address(address)
        self._metadata: Metadata = ()
        self._ca = ca
        certificate = None
        if self.address.scheme == "tcp":
            text = _read(token_file).decode(errors="replace") if token_file else os.environ.get("PAGEFOLD_TOKEN", "")
            try:
                self._metadata = bearer(checked_token(text))
            except ValueError as error:
                raise CommandError(str(error), ExitCode.USAGE) from error
            certificate = None if ca is None else _read(ca)
        self._channel = open_channel(self.address, (), certificate)

    def __enter__(self) -> Admin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def status(self, timeout: float = _SECONDS) -> pb.Status:
        """The state of the whole server."""
        return self._call("GetStatus", pb.GetStatusRequest(), pb.Status, timeout)

    def clients(self) -> pb.ListClientsReply:
        """The sessions, oldest first."""
        return self._call("ListClients", pb.ListClientsRequest(), pb.ListClientsReply)

    def segments(self, client: int = 0) -> pb.ListSegmentsReply:
        """The segments of one session, or of all."""
        return self._call("ListSegments", pb.ListSegmentsRequest(client=client), pb.ListSegmentsReply)

    def domains(self) -> pb.ListDomainsReply:
        """The domains, each with its counters."""
        return self._call("ListDomains", pb.ListDomainsRequest(), pb.ListDomainsReply)

    def config(self) -> pb.GetConfigReply:
        """Every setting."""
        return self._call("GetConfig", pb.GetConfigRequest(), pb.GetConfigReply)

    def configure(self, values: Mapping[str, str]) -> pb.SetConfigReply:
        """Changes settings, all or none."""
        return self._call("SetConfig", pb.SetConfigRequest(values=values), pb.SetConfigReply)

    def scan_now(self, timeout: float) -> SettleReport:
        """Merges at full speed until nothing is left to merge, or until the deadline."""
        timeout = min(timeout, _LONGEST)
        request = pb.ScanNowRequest(timeout_seconds=timeout)
        return self._call("ScanNow", request, pb.ScanNowReply, timeout + _SECONDS).report

    def stop(self) -> pb.StopReply:
        """Ends the server."""
        return self._call("Stop", pb.StopRequest(), pb.StopReply)

    def fsck(self, request: pb.FsckRequest) -> Iterator[pb.FsckNews]:
        """An audit's messages as they come; the last is the summary."""
        yield from self._stream("Fsck", request, pb.FsckNews)

    def watch(self, interval: float) -> Iterator[pb.Status]:
        """The status at each interval of seconds, until the server stops."""
        yield from self._stream("WatchStatus", pb.WatchStatusRequest(interval_seconds=interval), pb.Status)

    def _stream(self, name: str, request: Message, reply: type[R]) -> Iterator[R]:
        call = self._channel.unary_stream(_SERVICE + name, type(request).SerializeToString, reply.FromString)
        stream = call(request, metadata=self._metadata)
        try:
            yield from stream
        except grpc.RpcError as error:
            raise self._failed(error) from error
        finally:
            stream.cancel()  # type: ignore[no-untyped-call]

    def _call(self, name: str, request: Message, reply: type[R], timeout: float = _SECONDS) -> R:
        call = self._channel.unary_unary(_SERVICE + name, type(request).SerializeToString, reply.FromString)
        try:
            answer: R = call(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._failed(error) from error
        return answer

    def _failed(self, error: grpc.RpcError) -> CommandError:
        failure, where = Failure.of(error), self.address
        if failure.is_silence:
            why = why_not(where, self._ca)
            if why:
                return CommandError(f"a server listens at {where}, but {why}: check --ca")
            if stuck := addresses.stuck(where):
                return CommandError(stuck, ExitCode.NO_SERVER)
            return CommandError(
                f"no server answers at {where}: start one with  pagefold serve  or name another with --address",
                ExitCode.NO_SERVER,
            )
        if failure.reason == _STOPPING:
            return CommandError(f"the server at {where} is stopping: try again", ExitCode.NO_SERVER)
        if failure.reason == _BAD_CONFIG:
            return CommandError(failure.details, ExitCode.USAGE)
        if failure.reason == _BAD_TOKEN:
            return CommandError(f"{where} wants a token: give --token-file FILE (what the server has)")
        if failure.status is grpc.StatusCode.UNIMPLEMENTED:
            return CommandError(
                f"what listens at {where} is no pagefold server of this version, or its "
                f"tenants_address, where commands are not answered ({failure.details})"
            )
        return CommandError(
            failure.details or f"the call failed with {failure.status.name}: the server's log says more"
        )


def parse_address(address: str) -> addresses.Address:
    """An address from a flag or from the environment; empty: that of this user's own server."""
    try:
        return addresses.parse(address or addresses.default_address())
    except addresses.AddressError as error:
        raise CommandError(str(error), ExitCode.USAGE) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}", ExitCode.USAGE) from error
