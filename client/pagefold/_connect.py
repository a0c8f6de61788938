"""connect(): assembles a client, and leaves nothing behind when that fails half way.

lease -> native space (from here on forks wait) -> doorbell -> arena -> channel -> hello -> session

The session's thread does all of it; no signal reaches that thread. The caller of connect() waits for it. An exception
may interrupt the caller at any moment: the thread then finds that it is not waited for, and ends its new session.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import sys
import weakref
from dataclasses import dataclass
from typing import Any, Final, cast

import pagefold_core
from pagefold_core import Answer, Arena, Ending, Features, Lifeline, Space, Turn
from pagefold_proto import addresses, obstacle_table, tls
from pagefold_proto.addresses import Address
from pagefold_proto.limits import PAGE, PROTOCOL
from pagefold_proto.obstacle_table import Kind
from pagefold_proto.text import printable
from pagefold_proto.v1 import memory_pb2 as pb
from pagefold_proto.version import __version__

from pagefold._client import Client, Connection, on_session_thread
from pagefold._errors import (
    BarrierUnavailable,
    DescriptorsClosed,
    ServerUnavailable,
    TlsFailed,
    TrackerUnavailable,
)
from pagefold._launch import user_server
from pagefold._memory.arena import FIRST_SEGMENT, LAST_SEGMENT, no_segment
from pagefold._options import barriers, trackers
from pagefold._options.backings import Backing
from pagefold._options.barriers import Barrier
from pagefold._options.options import ConnectOptions
from pagefold._options.trackers import Tracker
from pagefold._process import dumpable, threads
from pagefold._process.log import log as _log
from pagefold._session.channel import is_silence
from pagefold._session.conversation import Conversation
from pagefold._session.lease import HeldLease
from pagefold._session.session import Components, Session
from pagefold._session.transport import GrpcTransport, Transport

START_SECONDS: Final = 20.0
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

# By process: in a child, one client connects at a time. Only threads that no signal reaches take the lock.
_attaching: dict[int, Any] = {}


def connect(
    address: str | None = None,
    *,
    label: str = "",
    autostart: bool | None = None,
    barrier: Barrier | None = None,
    tracker: Tracker | None = None,
    backing: Backing | None = None,
    mapping_budget: int | None = None,
    token: str | None = None,
    ca: str | os.PathLike[str] | None = None,
    transport: Transport | None = None,
) -> Client:
    """Connects to a pagefold server; starts one for this user if none answers.

    Keep the client as long as its memory: `close()`, and so the end of a `with` block, ends the merging of arrays that
    live on. Buffers and arrays keep alive a client that goes out of scope unclosed. Each call makes a new client with a
    session, memory and a mapping budget of its own. The memory of all clients of one user and label is merged, in one
    process as between processes, so a second client is never needed and does no harm.

    Args:
        address: `unix:/path/server.sock` or `tcp:HOST:PORT`. Default: $PAGEFOLD_ADDRESS, else this user's own socket.
        label: only clients of one user with the same label share memory. At most 64 characters.
        autostart: start a server if none answers; Unix sockets only. Default: True, unless $PAGEFOLD_AUTOSTART is 0.
        barrier: how writes are held while a page is remapped. "uffd" holds all of them. With "user", a system call that
            writes into a page at that moment fails with EFAULT. With "off" nothing merges. Default: $PAGEFOLD_BARRIER,
            else "uffd" where the kernel allows it and "off" elsewhere; then a warning of the logger "pagefold" and
            `Client.stats().trouble` say why.
        tracker: how written pages are found. With "pagemap" the client asks the kernel, and the server reads only
            those. With "checksum" the server reads every page in every pass. Default: $PAGEFOLD_TRACKER, else
            "pagemap" where the kernel has it (Linux 6.7).
        backing: where memory comes from. "shm" is POSIX shared memory, bounded by the size of /dev/shm. "memfd" is
            bounded by memory alone. "auto" is "shm" while /dev/shm has room to spare, then "memfd". Default:
            $PAGEFOLD_BACKING, else "auto".
        mapping_budget: most kernel mappings that memory may be cut into. Default: $PAGEFOLD_MAPPING_BUDGET, else
            half of what a process may have (vm.max_map_count).
        token: the server's bearer token, for TCP. Default: $PAGEFOLD_TOKEN.
        ca: file with the certificate (PEM) that the server's is signed with, for TCP. It turns encryption on.
        transport: replaces the connection, in tests; see `pagefold.testing`.

    Raises:
        ServerUnavailable: no server answers, and none could be started.
        TlsFailed: a server answers, and `ca` does not vouch for its certificate.
        DescriptorsClosed: (a ServerUnavailable) the program has closed gRPC's descriptors.
        ServerRefused: the server refuses this client; the subclass says why.
        BarrierUnavailable: this machine does not allow the barrier that was asked for.
        TrackerUnavailable: this machine does not have the tracker that was asked for.
        OutOfSharedMemory: /dev/shm, or the process's descriptors, have no room for the small objects of a client.
        OutOfThreads: the threads of a connection cannot be started.
        ClientClosed: the program ends, and pagefold's own atexit handler has run.
        ForkedClient: this process was forked from one that had connected with GRPC_ENABLE_FORK_SUPPORT off.
        ValueError: an argument is out of its range.

    Example:
        >>> import pagefold
        >>> with pagefold.connect() as client:
        ...     buf = client.allocate(1 << 20)
    """
    options = ConnectOptions.checked(address, label, autostart, barrier, tracker, backing, mapping_budget, token, ca)
    return cast(Client, on_session_thread(functools.partial(_connect, options, transport)))


def _connect(options: ConnectOptions, transport: Transport | None, answer: Answer) -> None:
    """Runs on the session's thread: makes a client, and then is its session."""
    connection = _assemble(options, transport, answer)
    session = connection.session
    client = Client(connection, functools.partial(_attach, options) if transport is None else None)
    del connection  # the client alone holds its lifeline
    if not answer.give(client):
        client.abandon()
    del client
    session.run()


