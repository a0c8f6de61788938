"""`python -m fuzz.driver ADDRESS SEED CALLS UID WITHOUT`: makes a script's calls, as a user without any rights.

What a script leaves open is filled in here: names, tokens, and what the server answered last. Two kinds of answers are
faults, and are reported: an error of the server's own (INTERNAL, UNKNOWN), and one that did not come within `HANGS`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import grpc
from pagefold_proto.v1 import memory_pb2 as pb
from pagefold_proto.v1 import memory_pb2_grpc
from support.raw import PAGE, obey, reason

from fuzz.calls import SESSIONS, Call, Script, scattered
from fuzz.objects import SHM, Made, Objects

HANGS: Final = 60.0
"""Seconds after which an answer is not waited for any more."""
_PR_SET_DUMPABLE: Final = 4
_SERVERS_OWN: Final = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED)
_COLUMNS: Final = ("kind", "segment", "first", "count", "pool", "frame", "detail")
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Books:
    """What a driver counts."""

    def __init__(self) -> None:
        self.calls = 0
        self.kinds: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.longest = 0.0
        self.longest_call = ""
        self.faults: list[str] = []
        self.digest = hashlib.blake2b(digest_size=8)

    def answered(self, call: Call, took: float, error: grpc.RpcError | None, meant: bool) -> None:
        """An answer came. `meant`: the driver did not give up itself."""
        if took > self.longest:
            self.longest, self.longest_call = took, repr(call)[:300]
        if error is None:
            self.answers[f"{call.what} OK"] += 1
            return
        why = reason(error).removeprefix("REASON_") or error.code().name
        self.answers[f"{call.what} {why}"] += 1
        internal = reason(error) == "REASON_INTERNAL" or (not reason(error) and error.code() in _SERVERS_OWN)
        if meant and internal:
            self.faults.append(f"{error.code().name} {error.details()}: {repr(call)[:500]}")

    def tell(self) -> None:
        told = {k: v for k, v in self.__dict__.items() if k != "digest"} | {"digest": self.digest.hexdigest()}
        print(json.dumps(told), flush=True)


class Talker:
    """One session: its objects, its channel and what was said last."""

    def __init__(self, address: str) -> None:
        self.objects = Objects()
        self.channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self.stub = memory_pb2_grpc.MemoryStub(self.channel)
        self.token = b""
        self.pool_name = ""
        self.pool = 0
        self.sequence = 0
        self.looked = 0
        self.reply: pb.ExchangeReply | None = None
        self.merged: list[tuple[int, int, int, int, int]] = []  # segment, first, count, pool, frame
        self.flying: list[Callable[[], None]] = []

    def land(self) -> None:
        """Waits for the answers that are under way."""
        while self.flying:
            self.flying.pop(0)()

    def heard(self, reply: pb.ExchangeReply) -> None:
        self.reply = reply
        self.looked = max(self.looked, reply.look)
        for info in reply.pools:
            self.pool = info.pool

    def close(self) -> None:
        self.channel.close()
        self.objects.close()


class Driver:
    """Methods have the names of calls; see `Call`."""

    def __init__(self, address: str, tell_of: Books) -> None:
        self._address = address
        self._books = tell_of
        self._talkers: list[Talker | None] = [None] * SESSIONS
        self._old = os.urandom(16)

    def run(self, call: Call) -> None:
        self._books.calls += 1
        self._books.kinds[call.what] += 1
        self._books.digest.update(repr(call).encode())
        if call.what == "hello":
            self._hello(call)
            return
        talker = self._talkers[call.session]
        if talker is not None:
            getattr(self, f"_{call.what}")(talker, call)

    def close(self) -> None:
        for number, talker in enumerate(self._talkers):
            if talker is not None:
                talker.land()
                talker.close()
                self._talkers[number] = None

    # Coming and going

    def _hello(self, call: Call) -> None:
        before = self._talkers[call.session]
        if before is not None:
            before.land()
            before.close()
        talker = self._talkers[call.session] = Talker(self._address)
        objects, lie = talker.objects, call.said["lie"]
        said = {
            "protocol": 1,
            "page_size": PAGE,
            "pid": os.getpid(),
            "program": "fuzz",
            "lease": objects.lease.name,
            "doorbell": objects.doorbell,
            "proof": objects.proof,
        } | call.said["said"]
        if lie == "unlocked":
            fcntl.flock(objects.lease.fd, fcntl.LOCK_UN)
        elif lie == "leased":
            objects.lock(Made(objects.lease.name, objects.lease.fd))
        elif lie == "bell":
            objects.resize_bell(5)
        elif lie == "stolen":
            said["lease"] = self._anothers("pagefold-l-") or said["lease"]
            said["doorbell"] = "/pagefold-d-" + said["lease"][-32:]
        request = _with(pb.HelloRequest(), said, call.said["strange"])
        self._say(talker, call, talker.stub.Hello, request, self._opened(talker))

    def _opened(self, talker: Talker) -> Callable[[pb.HelloReply], None]:
        def opened(reply: pb.HelloReply) -> None:
            self._old, talker.token, talker.pool_name = talker.token or self._old, reply.session, reply.pool
            talker.sequence, talker.reply, talker.looked, talker.pool = 0, None, 0, 0
            talker.merged.clear()

        return opened

    def _hello_again(self, talker: Talker, call: Call) -> None:
        objects = talker.objects
        said = {"protocol": 1, "page_size": PAGE, "lease": objects.lease.name, "doorbell": objects.doorbell}
        said |= {"proof": objects.proof, "label": call.said["label"]}
        self._say(talker, call, talker.stub.Hello, _with(pb.HelloRequest(), said), self._opened(talker))

    def _bye(self, talker: Talker, call: Call) -> None:
        talker.land()
        request = pb.ByeRequest(session=self._token(talker, call))
        self._say(talker, call, talker.stub.Bye, request)
        self._old = talker.token
        talker.close()
        self._talkers[call.session] = None

    def _hang_up(self, talker: Talker, call: Call) -> None:
        """With calls under way, and without a word."""
        for ahead in range(1, call.said["flying"] + 1):
            request = pb.ExchangeRequest(session=talker.token, sequence=talker.sequence + ahead)
            talker.stub.Exchange.future(request, timeout=HANGS)
        talker.flying.clear()
        talker.close()
        self._talkers[call.session] = None

    # Segments

    def _add(self, talker: Talker, call: Call) -> Made:
        said = call.said
        made = talker.objects.segment(said["pages"], said["content"], said["memfd"])
        name = said.get("name", made.name)
        if said["plant"] == "stolen":
            name = self._anothers("pagefold-s-") or name
        else:
            talker.objects.spoil(made, said["plant"])
        asked: dict[str, Any] = {"session": self._token(talker, call), "segment": said["segment"], "name": name}
        asked |= {"pages": said["claimed"], "address": said["address"], "inherited": said["inherited"]}
        if said["memfd"]:
            pid, descriptor = _holder(said.get("holder", ""), made.fd)
            asked |= {"backing": pb.BACKING_MEMFD, "pid": pid, "descriptor": descriptor}
        self._say(talker, call, talker.stub.AddSegment, _with(pb.AddSegmentRequest(), asked, said["strange"]))
        return made

    def _scatter(self, talker: Talker, call: Call) -> None:
        self._add(talker, call)
        for told in scattered(call.said):
            talker.sequence += 1
            request = pb.ExchangeRequest(session=talker.token, sequence=talker.sequence, events=_events(told))
            self._say(talker, call, talker.stub.Exchange, request, talker.heard)

    def _write(self, talker: Talker, call: Call) -> None:
        talker.objects.write_for(self._add(talker, call), call.said["seconds"])

    def _drop(self, talker: Talker, call: Call) -> None:
        segment = call.said["segment"]
        if call.said["release"]:
            released = [run for run in talker.merged if run[0] == segment]
            talker.merged = [run for run in talker.merged if run[0] != segment]
            if released:
                events = _events([(pb.EVENT_KIND_RELEASED, *run[:3], 0, 0, 1) for run in released])
                request = pb.ExchangeRequest(session=talker.token, sequence=talker.sequence + 1, events=events)
                talker.sequence += 1
                self._say(talker, call, talker.stub.Exchange, request, talker.heard)
        request = pb.DropSegmentRequest(session=self._token(talker, call), segment=segment)
        self._say(talker, call, talker.stub.DropSegment, request)

    def _bend(self, talker: Talker, call: Call) -> None:
        talker.objects.bend(**call.said)

    def _bell(self, talker: Talker, call: Call) -> None:
        talker.objects.resize_bell(call.said["size"])

    def _plant(self, talker: Talker, call: Call) -> None:
        if talker.pool_name:
            talker.objects.plant(talker.pool_name[-16:], **call.said)

    def _names(self, talker: Talker, call: Call) -> None:
        pool = self._anothers("pagefold-p-") if call.said["whose"] == "another's" else talker.pool_name
        if pool:
            talker.objects.plant_names(pool[-16:], call.said["count"], call.said["held"])

    def _anothers(self, kind: str) -> str:
        """A name of another user's, which everybody can read."""
        for name in sorted(os.listdir(SHM)):
            with contextlib.suppress(OSError):
                if name.startswith(kind) and os.lstat(f"{SHM}/{name}").st_uid != os.geteuid():
                    return f"/{name}"
        return ""

    # Talk

    def _exchange(self, talker: Talker, call: Call) -> None:
        said = call.said
        events = _events([(*e[:4], talker.pool if e[4] == -1 else e[4], *e[5:]) for e in said["events"]])
        if said["answer"]:
            events = self._answer(talker, said["answer"])
        if said["lie"] == "columns":
            events.first.append(1)
        elif said["lie"]:
            length = {"many": (1 << 13) + 1, "large": 1 << 18}[said["lie"]]
            events = pb.Events(kind=[pb.EVENT_KIND_EXCLUDED] * length)
        sequence = {
            "next": talker.sequence + 1,
            "repeat": talker.sequence,
            "skip": talker.sequence + 2,
            "zero": 0,
            "last": (1 << 64) - 1,
        }[said["sequence"]]
        asked: dict[str, Any] = {"session": self._token(talker, call), "sequence": sequence, "events": events}
        asked |= {"settling": said["settling"], "resuming": said["resuming"]}
        asked["looked"] = talker.looked if said["looked"] == "honest" else said["looked"]
        if "gauges" in said:
            asked["gauges"] = pb.Gauges(**said["gauges"])
        if said["sequence"] == "next" and said["token"] == "own":
            talker.sequence += 1
        self._say(talker, call, talker.stub.Exchange, _with(pb.ExchangeRequest(), asked, said["strange"]), talker.heard)

    def _answer(self, talker: Talker, how: str) -> pb.Events:
        """Events about what the server proposed last, or about what is merged by what was said before."""
        if how in ("copied", "released", "not adopted"):
            kind, detail = {
                "copied": (pb.EVENT_KIND_COPIED, 0),
                "released": (pb.EVENT_KIND_RELEASED, 1),
                "not adopted": (pb.EVENT_KIND_NOT_ADOPTED, 12),
            }[how]
            gone, talker.merged = talker.merged[:3], talker.merged[3:]
            return _events([(kind, *run[:3], 0, 0, detail) for run in gone])
        events = pb.Events() if talker.reply is None else obey(talker.reply) or pb.Events()
        talker.reply = None
        for at, kind in enumerate(events.kind):
            if how == "decline" and kind == pb.EVENT_KIND_MERGED:
                events.kind[at], events.detail[at] = pb.EVENT_KIND_DECLINED, 1 + at % 6
            elif how == "frame":
                events.frame[at] += 1
            elif how == "pool":
                events.pool[at] ^= 1
            elif how == "part" and events.count[at] > 1:
                events.count[at] //= 2
            run = (events.segment[at], events.first[at], events.count[at], events.pool[at], events.frame[at])
            if events.kind[at] == pb.EVENT_KIND_MERGED:
                talker.merged.append(run)
            elif events.kind[at] == pb.EVENT_KIND_RELEASED:
                talker.merged = [other for other in talker.merged if other[:2] != run[:2]]
        if how == "twice":
            events.MergeFrom(pb.Events.FromString(events.SerializeToString()))
        return events

    def _garble(self, talker: Talker, call: Call) -> None:
        data = call.said["data"]
        if call.said["method"]:
            garbled = talker.channel.unary_unary(f"/pagefold.v1.Memory/{call.said['method']}")
            with contextlib.suppress(grpc.RpcError):
                garbled(data, timeout=HANGS)
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as raw:
            raw.connect(self._address.removeprefix("unix:"))
            raw.sendall(_PREFACE + data)

    def _token(self, talker: Talker, call: Call) -> bytes:
        others = [other.token for other in self._talkers if other is not None and other is not talker and other.token]
        return {
            "own": talker.token,
            "other": (others or [self._old])[0],
            "old": self._old,
            "invented": bytes(range(16)),
            "empty": b"",
            "long": b"x" * 70_000,
        }[call.said["token"]]

    def _say(
        self,
        talker: Talker,
        call: Call,
        method: Any,
        request: Any,
        heard: Callable[[Any], None] = lambda _: None,
    ) -> None:
        """Makes a call, and waits for its answer as the call says."""
        wait = call.said.get("wait", "now")
        if wait == "now":
            talker.land()
        began = time.monotonic()
        future = method.future(request, timeout=0.001 if wait == "deadline" else HANGS)
        ended: list[float] = []  # an answer that is taken later has come long before
        future.add_done_callback(lambda _: ended.append(time.monotonic()))

        def land() -> None:
            error = None
            try:
                heard(future.result())
            except grpc.RpcError as raised:
                error = raised
            except grpc.FutureCancelledError:
                return
            self._books.answered(call, max([began, *ended]) - began, error, meant=wait != "deadline")

        if wait == "later":
            talker.flying.append(land)
            return
        if wait == "cancel":
            future.cancel()
        land()


