"""The client: what programs use. It puts the parts together; the work is done in arena, session and native space.

Lock order: arena -> session -> native (`_fork.py`). Nothing here holds a lock while it calls into anything else.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import operator
import os
import sys
import time
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, SupportsIndex

import pagefold_core
import posix_ipc
from pagefold_core import Doorbell, Space
from pagefold_proto.v1 import memory_pb2 as pb

from pagefold import _address, _arrays, _autostart, _fork, _names, _tier
from pagefold._address import Address
from pagefold._arena import Arena, no_segment
from pagefold._buffer import HOW_TO_ALLOCATE, Buffer, span_of
from pagefold._conversation import ADOPT_PAGES, Conversation
from pagefold._errors import BarrierUnavailable, ClientClosed, ServerUnavailable
from pagefold._reports import SettleReport, Stats
from pagefold._session import Session, Wiring
from pagefold._transport import GrpcTransport, Transport
from pagefold._version import __version__

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

PROTOCOL: Final = 1
PAGE: Final = pagefold_core.PAGE_SIZE
SETTLE_SECONDS: Final = 60.0
START_SECONDS: Final = 20.0
MAX_DOMAIN: Final = 64

Shape = SupportsIndex | tuple[SupportsIndex, ...]

_log = logging.getLogger("pagefold")
_clients: weakref.WeakSet[Client] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class _Parts:
    """What an open client consists of. A closed one lets go of it all, so that memory goes with its last buffer."""

    kin: _fork.Kin
    space: Space
    arena: Arena
    conversation: Conversation
    session: Session
    trouble: str


class Client:
    """A connection to a pagefold server, and the memory that is merged through it. Made by `pagefold.connect`.

    Thread-safe: any thread may call any method at any time. Closing it, by `close()` or as a context manager, ends
    the merging; its buffers and arrays stay readable and writable until they are released. After a fork the child
    has a snapshot of the memory, as with ordinary memory; there, methods raise ForkedClient, and a client of its own
    is a `connect()` away.

    Example:
        >>> a = client.array(range(1000), "u4")
        >>> report = client.settle(timeout=10)
        >>> client.stats().saved_bytes >= 0
        True
    """

    def __init__(self, parts: _Parts) -> None:
        self._parts: _Parts | None = parts
        _clients.add(self)

    def allocate(self, size: SupportsIndex) -> Buffer:
        """Allocates zeroed memory that starts on a page boundary. Pages take memory when they are touched.

        Args:
            size: bytes; 0 is fine. Memory is handed out in whole pages.

        Raises:
            OutOfSharedMemory: (a MemoryError) it cannot be backed; the text says what to do.
            ValueError: the size is negative.
            TypeError: the size is not an integer.

        Example:
            >>> buf = client.allocate(64 << 20)
            >>> len(buf)
            67108864
        """
        return self._allocator()(_size(size))

    def empty(self, shape: Shape, dtype: DTypeLike = float, order: _arrays.Order = "C") -> NDArray[Any]:
        """An array as `numpy.empty` makes it, in mergeable memory; it happens to hold zeros.

        Args:
            shape: elements along each axis.
            dtype: of the elements; no Python objects.
            order: "C" (rows first) or "F".

        Raises:
            OutOfSharedMemory: see `allocate`.
            TypeError: the type holds references to Python objects.
        """
        return _arrays.zeros(self._allocator(), shape, dtype, order)

    def zeros(self, shape: Shape, dtype: DTypeLike = float, order: _arrays.Order = "C") -> NDArray[Any]:
        """An array of zeros. Takes no memory until it is written. See `empty`."""
        return _arrays.zeros(self._allocator(), shape, dtype, order)

    def full(
        self, shape: Shape, fill_value: ArrayLike, dtype: DTypeLike | None = None, order: _arrays.Order = "C"
    ) -> NDArray[Any]:
        """An array filled with a value, of the value's type if no other is given. See `empty`."""
        return _arrays.full(self._allocator(), shape, fill_value, dtype, order)

    def array(self, obj: ArrayLike, dtype: DTypeLike | None = None, order: _arrays.LikeOrder = "K") -> NDArray[Any]:
        """A copy, in mergeable memory, of anything that NumPy takes for an array. See `empty`."""
        return _arrays.array(self._allocator(), obj, dtype, order)

    def empty_like(
        self, prototype: ArrayLike, dtype: DTypeLike | None = None, order: _arrays.LikeOrder = "K"
    ) -> NDArray[Any]:
        """An array with the shape, type and layout of another one. See `empty`."""
        return _arrays.like(self._allocator(), prototype, dtype, order)

    def zeros_like(
        self, prototype: ArrayLike, dtype: DTypeLike | None = None, order: _arrays.LikeOrder = "K"
    ) -> NDArray[Any]:
        """Zeros with the shape, type and layout of another array. See `empty`."""
        return _arrays.like(self._allocator(), prototype, dtype, order)

    def full_like(
        self,
        prototype: ArrayLike,
        fill_value: ArrayLike,
        dtype: DTypeLike | None = None,
        order: _arrays.LikeOrder = "K",
    ) -> NDArray[Any]:
        """A filled array with the shape, type and layout of another one. See `empty`."""
        result = _arrays.like(self._allocator(), prototype, dtype, order)
        _arrays.import_numpy().copyto(result, fill_value, casting="unsafe")
        return result

    def settle(self, timeout: float | None = None) -> SettleReport:
        """Merges now, and returns when nothing in the domain is left to merge.

        Use it before measuring, or after loading data that others have too. It is never a guess: `settled` is True
        only if the server read all of the domain's memory and found nothing to merge.

        Args:
            timeout: seconds; None: 60. When they are over, the report says so, with the numbers as they are then.
        """
        parts = self._open()
        seconds = SETTLE_SECONDS if timeout is None else float(timeout)
        if parts.space.tier == "off":
            return SettleReport(settled=False, reason=parts.trouble, seconds=0.0)
        parts.arena.sweep()
        return parts.session.settle(seconds)

    def stats(self) -> Stats:
        """This client's memory as it is now, by the kernel's word and the server's last answer."""
        parts = self._open()
        parts.arena.sweep()
        parts.space.harvest()
        counts, windows = parts.space.counts(), parts.space.windows()
        totals, session = parts.conversation.totals, parts.session
        mappings = totals.pages_shared + totals.pages_sharing
        spared = counts.merged * totals.pages_sharing // mappings if mappings else 0
        in_use = max(parts.arena.pages_in_use, counts.merged + counts.zero + counts.copied)
        refused = next(iter(parts.conversation.refused.values()), "")
        troubles = (parts.trouble, session.lost, session.trouble, refused)
        return Stats(
            allocated_bytes=in_use * PAGE,
            owned_bytes=(in_use - counts.merged - counts.zero - counts.copied) * PAGE,
            merged_bytes=counts.merged * PAGE,
            zero_bytes=counts.zero * PAGE,
            copied_bytes=counts.copied * PAGE,
            saved_bytes=(counts.zero + spared) * PAGE,
            mappings=counts.mappings,
            mapping_budget=counts.budget,
            tier=parts.space.tier,
            tracker="checksum",
            connected=not (session.lost or session.trouble),
            trouble="; ".join(text for text in troubles if text),
            windows=windows.windows,
            window_p99_micros=windows.p99_micros,
            window_max_micros=windows.max_micros,
        )

    @contextlib.contextmanager
    def pinned(self, obj: Any) -> Iterator[None]:
        """Keeps memory from being merged, for as long as a device may write to it.

        Devices write by physical address, past every protection: O_DIRECT reads, io_uring's fixed buffers, RDMA.
        Pin before such a transfer begins, and until it is over. Nests; any number of threads may pin the same memory.

        Args:
            obj: a Buffer, ndarray or memoryview in this client's memory; all pages that it touches are pinned.

        Raises:
            ValueError: it is not in memory of this client.
        """
        parts = self._open()
        with contextlib.ExitStack() as stack:
            if isinstance(obj, Buffer):
                stack.enter_context(memoryview(obj))  # so that it cannot be closed meanwhile
            place = _place(parts, obj)
            if place is not None:
                parts.space.pin(*place)
            try:
                yield
            finally:
                if place is not None and not parts.kin.forked:
                    with contextlib.suppress(RuntimeError):  # closed meanwhile: nothing merges any more anyway
                        parts.space.unpin(*place)

    def advise(self, obj: Any, *, mergeable: bool) -> None:
        """Says whether memory is worth merging, as madvise(MADV_MERGEABLE and MADV_UNMERGEABLE) does for KSM.

        With False, what is merged is taken back before the call returns (while a forked child shares the memory,
        that has to wait for the child's end). The advice ends with the buffer.

        Args:
            obj: a Buffer, ndarray or memoryview in this client's memory; all pages that it touches are meant.
            mergeable: False for memory that is written all the time, or that must not be shared.

        Raises:
            OutOfSharedMemory: there is no room to take merged pages back; they will not be merged again.
            ValueError: it is not in memory of this client.
        """
        parts = self._open()
        place = _place(parts, obj)
        if place is None:
            return
        segment, first, pages = place
        parts.space.exclude(segment, first, pages, not mergeable)
        if mergeable:
            return
        for begin in range(first, first + pages, ADOPT_PAGES):
            with parts.kin.session():
                parts.conversation.adopt(segment, begin, min(ADOPT_PAGES, first + pages - begin))
        parts.session.kick()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._parts is None

    def close(self) -> None:
        """Ends the session with the server. Buffers and arrays go on as ordinary memory. Closing twice is fine.

        In a forked child it does nothing: the client is the parent's.
        """
        parts = self._parts
        if parts is None or parts.kin.forked:
            return
        parts.session.close()
        self._parts = None

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        parts = getattr(self, "_parts", None)
        if parts is not None and not parts.kin.forked and not sys.is_finalizing():
            warnings.warn("a pagefold client was not closed", ResourceWarning, source=self, stacklevel=2)
            parts.session.stop()

    def __repr__(self) -> str:
        parts = self._parts
        if parts is None:
            return "<pagefold.Client, closed>"
        return f"<pagefold.Client, tier {parts.space.tier}{', of the parent process' if parts.kin.forked else ''}>"

    def _open(self) -> _Parts:
        parts = self._parts
        if parts is None:
            raise ClientClosed("the client is closed: connect again")
        parts.kin.ensure_not_forked()
        return parts

    def _allocator(self) -> _arrays.Allocate:
        parts = self._open()

        def allocate(nbytes: int) -> Buffer:
            buffer: Buffer = parts.arena.allocate(nbytes)
            parts.session.wait_announced()
            return buffer

        return allocate


