"""connect(): puts a client together, and leaves nothing behind when that fails half way.

lease -> native space (from here on forks wait) -> doorbell -> arena -> channel -> hello -> session

All of it is done by the session's thread, which no signal reaches. Whoever called connect() waits for it, and may be
interrupted at any moment: then the thread finds that nobody waits, and ends the session that it has just begun.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import secrets
import sys
import weakref
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import pagefold_core
import posix_ipc
from pagefold_core import Answer, Arena, Doorbell, Ending, Lifeline, Space, Turn
from pagefold_proto import addresses, obstacle_table, shm_names, tls
from pagefold_proto.addresses import Address
from pagefold_proto.limits import MAX_LABEL, PAGE, PROTOCOL
from pagefold_proto.text import printable
from pagefold_proto.v1 import memory_pb2 as pb
from pagefold_proto.version import __version__

from pagefold._client import Again, Client, Parts, begin
from pagefold._errors import (
    BarrierUnavailable,
    DescriptorsClosed,
    ServerUnavailable,
    TlsFailed,
    TrackerUnavailable,
)
from pagefold._launch import user_server
from pagefold._memory.arena import FIRST_SEGMENT, LAST_SEGMENT, no_segment
from pagefold._options import backings, barriers, trackers
from pagefold._process import dumpable, threads
from pagefold._process.log import log as _log
from pagefold._session.conversation import Conversation
from pagefold._session.session import Session, Wiring
from pagefold._session.transport import GrpcTransport, Transport

START_SECONDS: Final = 20.0
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

# By process: one client connects at a time in a child. Only threads that no signal reaches take it.
_attaching: dict[int, Any] = {}


def connect(
    address: str | None = None,
    *,
    domain: str = "",
    autostart: bool | None = None,
    barrier: str | None = None,
    tracker: str | None = None,
    backing: str | None = None,
    mapping_budget: int | None = None,
    token: str | None = None,
    ca: str | os.PathLike[str] | None = None,
    transport: Transport | None = None,
) -> Client:
    """Connects to a pagefold server; starts one for this user if none answers.

    Keep the client as long as its memory: `close()`, which the end of a `with` block is, ends the merging of arrays
    that live on. One that goes out of scope unclosed is kept by its buffers and arrays. Each call makes a client of
    its own, with a session, memory and a mapping budget of its own; the memory of all clients of one user and domain
    is merged, in one process as between processes. So a second one is never needed, and does no harm.

    Args:
        address: `unix:/path/server.sock` or `tcp:HOST:PORT`. Default: $PAGEFOLD_ADDRESS, else this user's own socket.
        domain: only clients of the same user with the same domain share memory. At most 64 characters.
        autostart: start a server if none answers; Unix sockets only. Default: True, unless $PAGEFOLD_AUTOSTART is 0.
        barrier: how writes are held while pages are switched: "uffd"; "user", which makes system calls that write
            into a page at that very moment fail with EFAULT; "off": nothing merges. Default: $PAGEFOLD_BARRIER,
            else "uffd" where the kernel allows it and "off" elsewhere; a warning of the logger "pagefold" and
            `Client.stats().trouble` say why.
        tracker: how written pages are found: "pagemap" asks the kernel, so that only those are read; with "checksum"
            the server reads everything again and again. Default: $PAGEFOLD_TRACKER, else "pagemap" where the kernel
            has it (Linux 6.7).
        backing: where memory comes from: "shm", POSIX shared memory, bounded by the size of /dev/shm; "memfd", bounded
            by memory alone; "auto": "shm" while /dev/shm has room to spare, then "memfd". Default:
            $PAGEFOLD_BACKING, else "auto".
        mapping_budget: most kernel mappings that memory may be cut into. Default: $PAGEFOLD_MAPPING_BUDGET, else
            half of what a process may have (vm.max_map_count).
        token: the server's bearer token, for TCP. Default: $PAGEFOLD_TOKEN.
        ca: certificate file to check the server's with, for TCP: turns encryption on.
        transport: takes the place of the connection, for tests; see `pagefold.LocalTransport`.

    Raises:
        ServerUnavailable: no server answers, and none could be started.
        TlsFailed: somebody answers, but not with a certificate that `ca` vouches for.
        DescriptorsClosed: (a ServerUnavailable) the program has closed gRPC's descriptors.
        ServerRefused: the server does not want this client; its subclasses say what to do.
        BarrierUnavailable: the barrier that was asked for cannot be had.
        TrackerUnavailable: the tracker that was asked for cannot be had.
        OutOfSharedMemory: not even the small objects of a client can be made in /dev/shm.
        OutOfThreads: the threads of a connection cannot be started.
        ClientClosed: the program ends, and pagefold's own atexit handler has run.
        ForkedClient: this process was forked from one that had connected with GRPC_ENABLE_FORK_SUPPORT off.
        ValueError: an argument is out of its range.

    Example:
        >>> import pagefold
        >>> with pagefold.connect() as client:
        ...     buf = client.allocate(1 << 20)
    """
    wanted = Wanted(address, domain, autostart, barrier, tracker, backing, mapping_budget, token, ca, transport)
    return cast(Client, begin(functools.partial(_connect, wanted)))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for; see `connect`. A child asks for the same."""

    address: str | None
    domain: str
    autostart: bool | None
    barrier: str | None
    tracker: str | None
    backing: str | None
    mapping_budget: int | None
    token: str | None
    ca: str | os.PathLike[str] | None
    transport: Transport | None


