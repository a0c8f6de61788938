"""A tenant that claims much: fields, pages and events that take memory or time of the server."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import threading
import time
from pathlib import Path

import grpc
import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from pagefold_proto.v1 import memory_pb2 as pb
from pagefold_server.api.memory import MAX_EVENT_PAGES
from pagefold_server.engine.native import NativeEngine
from pagefold_server.errors import ProtocolViolation
from pagefold_server.sessions import registry
from support.engine_pools import NativeStore
from support.engine_world import columns
from support.hostile import HANGS, sparse
from support.raw import PAGE, Raw
from support.server import Server

FOR_ALL = (pb.EVENT_KIND_WRITTEN, pb.EVENT_KIND_EXCLUDED, pb.EVENT_KIND_INCLUDED)
"""Events of which each costs the same, however many pages it is about."""


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def test_fields_that_are_not_in_the_proto_are_not_kept() -> None:
    strange = struct.pack("<B", 0xFA) + b"\x7f" + b"\x80\x40" + bytes(8192)  # field 2047, 8192 bytes
    for message in (pb.HelloRequest(pid=7, label="x"), pb.Gauges(merged_pages=7)):
        said = type(message).FromString(message.SerializeToString() + strange)
        assert said.ByteSize() > 8192
        assert len(UnknownFieldSet(said)) == 1
        kept = registry.kept(said)
        assert kept == message
        assert kept.ByteSize() == message.ByteSize()


@pytest.mark.usefixtures("quick")
def test_room_for_mappings_is_not_looked_for_page_by_page() -> None:
    """300 pairs took 25 s: every Released went through the whole of every table for pages declined before."""
    store = NativeStore()
    engine = store.engine = NativeEngine(store)
    engine.add_client(1)
    fd, pairs = sparse(1 << 24), 4096
    for page in range(2 * pairs):
        os.pwrite(fd, b"x" * PAGE, page * PAGE)
    engine.add_segment(1, 1, fd, 1 << 24)
    for _ in range(3):
        while engine.scan(1 << 20).finished is None:
            pass
    told = [
        (page, frame + page - first)
        for _, first, count, frame in engine.take(1, 2 * pairs).merges
        for page in range(first, first + count)
    ]
    merged, declined = told[:pairs], told[pairs:]
    engine.apply(1, columns(*((pb.EVENT_KIND_MERGED, 1, page, 1, 1, frame, 0) for page, frame in merged)))
    events = []
    for (ours, _), (page, frame) in zip(merged, declined, strict=True):
        events.append((pb.EVENT_KIND_DECLINED, 1, page, 1, 1, frame, pb.DECLINE_REASON_BUDGET))
        events.append((pb.EVENT_KIND_RELEASED, 1, ours, 1, 0, 0, 0))
    engine.apply(1, columns(*events))
    assert engine.counters().pages_declined == pairs
    assert engine.counters().pages_over_budget == 0, "there is room again, and one still waits for it"
    engine.check()
    os.close(fd)
    store.close(unlink=True)


@pytest.mark.usefixtures("quick")
def test_what_is_said_of_holes_takes_neither_memory_nor_time() -> None:
    """Four registry took 1 GB of the server's memory and none of their own, and 1.7 s when they ended."""
    store = NativeStore()
    engine = store.engine = NativeEngine(store)
    fd, pages, before = sparse(1 << 28), 1 << 28, resident()
    clients = range(1, 5)
    for client in clients:
        engine.add_client(client)
        engine.add_segment(client, 1, fd, pages, tracked=True)
    claims = [
        (pb.EVENT_KIND_WRITTEN, 0, 0),
        (pb.EVENT_KIND_EXCLUDED, 0, 0),
        (pb.EVENT_KIND_INCLUDED, 0, 0),
        (pb.EVENT_KIND_WRITTEN, 0, 1),
        (pb.EVENT_KIND_RESUMED, 0, 0),
        (pb.EVENT_KIND_COPIED, 0, 0),
        (pb.EVENT_KIND_RELEASED, 0, 0),
    ]
    for kind, pool, detail in claims:
        for client in clients if kind in FOR_ALL else clients[:1]:
            for first in range(0, pages, MAX_EVENT_PAGES):
                engine.apply(client, columns((kind, 1, first, MAX_EVENT_PAGES, pool, 0, detail)))
        while engine.scan(1 << 12).finished is None:
            pass
        engine.remaining()
        engine.counters()
        assert resident() - before < 64 << 20
    for client in clients:
        engine.remove_client(client)
    os.close(fd)
    store.close(unlink=True)