def connect(
    address: str | None = None,
    *,
    domain: str = "",
    autostart: bool | None = None,
    barrier: str | None = None,
    mapping_budget: int | None = None,
    token: str | None = None,
    ca: str | os.PathLike[str] | None = None,
    transport: Transport | None = None,
) -> Client:
    """Connects to a pagefold server; starts one for this user if none answers.

    Args:
        address: `unix:/path/server.sock` or `tcp:HOST:PORT`. Default: $PAGEFOLD_ADDRESS, else this user's own socket.
        domain: only clients of the same user with the same domain share memory. At most 64 characters.
        autostart: start a server if none answers; Unix sockets only. Default: True, unless $PAGEFOLD_AUTOSTART is 0.
        barrier: how writes are held while pages are switched: "uffd"; "user", which makes system calls that write
            into a page at that very moment fail with EFAULT; "off": nothing merges. Default: $PAGEFOLD_BARRIER,
            else "uffd" where the kernel allows it and "off" elsewhere; `Client.stats().trouble` says why.
        mapping_budget: most kernel mappings that memory may be cut into. Default: $PAGEFOLD_MAPPING_BUDGET, else
            half of what a process may have (vm.max_map_count).
        token: the server's bearer token, for TCP. Default: $PAGEFOLD_TOKEN.
        ca: certificate file to check the server's with, for TCP: turns encryption on.
        transport: takes the place of the connection, for tests; see `pagefold.LocalTransport`.

    Raises:
        ServerUnavailable: no server answers, and none could be started.
        ServerRefused: the server does not want this client; its subclasses say what to do.
        BarrierUnavailable: the barrier that was asked for cannot be had.
        OutOfSharedMemory: not even the small objects of a client can be made in /dev/shm.
        ValueError: an argument is out of its range.

    Example:
        >>> import pagefold
        >>> with pagefold.connect() as client:
        ...     buf = client.allocate(1 << 20)
    """
    if len(domain) > MAX_DOMAIN:
        raise ValueError(f"domain has {len(domain)} characters; {MAX_DOMAIN} are the most")
    asked = barrier if barrier is not None else os.environ.get("PAGEFOLD_BARRIER") or None
    asked_tier = None if asked is None else _tier.checked(asked)
    disabled = [name for name in os.environ.get("PAGEFOLD_DISABLE", "").replace(" ", "").split(",") if name]
    features = pagefold_core.probe(disabled)
    tier, trouble = _tier.choose(asked_tier, features)
    budget = _budget(mapping_budget, features.max_map_count)
    named = address or os.environ.get("PAGEFOLD_ADDRESS") or None
    where = _address.parse(named or _address.default_address())
    if named is None and transport is None:
        with contextlib.suppress(FileNotFoundError):
            _address.verify_directory(os.path.dirname(where.path))
    if autostart is None:
        autostart = os.environ.get("PAGEFOLD_AUTOSTART", "1").lower() not in ("0", "no", "off", "false")
    autostart = autostart and where.scheme == "unix" and transport is None
    with contextlib.ExitStack() as undo:
        try:
            lease = _names.create_locked(_names.LEASE, 0o600, PAGE)
        except OSError as error:
            raise no_segment(PAGE, error) from error
        release = _Release(lease)
        undo.callback(release)
        try:
            space = Space(tier, lease.fd, budget, disabled=disabled)
        except OSError as error:
            if asked_tier is not None:
                raise BarrierUnavailable(f"barrier={tier!r} cannot be had here: {error}") from error
            tier, trouble = "off", f"nothing is merged: {error}"
            space = Space(tier, lease.fd, budget, disabled=disabled)
        bell = release.make_doorbell()
        kin = _fork.Kin(space, can_thaw=tier != "off")
        _fork.register(kin)
        undo.callback(kin.detach)
        with kin.session():
            used = transport or GrpcTransport(where, token or os.environ.get("PAGEFOLD_TOKEN"), ca)
            kin.in_child = used.forget
        undo.callback(_close_locked, kin, used)
        conversation = Conversation(space, used, bell.ring)
        _hello(kin, conversation, where, _hello_request(lease.name, tier, domain), autostart)
        arena = Arena(kin, space, conversation, Buffer)
        conversation.watch(arena)
        session = Session(Wiring(kin, space, arena, conversation, used, bell, release))
        session.start()
        undo.pop_all()
    return Client(_Parts(kin, space, arena, conversation, session, trouble))