def _connect(wanted: Wanted, answer: Answer) -> None:
    """The session's thread, of a client that is new."""
    session, parts, again = _put_together(wanted, answer)
    client = Client(parts, again)
    del parts  # whoever has the client is the only one to hold its lifeline
    if not answer.give(client):
        client.abandon()
    del client
    session.run()


def _attach(wanted: Wanted, known: weakref.ref[Client], answer: Answer) -> None:
    """The session's thread, of a client that this process has inherited."""
    with _attaching.setdefault(os.getpid(), threads.Lock()):
        client = known()
        inherited = None if client is None else client.inherited
        if client is None or inherited is None:
            return  # another thread was faster
        session, parts, _ = _put_together(wanted, answer, inherited)
        client.attached(parts)
        del client, inherited, parts
    answer.give(None)
    session.run()


def _put_together(wanted: Wanted, answer: Answer, parent: Parts | None = None) -> tuple[Session, Parts, Again | None]:
    domain, barrier, tracker, transport = wanted.domain, wanted.barrier, wanted.tracker, wanted.transport
    if len(domain) > MAX_LABEL:
        raise ValueError(f"domain has {len(domain)} characters; {MAX_LABEL} are the most")
    if any("\ud800" <= character <= "\udfff" for character in domain):
        raise ValueError(f"domain is {domain!r}, and a part of it is no text: bytes that are not UTF-8")
    asked = barrier if barrier is not None else os.environ.get("PAGEFOLD_BARRIER") or None
    asked_tier = None if asked is None else barriers.checked(asked)
    disabled = [name for name in os.environ.get("PAGEFOLD_DISABLE", "").replace(" ", "").split(",") if name]
    features = pagefold_core.probe(disabled)
    tier, obstacle = barriers.choose(asked_tier, features)
    code = 0
    asked_tracker = tracker if tracker is not None else os.environ.get("PAGEFOLD_TRACKER") or None
    asked_tracker = None if asked_tracker is None else trackers.checked(asked_tracker)
    way = trackers.choose(asked_tracker, features, tier)
    where_from = backings.checked(wanted.backing or os.environ.get("PAGEFOLD_BACKING") or "auto")
    budget = _budget(wanted.mapping_budget, features.max_map_count)
    token = tls.checked_token(wanted.token or os.environ.get("PAGEFOLD_TOKEN") or "")
    named = wanted.address or os.environ.get("PAGEFOLD_ADDRESS") or None
    where = addresses.parse(named or addresses.default_address())
    if named is None and transport is None:
        with contextlib.suppress(FileNotFoundError):
            addresses.verify_directory(os.path.dirname(where.path))
    autostart = wanted.autostart
    if autostart is None:
        autostart = os.environ.get("PAGEFOLD_AUTOSTART", "1").lower() not in ("0", "no", "off", "false")
    autostart = autostart and where.scheme == "unix" and transport is None
    with contextlib.ExitStack() as undo:
        try:
            lease = shm_names.create_locked(shm_names.LEASE, 0o600, PAGE)
        except OSError as error:
            raise no_segment(PAGE, error) from error
        release = _Release(lease.name)
        undo.callback(release)
        try:
            proof = _write_proof(lease.fd)
            space, way = _make_space(tier, lease.fd, budget, disabled, way, asked_tracker is not None)
        except OSError as error:
            if error.errno in _EXHAUSTED:  # a client that merges nothing, for want of a descriptor, is no help
                raise no_segment(PAGE, error) from error
            why = dumpable.why_not() or error
            if asked_tier is not None:
                raise BarrierUnavailable(f"barrier={tier!r} cannot be had here: {why}") from error
            tier, obstacle, code, way = "off", _no_space(error), error.errno or 0, "checksum"
            space = Space(tier, lease.fd, budget, disabled=disabled)
        finally:
            lease.fd.close()  # the native half has one of its own, for as long as it needs it
        undo.callback(space.close)
        bell = release.make_doorbell()
        space.attend(bell)
        arena = Arena(space, where_from, FIRST_SEGMENT // PAGE, LAST_SEGMENT // PAGE)
        with Turn():
            used = transport or _open_channel(where, token, wanted.ca)
        if transport is None:
            pagefold_core.hold_signals_over_forks()  # grpc has registered its own handlers by now
        undo.callback(_close_in_turn, used)
        conversation = Conversation(space, arena, used)
        if obstacle is not None:
            conversation.obstacles.put(obstacle, there=True, error=code)
        request = _hello_request(lease.name, proof, tier, way, domain)
        try:
            _hello(conversation, where, request, autostart, answer)
        except ServerUnavailable as error:
            why = tls.why_not(where, wanted.ca) if transport is None else ""
            if why:
                raise TlsFailed(f"somebody listens at {where}, but {why}: check ca=") from error
            raise
        if parent is not None and conversation.may_inherit(parent.conversation):
            for segment in arena.inherit(parent.space):
                conversation.inherited(segment)
        ending = Ending(bell, functools.partial(_close_in_turn, used))
        session = Session(Wiring(space, arena, conversation, used, bell, release, ending))
        undo.pop_all()
    if obstacle is not None and obstacle != pb.OBSTACLE_KIND_OFF:
        level = logging.WARNING if parent is None else logging.DEBUG  # a family is told once
        _log.log(level, "connected, but %s", obstacle_table.text(conversation.obstacles.told(0)))
    again = functools.partial(_attach, replace(wanted, address=named)) if transport is None else None
    return session, Parts(Lifeline(ending, arena), space, arena, conversation, session, way), again


def _no_space(error: OSError) -> obstacle_table.Kind:
    """What it is that keeps this program from merging, where a space can be had in tier "off" only."""
    return pb.OBSTACLE_KIND_PAGEMAP if "pagemap" in str(error) or dumpable.why_not() else pb.OBSTACLE_KIND_SPACE


def _open_channel(where: Address, token: str, ca: str | os.PathLike[str] | None) -> GrpcTransport:
    try:
        return GrpcTransport(where, token, ca)
    except OSError as error:
        if error.errno in _EXHAUSTED:
            raise no_segment(PAGE, error) from error
        raise


def _make_space(
    tier: barriers.Barrier, lease: int, budget: int, disabled: list[str], way: trackers.Tracker, insist: bool
) -> tuple[Space, trackers.Tracker]:
    """A space with that tracker, or with the other one if it cannot be had after all (no descriptor left, say)."""
    try:
        return Space(tier, lease, budget, disabled=disabled, tracker=way), way
    except OSError as error:
        if way == "checksum":
            raise
        space = Space(tier, lease, budget, disabled=disabled)
        if insist:
            raise TrackerUnavailable(f"tracker={way!r} cannot be had here: {error}") from error
        return space, "checksum"


class _Release:
    """Lets go of the names of a client's lease and doorbell."""

    def __init__(self, lease: str) -> None:
        self._lease = lease
        self._doorbell = ""

    def make_doorbell(self) -> Doorbell:
        name = shm_names.doorbell_for(self._lease)
        try:
            posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600, initial_value=0).close()
            self._doorbell = name
            return Doorbell(name)
        except (posix_ipc.Error, OSError) as error:
            raise no_segment(PAGE, shm_names.with_number(error)) from error

    def __call__(self) -> None:
        if self._doorbell:
            with contextlib.suppress(posix_ipc.ExistentialError):
                posix_ipc.unlink_semaphore(self._doorbell)
        shm_names.remove(self._lease)