def _with(message: Any, said: dict[str, Any], strange: int = 0) -> Any:
    """A message of these fields, and with one that is in no .proto; enums may have any value."""
    message = type(message)(**said)
    if strange:
        message.MergeFromString(b"\xfa\x7f" + _varint(strange) + bytes(strange))  # field 2047
    return message


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    return bytes((number & 0x7F | 0x80,)) + _varint(number >> 7)


def _events(told: list[tuple[int, ...]]) -> pb.Events:
    return pb.Events(**dict(zip(_COLUMNS, map(list, zip(*told, strict=True)), strict=True))) if told else pb.Events()


def _holder(lie: str, fd: int) -> tuple[int, int]:
    """Which process has a memfd open, and as what."""
    pids = map(int, filter(str.isdigit, os.listdir("/proc")))  # numbers wrap: the parent's may be the highest
    return {
        "": (os.getpid(), fd),
        "init": (1, 0),
        "parent": (os.getppid(), 3),
        "sibling": (min((pid for pid in pids if pid > os.getppid()), default=1), 9),
        "nobody": ((1 << 22) - 1, 0),
        "pipe": (os.getpid(), 0),
        "nothing": (os.getpid(), 987_654),
    }[lie]


def _become(uid: int) -> None:
    """Changes the user for good, without a single capability left."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # else /proc/self is root's


def main() -> int:
    address, seed, calls, uid, without = sys.argv[1:]
    _become(int(uid))
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # a file lease that is to be given back is not
    books = Books()
    driver = Driver(address, books)
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    try:
        for call in itertools.islice(Script(seed, tuple(filter(None, without.split(",")))), int(calls)):
            driver.run(call)
            if books.calls % 50 == 0:
                books.tell()
            if ended.is_set():
                break
    finally:
        driver.close()
        books.tell()
    return 0


if __name__ == "__main__":
    sys.exit(main())