def _attach(options: ConnectOptions, known: weakref.ref[Client], answer: Answer) -> None:
    """Runs on the session's thread: connects a client that this process has inherited, and then is its session."""
    with _attaching.setdefault(os.getpid(), threads.Lock()):
        client = known()
        parent = None if client is None else client.parents
        if client is None or parent is None:
            return  # another thread was faster
        connection = _assemble(options, None, answer, parent)
        session = connection.session
        client.attached(connection)
        del client, parent, connection
    answer.give(None)
    session.run()


@dataclass(frozen=True, slots=True)
class _Means:
    """By what means a client merges.

    Attributes:
        barrier: how writes are held.
        tracker: how written pages are found.
        obstacle: what keeps pages from merging then; None: nothing.
        error: its errno; 0: none.
    """

    barrier: Barrier
    tracker: Tracker
    obstacle: Kind | None = None
    error: int = 0


def _assemble(
    options: ConnectOptions, transport: Transport | None, answer: Answer, parent: Session | None = None
) -> Connection:
    features = pagefold_core.probe(options.disabled)
    means = _choose(options, features)
    where = options.address or addresses.parse(addresses.default_address())
    if options.address is None and transport is None:
        with contextlib.suppress(FileNotFoundError):
            addresses.verify_directory(os.path.dirname(where.path))
    with contextlib.ExitStack() as undo:
        lease = HeldLease()
        undo.callback(lease.release)
        try:
            space, means = _make_space(options, means, lease.fd, features)
        finally:
            lease.fd.close()  # the native half has one of its own, for as long as it needs it
        undo.callback(space.close)
        bell = lease.make_doorbell()
        space.attend(bell)
        arena = Arena(space, options.backing, FIRST_SEGMENT // PAGE, LAST_SEGMENT // PAGE)
        with Turn():
            used = transport or _open_channel(where, options)
        if transport is None:
            pagefold_core.hold_signals_over_forks()  # grpc has registered its own handlers by now
        undo.callback(_close_in_turn, used)
        conversation = Conversation(space, arena, used)
        if means.obstacle is not None:
            conversation.obstacles.put(means.obstacle, there=True, error=means.error)
        request = _hello_request(lease, means, options.label)
        try:
            _hello(conversation, where, request, options.autostart and transport is None, answer)
        except ServerUnavailable as error:
            why = tls.why_not(where, options.ca) if transport is None else ""
            if why:
                raise TlsFailed(f"a server listens at {where}, but {why}: check ca=") from error
            raise
        if parent is not None and conversation.may_inherit(parent.conversation):
            for segment in arena.inherit(parent.space):
                conversation.inherit_segment(segment)
        ending = Ending(bell, functools.partial(_close_in_turn, used))
        components = Components(space, arena, conversation, used, bell, ending, lease.release, means.tracker)
        session = Session(components)
        undo.pop_all()
    if means.obstacle not in (None, pb.OBSTACLE_KIND_OFF):
        level = logging.WARNING if parent is None else logging.DEBUG  # a family is told once
        _log.log(level, "connected, but %s", obstacle_table.text(conversation.obstacles.listed(0)))
    return Connection(session, Lifeline(ending, arena))


def _choose(options: ConnectOptions, features: Features) -> _Means:
    barrier, obstacle = barriers.choose(options.barrier, features)
    return _Means(barrier, trackers.choose(options.tracker, features, barrier), obstacle)


def _make_space(options: ConnectOptions, means: _Means, lease: int, features: Features) -> tuple[Space, _Means]:
    """A space with these means. Where the kernel refuses those that were not asked for, with the next best."""
    budget = features.max_map_count // 2 if options.mapping_budget is None else options.mapping_budget

    def make(barrier: Barrier, tracker: Tracker) -> Space:
        return Space(barrier, lease, budget, disabled=options.disabled, tracker=tracker)

    try:
        try:
            return make(means.barrier, means.tracker), means
        except OSError as error:
            if means.tracker == "checksum":
                raise
            space = make(means.barrier, "checksum")  # no descriptor is left for the other one, for example
            if options.tracker is not None:
                space.close()
                raise TrackerUnavailable(f"tracker={means.tracker!r} cannot be had here: {error}") from error
            return space, _Means(means.barrier, "checksum", means.obstacle)
    except OSError as error:
        if error.errno in _EXHAUSTED:  # a client that merges nothing, for lack of a descriptor, is no help
            raise no_segment(PAGE, error) from error
        why = dumpable.why_not()
        if options.barrier is not None:
            raise BarrierUnavailable(f"barrier={means.barrier!r} cannot be had here: {why or error}") from error
        obstacle = pb.OBSTACLE_KIND_PAGEMAP if "pagemap" in str(error) or why else pb.OBSTACLE_KIND_SPACE
        return make("off", "checksum"), _Means("off", "checksum", obstacle, error.errno or 0)


def _open_channel(where: Address, options: ConnectOptions) -> GrpcTransport:
    try:
        return GrpcTransport(where, options.token, options.ca)
    except OSError as error:
        if error.errno in _EXHAUSTED:
            raise no_segment(PAGE, error) from error
        raise


def _hello_request(lease: HeldLease, means: _Means, label: str) -> pb.HelloRequest:
    tiers: dict[Barrier, pb.Tier] = {"uffd": pb.TIER_UFFD, "user": pb.TIER_USER, "off": pb.TIER_OFF}
    return pb.HelloRequest(
        protocol=PROTOCOL,
        page_size=PAGE,
        pid=os.getpid(),
        program=printable(os.path.basename(sys.argv[0] if sys.argv else ""))[:255],
        version=__version__,
        label=label,
        lease=lease.name,
        doorbell=lease.doorbell,
        tier=tiers[means.barrier],
        tracker=pb.TRACKER_PAGEMAP if means.tracker == "pagemap" else pb.TRACKER_CHECKSUM,
        proof=lease.proof,
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
            # With autostart a server answered a moment ago: it may be stopping, or not be ready yet.
            if not autostart or not answer.wanted or threads.monotonic() > deadline:
                stuck = addresses.stuck(where) if is_silence(error) else ""  # one that is stopping does answer
                hint = stuck or "Start a server with `pagefold serve`"
                raise ServerUnavailable(f"{error}. {hint}") from error
            threads.sleep(0.1)  # no event tells when a server that is stopping is gone
        else:
            return


def _close_in_turn(transport: Transport) -> None:
    with Turn():
        transport.close()