class _Release:
    """Lets go of a client's lease and doorbell; the native half has descriptors of its own for as long as it needs."""

    def __init__(self, lease: _names.LockedObject) -> None:
        self._lease = lease
        self._doorbell = ""

    def make_doorbell(self) -> Doorbell:
        name = _names.doorbell_for(self._lease.name)
        try:
            posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600, initial_value=0).close()
        except OSError as error:
            raise no_segment(PAGE, error) from error
        self._doorbell = name
        return Doorbell(name)

    def __call__(self) -> None:
        if self._doorbell:
            with contextlib.suppress(posix_ipc.ExistentialError):
                posix_ipc.unlink_semaphore(self._doorbell)
        _names.remove(self._lease.name)
        os.close(self._lease.fd)


def _hello_request(lease: str, tier: _tier.Barrier, domain: str) -> pb.HelloRequest:
    tiers: dict[_tier.Barrier, pb.Tier] = {"uffd": pb.TIER_UFFD, "user": pb.TIER_USER, "off": pb.TIER_OFF}
    return pb.HelloRequest(
        protocol=PROTOCOL,
        page_size=PAGE,
        pid=os.getpid(),
        program=os.path.basename(sys.argv[0] if sys.argv else "")[:255],
        version=__version__,
        label=domain,
        lease=lease,
        doorbell=_names.doorbell_for(lease),
        tier=tiers[tier],
        tracker=pb.TRACKER_CHECKSUM,
    )


