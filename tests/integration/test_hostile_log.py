"""A tenant that floods the log, or learns from errors what other processes have open."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from pathlib import Path

import grpc
import pytest
import structlog
from pagefold_proto import shm_names
from pagefold_proto.v1 import memory_pb2 as pb
from pagefold_server.log import Limit
from pagefold_server.sessions import doorbell
from support.hostile import HANGS, memfd, refusal
from support.raw import Raw, reason
from support.server import Server
from support.tenancy import ALICE, BOB, tenants_server
from support.waiting import until


@pytest.mark.usefixtures("quick")
def test_tokens_that_were_made_up_fill_no_log(server: Server) -> None:
    with Raw(server.address) as raw:
        for _ in range(300):
            with pytest.raises(grpc.RpcError) as caught:
                raw.stub.Bye(pb.ByeRequest(session=secrets.token_bytes(16)), timeout=10)
            assert reason(caught.value) == "REASON_UNKNOWN_SESSION"
    told = server.log.read_text().count("call refused")
    assert 0 < told <= 10 * (HANGS + 1)


def test_what_is_left_out_of_the_log_is_counted_and_hides_nobody_else() -> None:
    now = [100.0]
    limit = Limit(2, 3, lambda: now[0])

    def passes(**event: object) -> bool:
        try:
            return limit(None, "info", event) is event
        except structlog.DropEvent:
            return False

    assert [passes(uid=1) for _ in range(5)] == [True, True, False, False, False]
    assert passes(uid=2), "another user"
    assert all(passes() for _ in range(99)), "nobody's"
    assert limit.left_out() == {}, "the second is not over"
    now[0] += 1
    assert limit.left_out() == {1: 3}
    assert limit.left_out() == {}
    assert [passes(uid=uid) for uid in (1, 1, 1, 2, 3)] == [True, True, False, True, True]
    assert [passes(uid=uid) for uid in (4, 5, 6)] == [True, True, False], "there is no room to tell them apart"
    now[0] += 1
    assert limit.left_out() == {1: 1, -1: 1}
    assert len(limit._told) <= 4


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to be two users")
def test_a_flood_of_sessions_of_one_user_fills_no_log_and_hides_no_other_user(tmp_path: Path) -> None:
    """Hello and Bye in a loop: 400 kB of log a second, in which nothing else could be found."""
    with tenants_server(tmp_path / "server") as (server, address), Raw(address) as alice, Raw(address) as bob:
        for raw, uid in ((alice, ALICE), (bob, BOB)):
            os.chown(f"/dev/shm{raw.lease.name}", uid, uid)
            os.chown(doorbell.path_of(raw.doorbell), uid, uid)
        began = time.monotonic()
        for _ in range(100):
            alice.hello()
            alice.bye()
        seconds = int(time.monotonic() - began) + 2
        bob.hello()
        bob.bye()

        def lines() -> list[dict[str, object]]:
            return [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]

        def told(uid: int) -> list[str]:
            return [str(line["event"]) for line in lines() if line.get("uid") == uid]

        assert {"session opened", "domain opened", "session over", "domain closed"} <= set(told(BOB))
        until(lambda: "lines left out" in told(ALICE), what="the number of lines left out")
        assert len(told(ALICE)) <= 10 * (seconds + 2)
        left_out = sum(int(str(line["lines"])) for line in lines() if line["event"] == "lines left out")
        assert left_out + len(told(ALICE)) >= 400


def test_no_error_tells_what_another_process_has_open(server: Server) -> None:
    """Root's server was asked which descriptors of root's processes are open, and of what kind, one by one."""
    own = memfd(shm_names.new_name(shm_names.SEGMENT))
    read, write = os.pipe()
    sleeper = subprocess.Popen(["sleep", "60"])
    name = shm_names.new_name(shm_names.SEGMENT)
    try:
        with Raw(server.address) as raw:
            raw.hello()
            texts = set()
            for pid, descriptor in (
                (os.getpid(), own),  # a memfd, of another name
                (os.getpid(), read),  # a pipe
                (os.getpid(), write),
                (os.getpid(), 987_654),  # nothing
                (sleeper.pid, 0),
                (sleeper.pid, 44),
                ((1 << 22) - 1, 0),  # no process, as a rule
                (1, 0),
            ):
                why, text = refusal(raw, 1, name, pid, descriptor)
                texts.add(
                    (
                        why,
                        text.replace(f"/proc/{pid}/fd/{descriptor} ", "/proc/ ").replace(
                            f"/proc/{pid}/fd/{descriptor}:", "/proc/:"
                        ),
                    )
                )
            assert len(texts) == 1, texts
    finally:
        sleeper.kill()
        sleeper.wait()
        for fd in (own, read, write):
            os.close(fd)