def _write_proof(lease: int) -> bytes:
    """Gives the lease a content that only its owner can show: its name can be read by everybody.

    Raises:
        OutOfSharedMemory: there is no room for it.
    """
    proof = secrets.token_bytes(shm_names.PROOF_BYTES)
    try:
        os.pwrite(lease, proof, 0)
    except OSError as error:
        raise no_segment(PAGE, error) from error
    return proof


def _hello_request(
    lease: str, proof: bytes, tier: barriers.Barrier, way: trackers.Tracker, domain: str
) -> pb.HelloRequest:
    tiers: dict[barriers.Barrier, pb.Tier] = {"uffd": pb.TIER_UFFD, "user": pb.TIER_USER, "off": pb.TIER_OFF}
    return pb.HelloRequest(
        protocol=PROTOCOL,
        page_size=PAGE,
        pid=os.getpid(),
        program=printable(os.path.basename(sys.argv[0] if sys.argv else ""))[:255],
        version=__version__,
        label=domain,
        lease=lease,
        doorbell=shm_names.doorbell_for(lease),
        tier=tiers[tier],
        tracker=pb.TRACKER_PAGEMAP if way == "pagemap" else pb.TRACKER_CHECKSUM,
        proof=proof,
    )


def _hello(
    conversation: Conversation, where: Address, request: pb.HelloRequest, autostart: bool, answer: Answer
) -> None:
    deadline = threads.monotonic() + START_SECONDS
    while True:
        if autostart:
            user_server.ensure_server(where, max(0.0, deadline - threads.monotonic()))
        try:
            with Turn():
                conversation.hello(request)
        except DescriptorsClosed:
            raise
        except ServerUnavailable as error:
            # With autostart it answered a moment ago: it may be stopping, or not be quite there yet.
            if not autostart or not answer.wanted or threads.monotonic() > deadline:
                hint = addresses.stuck(where) or "Start a server with `pagefold serve`"
                raise ServerUnavailable(f"{error}. {hint}") from error
            threads.sleep(0.1)  # a server that is stopping tells nobody when it is gone
        else:
            return


def _close_in_turn(transport: Transport) -> None:
    with Turn():
        transport.close()


def _budget(given: int | None, max_map_count: int) -> int:
    if given is None:
        text = os.environ.get("PAGEFOLD_MAPPING_BUDGET", "")
        if not text:
            return max_map_count // 2
        if not text.isascii() or not text.isdigit():
            raise ValueError(f"PAGEFOLD_MAPPING_BUDGET is {text!r}: it takes a number of mappings")
        given = int(text)
    if given < 0:
        raise ValueError(f"mapping_budget is {given}: it cannot be negative")
    return given