def _hello(
    kin: _fork.Kin, conversation: Conversation, where: Address, request: pb.HelloRequest, autostart: bool
) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        if autostart:
            _autostart.ensure_server(where, max(0.0, deadline - time.monotonic()))
        try:
            with kin.session():
                conversation.hello(request)
        except ServerUnavailable as error:
            # With autostart it answered a moment ago: it may be stopping, or not be quite there yet.
            if not autostart or time.monotonic() > deadline:
                raise ServerUnavailable(f"{error}. Start a server with `pagefold serve`") from error
            time.sleep(0.1)
        else:
            return


def _close_locked(kin: _fork.Kin, transport: Transport) -> None:
    with kin.session():
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


def _size(size: SupportsIndex) -> int:
    try:
        nbytes = operator.index(size)
    except TypeError:
        raise TypeError(f"a size is a whole number of bytes, not {type(size).__name__}") from None
    if nbytes < 0:
        raise ValueError(f"a size cannot be negative: {nbytes}")
    return nbytes


def _place(parts: _Parts, obj: Any) -> tuple[int, int, int] | None:
    address, nbytes = span_of(obj)
    if nbytes == 0:
        return None
    place = parts.arena.locate(address, nbytes)
    if place is None:
        raise ValueError(f"this memory does not belong to the client: {HOW_TO_ALLOCATE}")
    return place


def _close_all() -> None:
    # While Python is whole: a thread that came back from native code later could not take the GIL any more.
    for client in list(_clients):
        try:
            client.close()
        except Exception:
            _log.exception("closing a pagefold client at exit failed")


atexit.register(_close_all)
