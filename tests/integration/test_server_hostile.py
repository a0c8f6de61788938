"""Clients that lie, break and pry: typed errors for them, nothing for anybody else, and the server lives."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import posix_ipc
import pytest
from pagefold_proto import shm_names
from pagefold_proto.v1 import memory_pb2 as pb
from support.raw import PAGE, Raw, event, noise, obey, reason
from support.server import Server
from support.waiting import until

SHM = Path("/dev/shm")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), silent_seconds=1, max_segments=3) as server:
        yield server


@pytest.fixture
def client(shared: Server) -> Iterator[Raw]:
    with Raw(shared.address) as raw:
        raw.label = os.urandom(8).hex()
        raw.hello(label=raw.label)
        yield raw


@pytest.fixture(autouse=True)
def others_go_on(shared: Server) -> Iterator[None]:
    """Whatever the test did: the server lives, has had no fault of its own, and serves somebody else."""
    yield
    with Raw(shared.address) as other:
        other.hello(label="other")
        other.give(bytes(PAGE))
        assert other.settle().settled
    assert "Traceback" not in shared.log.read_text()


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return reason(caught.value)


@pytest.fixture
def plant() -> Iterator[Callable[[str], Path]]:
    """Makes up a legal name at which a test puts something illegal."""
    paths: list[Path] = []

    def legal(kind: str) -> Path:
        paths.append(SHM / f"pagefold-{kind}-{secrets.token_hex(16)}")
        return paths[-1]

    yield legal
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)


# Hello


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"protocol": 0}, "PROTOCOL_MISMATCH"),
        ({"protocol": 2}, "PROTOCOL_MISMATCH"),
        ({"page_size": 1 << 16}, "PAGE_SIZE_MISMATCH"),
        ({"label": "x" * 65}, "LIMIT"),
        ({"program": "x" * 256}, "LIMIT"),
        ({"lease": ""}, "BAD_NAME"),
        ({"lease": "/etc/passwd"}, "BAD_NAME"),
        ({"lease": "/pagefold-l-" + "g" * 32}, "BAD_NAME"),
        ({"lease": "/pagefold-l-" + "0" * 32 + "\n"}, "BAD_NAME"),
        ({"lease": "/pagefold-l-../" + "0" * 29}, "BAD_NAME"),
        ({"lease": "/pagefold-s-" + "0" * 32}, "BAD_NAME"),
        ({"doorbell": ""}, "BAD_NAME"),
        ({"doorbell": "/pagefold-d-" + "0" * 32}, "BAD_NAME"),
    ],
)
def test_hello_refuses(shared: Server, said: dict[str, object], why: str) -> None:
    with Raw(shared.address) as raw:
        assert refused(lambda: raw.hello(**said)) == f"REASON_{why}"


def test_hello_refuses_a_lease_that_nobody_holds(shared: Server) -> None:
    with Raw(shared.address) as raw:
        fcntl.flock(raw.lease.fd, fcntl.LOCK_UN)
        assert refused(raw.hello) == "REASON_LEASE_NOT_HELD"


def test_hello_refuses_a_lease_that_is_not_there(shared: Server) -> None:
    with Raw(shared.address) as raw:
        shm_names.remove(raw.lease.name)
        assert refused(raw.hello) == "REASON_NOT_A_SEGMENT"


def test_hello_refuses_a_doorbell_that_is_not_there(shared: Server) -> None:
    with Raw(shared.address) as raw:
        posix_ipc.unlink_semaphore(raw.doorbell)
        assert refused(raw.hello) == "REASON_NOT_A_SEGMENT"


@pytest.mark.needs("root")
def test_hello_refuses_another_users_doorbell(shared: Server) -> None:
    with Raw(shared.address) as raw:
        os.chown(SHM / f"sem.{raw.doorbell[1:]}", 65534, 65534)
        assert refused(raw.hello) == "REASON_WRONG_OWNER"


@pytest.mark.needs("root")
def test_the_owner_of_the_lease_decides_the_domain(shared: Server) -> None:
    with Raw(shared.address) as raw:
        os.chown(SHM / raw.lease.name[1:], 65534, 65534)
        os.chown(SHM / f"sem.{raw.doorbell[1:]}", 65534, 65534)
        raw.hello(label="nobody")
        assert [info.uid for info in shared.clients() if info.label == "nobody"] == [65534]
        made = raw.segment(noise(1))  # root's
        assert refused(lambda: raw.add(made.name, 1)) == "REASON_WRONG_OWNER"


def test_there_are_only_so_many_sessions(serve: Callable[..., Server]) -> None:
    small = serve(max_sessions=2)
    with Raw(small.address) as one, Raw(small.address) as two, Raw(small.address) as three:
        one.hello()
        two.hello()
        assert refused(three.hello) == "REASON_LIMIT"
        one.bye()
        three.hello()


@pytest.mark.parametrize("token", [b"", b"x", b"\0" * 16, b"sixteen of its ow", secrets.token_bytes(1 << 16)])
def test_invented_tokens(shared: Server, token: bytes) -> None:
    with Raw(shared.address) as raw:
        raw.token = token
        assert refused(raw.exchange) == "REASON_UNKNOWN_SESSION"
        assert refused(raw.bye) == "REASON_UNKNOWN_SESSION"
        assert refused(lambda: raw.add("/x", 1)) == "REASON_UNKNOWN_SESSION"


# Segments


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "pagefold-s-" + "0" * 32,
        "/../etc/passwd",
        "/pagefold-s-" + "0" * 31,
        "/pagefold-s-" + "A" * 32,
        "/pagefold-s-" + "0" * 32 + "/x",
        "/pagefold-s-" + "0" * 32 + "\0",
        "/pagefold-p-" + "0" * 32,
        "/pagefold-s-" + "\u0660" * 32,
        "x" * 100_000,
    ],
)
def test_names_that_are_not_ours(client: Raw, name: str) -> None:
    assert refused(lambda: client.add(name, 1)) == "REASON_BAD_NAME"


def test_a_name_without_an_object(client: Raw) -> None:
    assert refused(lambda: client.add(shm_names.new_name("s"), 1)) == "REASON_NOT_A_SEGMENT"


def test_a_planted_link_is_not_followed(client: Raw, plant: Callable[[str], Path], tmp_path: Path) -> None:
    path = plant("s")
    secret = tmp_path / "secret"
    secret.write_bytes(noise(1))
    path.symlink_to(secret)
    assert refused(lambda: client.add(f"/{path.name}", 1)) == "REASON_NOT_A_SEGMENT"


def test_a_link_to_a_segment_is_not_followed_either(client: Raw, plant: Callable[[str], Path]) -> None:
    path = plant("s")
    path.symlink_to(SHM / client.segment(noise(1)).name[1:])
    assert refused(lambda: client.add(f"/{path.name}", 1)) == "REASON_NOT_A_SEGMENT"


def test_a_fifo_does_not_stop_the_server(client: Raw, plant: Callable[[str], Path]) -> None:
    path = plant("s")
    os.mkfifo(path, 0o600)
    assert refused(lambda: client.add(f"/{path.name}", 1)) == "REASON_NOT_A_SEGMENT"


def test_a_directory(client: Raw, plant: Callable[[str], Path]) -> None:
    path = plant("s")
    path.mkdir()
    assert refused(lambda: client.add(f"/{path.name}", 1)) == "REASON_NOT_A_SEGMENT"


def test_a_socket(client: Raw, plant: Callable[[str], Path]) -> None:
    path = plant("s")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        assert refused(lambda: client.add(f"/{path.name}", 1)) == "REASON_NOT_A_SEGMENT"


@pytest.mark.needs("root")
def test_another_users_segment(client: Raw) -> None:
    made = client.segment(noise(1))
    os.chown(SHM / made.name[1:], 65534, 65534)
    assert refused(lambda: client.add(made.name, 1)) == "REASON_WRONG_OWNER"


@pytest.mark.parametrize("pages", [0, 3, 1 << 28, (1 << 28) + 1, (1 << 32) - 1])
def test_sizes_that_are_not_true(client: Raw, pages: int) -> None:
    made = client.segment(noise(2))
    assert refused(lambda: client.add(made.name, pages)) == "REASON_BAD_SIZE"


def test_there_are_only_so_many_segments(client: Raw) -> None:
    for _ in range(3):
        client.give(noise(1))
    assert refused(lambda: client.give(noise(1))) == "REASON_LIMIT"


def test_a_segment_that_is_truncated_while_it_is_scanned(client: Raw, shared: Server) -> None:
    made = client.segment(noise(2048))
    client.add(made.name, 2048)
    client.exchange(settling=1)
    for size in (PAGE // 2, 0, 2048 * PAGE, 5):
        os.ftruncate(made.fd, size)
        assert client.settle(size + 2).settled
    assert shared.status().trouble == ""


def test_a_doorbell_that_is_truncated_is_rung_in_vain(client: Raw) -> None:
    client.give(bytes(PAGE))
    fd = os.open(SHM / f"sem.{client.doorbell[1:]}", os.O_RDWR)
    os.ftruncate(fd, 0)

    def reported() -> bool:  # without waiting for the bell: that would kill this process
        reply = client.exchange(client.news, settling=1)
        client.news = obey(reply)
        return reply.HasField("settle_report")

    until(reported, what="the report")
    os.ftruncate(fd, 32)
    os.close(fd)


# Events


@pytest.mark.parametrize(
    ("kind", "first", "count"),
    [
        (0, 0, 1),
        (99, 0, 1),
        (pb.EVENT_KIND_MERGED, 0, 1),
        (pb.EVENT_KIND_MERGED, 0, 0),
        (pb.EVENT_KIND_MERGED, 4, 1),
        (pb.EVENT_KIND_MERGED, 3, 2),
        (pb.EVENT_KIND_MERGED, 0, (1 << 32) - 1),
        (pb.EVENT_KIND_MERGED, (1 << 32) - 1, (1 << 32) - 1),
        (pb.EVENT_KIND_RELEASED, 0, 1),
        (pb.EVENT_KIND_COPIED, 0, 1),
        (pb.EVENT_KIND_DECLINED, 0, 1),
    ],
)
def test_events_that_cannot_be(client: Raw, shared: Server, kind: int, first: int, count: int) -> None:
    segment = client.give(noise(4))
    events = pb.Events(segment=[segment], first=[first], count=[count], pool=[1], frame=[0], detail=[0])
    events.MergeFromString(bytes([10, 1, kind]))  # kinds that the enum does not have, too
    assert refused(lambda: client.exchange(events)) == "REASON_PROTOCOL_VIOLATION"
    assert [info.state for info in shared.clients() if info.label == client.label] == ["excluded"]
    for call in (client.exchange, lambda: client.give(noise(1))):
        assert refused(call) == "REASON_PROTOCOL_VIOLATION"
    client.bye()
    assert [info.state for info in shared.clients() if info.label == client.label] == []


def test_events_of_a_segment_that_is_not_there(client: Raw) -> None:
    assert refused(lambda: client.exchange(event(pb.EVENT_KIND_EXCLUDED, 77, 0, 1))) == "REASON_PROTOCOL_VIOLATION"


def test_columns_of_unequal_length(client: Raw) -> None:
    segment = client.give(noise(4))
    events = event(pb.EVENT_KIND_EXCLUDED, segment, 0, 1)
    events.first.append(1)
    assert refused(lambda: client.exchange(events)) == "REASON_PROTOCOL_VIOLATION"


def test_columns_of_zeros_may_be_left_out(client: Raw) -> None:
    made = client.segment(noise(4))
    client.add(made.name, 4, 0)
    client.exchange(pb.Events(kind=[pb.EVENT_KIND_EXCLUDED] * 2, count=[2, 1]))


def test_too_many_events(client: Raw) -> None:
    segment = client.give(noise(4))
    many = (1 << 13) + 1
    events = pb.Events(kind=[pb.EVENT_KIND_EXCLUDED] * many, segment=[segment] * many, count=[1] * many)
    assert refused(lambda: client.exchange(events)) == "REASON_PROTOCOL_VIOLATION"


def test_no_client_comes_near_the_limits() -> None:
    from pagefold._session import outbox
    from pagefold_server.api import memory

    most = min(outbox.MAX_EVENTS, memory.MAX_MESSAGE_BYTES // outbox.EVENT_BYTES)
    assert most < memory.MAX_EVENTS
    columns = {name: [2**32 - 1] * most for name in ("segment", "first", "count", "pool", "frame", "detail")}
    events = pb.Events(kind=[pb.EVENT_KIND_WRITTEN] * most, **columns)
    whole = pb.ExchangeRequest(session=bytes(16), sequence=2**62, events=events, gauges=pb.Gauges(mappings=2**32 - 1))
    assert whole.ByteSize() < memory.MAX_MESSAGE_BYTES


def test_a_message_beyond_the_limit(client: Raw) -> None:
    events = pb.Events(kind=[1] * (1 << 18))
    with pytest.raises(grpc.RpcError) as caught:
        client.exchange(events)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    client.sequence = 0
    client.exchange()


def test_an_excluded_client_keeps_its_references_until_its_lease_is_free(shared: Server) -> None:
    with Raw(shared.address) as liar, Raw(shared.address) as honest:
        content = noise(4)
        liar.hello(label="lies")
        honest.hello(label="lies")
        segment = liar.give(content)
        honest.give(content)
        honest.settle_with(liar)
        assert refused(lambda: liar.exchange(event(pb.EVENT_KIND_MERGED, segment, 0, 1))).endswith("VIOLATION")
        totals = honest.exchange().totals
        assert (totals.pages_shared, totals.pages_sharing) == (4, 4)
        assert honest.settle(9).settled
        liar.close()
        while honest.exchange().totals.pages_sharing:
            assert honest.sequence < 10_000
        assert honest.exchange().totals.pages_shared == 4


def test_messages_that_are_not_protobuf(shared: Server) -> None:
    with grpc.insecure_channel(shared.address) as channel:
        for method in ("Hello", "AddSegment", "Exchange", "DropSegment", "Bye"):
            call = channel.unary_unary(f"/pagefold.v1.Memory/{method}")
            with pytest.raises(grpc.RpcError):
                call(b"\xff" * 100, timeout=10)
