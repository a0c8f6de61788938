"""Objects of a tenant that means harm, and what the server says of them."""

from __future__ import annotations

import os
from pathlib import Path

import grpc
import pytest
from pagefold_proto.v1 import memory_pb2 as pb
from pagefold_server.engine import pool_file

from support.raw import PAGE, Raw, reason

ROOT = Path(__file__).parents[2]
HANGS = 15.0
"""Seconds after which an answer counts as one that waits for another program."""


def found(uid: int, tag: str) -> pool_file.Orphan | None:
    """What a server that begins now takes over."""
    orphans = pool_file.Orphans()
    orphans.list_names()
    return orphans.find(uid, tag)


def memfd(name: str, pages: int = 1) -> int:
    fd = os.memfd_create(name[1:], os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, pages * PAGE)
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)  # the kernel gives no lease on the first one
    os.close(fd)
    return again


def sparse(pages: int) -> int:
    fd = os.memfd_create("sparse")
    os.ftruncate(fd, pages * PAGE)
    return fd


def refusal(raw: Raw, number: int, name: str, pid: int, descriptor: int) -> tuple[str, str]:
    request = pb.AddSegmentRequest(
        session=raw.token, segment=number, name=name, pages=1, backing=pb.BACKING_MEMFD, pid=pid, descriptor=descriptor
    )
    with pytest.raises(grpc.RpcError) as caught:
        raw.stub.AddSegment(request, timeout=60)
    return reason(caught.value), str(caught.value.details())


def sources() -> list[Path]:
    return [path for root in ("client", "protos", "server") for path in (ROOT / root).rglob("*.py")]