@pytest.mark.needs("uffd")
@pytest.mark.usefixtures("quick")
def test_who_writes_to_a_segment_for_ever_is_not_waited_for() -> None:
    """A write holds its object's lock while it waits for the page that it writes from, and SEEK_DATA waits for that."""
    store = NativeStore()
    engine = store.engine = NativeEngine(store)
    fd = sparse(64)
    os.pwrite(fd, b"x" * PAGE, 5 * PAGE)
    if not _tells_presence(fd):
        pytest.skip("this kernel cannot say what is present without that lock (cachestat, Linux 6.5)")
    engine.add_client(1)
    engine.add_segment(1, 1, fd, 64)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    missing = libc.mmap(None, ctypes.c_size_t(PAGE), 3, 0x22, -1, ctypes.c_long(0))
    held = libc.syscall(323, os.O_CLOEXEC)  # userfaultfd
    fcntl.ioctl(held, 0xC018AA3F, bytearray(struct.pack("QQQ", 0xAA, 0, 0)))  # UFFDIO_API
    fcntl.ioctl(held, 0xC020AA00, bytearray(struct.pack("QQQQ", missing, PAGE, 1, 0)))  # UFFDIO_REGISTER
    arguments = (fd, ctypes.c_void_p(missing), ctypes.c_size_t(PAGE), ctypes.c_long(0))
    writer = threading.Thread(target=libc.pwrite, args=arguments)
    writer.start()
    try:
        time.sleep(0.1)
        scanner = threading.Thread(target=lambda: [engine.scan(1000) for _ in range(3)], daemon=True)
        scanner.start()
        scanner.join(HANGS / 3)
        assert not scanner.is_alive(), "the scan waits for the writer"
        assert writer.is_alive()
    finally:
        os.close(held)
        writer.join()
        libc.munmap(ctypes.c_void_p(missing), ctypes.c_size_t(PAGE))
        os.close(fd)
    assert engine.counters().pages_unshared == 1
    store.close(unlink=True)


def _tells_presence(fd: int) -> bool:
    told = (ctypes.c_uint64 * 5)()
    asked = (ctypes.c_uint64 * 2)(0, PAGE)
    return ctypes.CDLL(None).syscall(451, fd, asked, told, 0) == 0


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", [pb.EVENT_KIND_WRITTEN, pb.EVENT_KIND_EXCLUDED, pb.EVENT_KIND_RESUMED])
def test_what_is_said_of_single_pages_takes_no_more_memory_than_they_do(kind: int) -> None:
    """One page in each block of holes: two registry took 1.1 GiB, and status calls 3 s."""
    store = NativeStore()
    engine = store.engine = NativeEngine(store)
    fd, pages, before = sparse(1 << 28), 1 << 28, resident()
    engine.add_client(1)
    engine.add_segment(1, 1, fd, pages, tracked=True)

    def say() -> None:
        for first in range(5, pages, 1024 * 4096):
            engine.apply(1, columns(*((kind, 1, first + 1024 * n, 1, 0, 0, 0) for n in range(4096))))

    with pytest.raises(ProtocolViolation, match="as much as the memory that it is about"):
        say()
    assert resident() - before < 32 << 20
    engine.remove_client(1)
    os.close(fd)
    store.close(unlink=True)


def test_what_an_honest_client_says_of_single_pages_is_taken() -> None:
    """Pages that stand alone are as large as what is kept of them."""
    store = NativeStore()
    engine = store.engine = NativeEngine(store)
    fd, pages = sparse(1 << 24), 1 << 24
    engine.add_client(1)
    engine.add_segment(1, 1, fd, pages, tracked=True)
    alone = range(5, pages, 1024)
    for page in alone:
        os.pwrite(fd, page.to_bytes(8, "little") * (PAGE // 8), page * PAGE)
    for detail in (0, 1, 0):
        for n in range(0, len(alone), 8192):
            engine.apply(
                1, columns(*((pb.EVENT_KIND_WRITTEN, 1, page, 1, 0, 0, detail) for page in alone[n : n + 8192]))
            )
        for _ in range(3):
            while engine.scan(1 << 16).finished is None:
                pass
    assert engine.counters().pages_unshared == len(alone)
    os.close(fd)
    store.close(unlink=True)


def test_a_call_is_about_no_more_pages_than_can_be_booked_at_once(server: Server) -> None:
    with Raw(server.address) as raw:
        raw.hello()
        made = raw.segment(bytes(PAGE))
        raw.add(made.name, 1)
        with pytest.raises(grpc.RpcError) as caught:
            raw.exchange(pb.Events(kind=[pb.EVENT_KIND_INCLUDED], segment=[1], first=[0], count=[MAX_EVENT_PAGES + 1]))
        assert "more than 1048576 pages" in str(caught.value.details())
