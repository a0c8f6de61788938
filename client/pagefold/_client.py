"""The client: what programs use. It puts the parts together; native arena and space, and the session, do the work.

An exception may come out of a signal handler between any two steps of Python here. So each method does its work with
one native call, and what that returns lets go of itself: nothing has to be undone, and no lock is held.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import operator
import sys
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, SupportsIndex

import pagefold_core
from pagefold_core import Answer, Lifeline, NotBacked, Pin
from pagefold_proto import obstacle_table
from pagefold_proto.limits import PAGE
from pagefold_proto.v1 import memory_pb2 as pb

from pagefold._errors import ClientClosed, ForkedClient, OutOfThreads, PagefoldError
from pagefold._memory import arrays
from pagefold._memory.arena import not_allocated, not_taken_back
from pagefold._memory.buffer import HOW_TO_ALLOCATE, Buffer, span_of
from pagefold._process import fork, threads
from pagefold._process.log import log as _log
from pagefold._reports import SettleReport, Stats
from pagefold._session.session import GOODBYE_SECONDS, Session
from pagefold._session.transport import MORE_THREADS

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

SETTLE_SECONDS: Final = 60.0
ANNOUNCE_SECONDS: Final = 1.0
_EXIT_SECONDS: Final = 10.0
"""Most that the end of a program waits for its sessions to end."""

Shape = SupportsIndex | tuple[SupportsIndex, ...]
Reconnect = Callable[["weakref.ref[Client]", Answer], object]
"""In a child, on a thread of its own: connects a client that the process has inherited."""


@dataclass(frozen=True, slots=True)
class Connection:
    """What an open client holds. A closed one lets go of it, so that memory goes with its last buffer.

    The session ends when its `lifeline` is let go of, which nobody else holds.
    """

    session: Session
    lifeline: Lifeline


class Client:
    """A connection to a pagefold server, and the memory that is merged through it. Made by `pagefold.connect`.

    Thread-safe: any thread may call any method at any time. Closing it, by `close()` or as a context manager, ends
    the merging; its buffers and arrays stay readable and writable until they are released. After a fork the child
    has a snapshot of the memory, as with ordinary memory, and shares what neither writes. When the child uses the
    client, that connects again, as a client of the child's own: see `reattach`.

    Example:
        >>> a = client.array(range(1000), "u4")
        >>> report = client.settle(timeout=10)
        >>> client.stats().saved_bytes >= 0
        True
    """

    def __init__(self, connection: Connection, reconnect: Reconnect | None = None) -> None:
        self._connection: Connection | None = connection
        self._reconnect = reconnect

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

    def empty(self, shape: Shape, dtype: DTypeLike = float, order: arrays.Order = "C") -> NDArray[Any]:
        """An array as `numpy.empty` makes it, in mergeable memory; it happens to hold zeros.

        Args:
            shape: elements along each axis.
            dtype: of the elements; no Python objects.
            order: "C" (rows first) or "F".

        Raises:
            OutOfSharedMemory: see `allocate`.
            TypeError: the type holds references to Python objects.
        """
        return arrays.zeros(self._allocator(), shape, dtype, order)

    def zeros(self, shape: Shape, dtype: DTypeLike = float, order: arrays.Order = "C") -> NDArray[Any]:
        """An array of zeros. Takes no memory until it is written. See `empty`."""
        return arrays.zeros(self._allocator(), shape, dtype, order)

    def full(
        self, shape: Shape, fill_value: ArrayLike, dtype: DTypeLike | None = None, order: arrays.Order = "C"
    ) -> NDArray[Any]:
        """An array filled with a value, of the value's type if no other is given. See `empty`."""
        return arrays.full(self._allocator(), shape, fill_value, dtype, order)

    def array(self, obj: ArrayLike, dtype: DTypeLike | None = None, order: arrays.LikeOrder = "K") -> NDArray[Any]:
        """A copy, in mergeable memory, of anything that NumPy takes for an array. See `empty`."""
        return arrays.array(self._allocator(), obj, dtype, order)

    def empty_like(
        self, prototype: ArrayLike, dtype: DTypeLike | None = None, order: arrays.LikeOrder = "K"
    ) -> NDArray[Any]:
        """An array with the shape, type and layout of another one. See `empty`."""
        return arrays.like(self._allocator(), prototype, dtype, order)

    def zeros_like(
        self, prototype: ArrayLike, dtype: DTypeLike | None = None, order: arrays.LikeOrder = "K"
    ) -> NDArray[Any]:
        """Zeros with the shape, type and layout of another array. See `empty`."""
        return arrays.like(self._allocator(), prototype, dtype, order)

    def full_like(
        self,
        prototype: ArrayLike,
        fill_value: ArrayLike,
        dtype: DTypeLike | None = None,
        order: arrays.LikeOrder = "K",
    ) -> NDArray[Any]:
        """A filled array with the shape, type and layout of another one. See `empty`."""
        result = arrays.like(self._allocator(), prototype, dtype, order)
        arrays.import_numpy().copyto(result, fill_value, casting="unsafe")
        return result

    def settle(self, timeout: float | None = SETTLE_SECONDS) -> SettleReport:
        """Merges now, and returns when nothing in the domain is left to merge.

        Use it before measuring, or after loading data that others have too. It is never a guess: `settled` is True
        only if the server read all of the domain's memory, found nothing to merge, and nothing keeps pages of it from
        merging; else `reason` says what does, in how many pages, and what to do.

        Args:
            timeout: seconds, any number of them; None, as `math.inf`: without an end. When they are over, the report
                says so, with the numbers as they are then.

        Raises:
            ValueError: the timeout is no number (NaN).
            TypeError: it is of another type.
        """
        seconds = _timeout(timeout)
        session = self._open()
        if session.space.tier == "off":
            session.kick()  # the server is told how much memory it is
            return SettleReport(settled=False, reason=obstacle_table.text(session.obstacles()), seconds=0.0)
        session.arena.sweep()
        return session.settle(seconds)

    def stats(self) -> Stats:
        """This client's memory as it is now, by the kernel's word and the server's last answer."""
        session = self._open()
        session.arena.sweep()
        with contextlib.suppress(OSError):  # the program closed the descriptor for it: what was copied since is missing
            session.space.harvest(tracked=False)
        counts, windows = session.space.counts(), session.space.windows()
        totals = session.conversation.totals
        mappings = totals.pages_shared + totals.pages_sharing
        spared = counts.merged * totals.pages_sharing // mappings if mappings else 0
        in_use = max(session.arena.pages_in_use + counts.inherited, counts.merged + counts.zero + counts.copied)
        return Stats(
            allocated_bytes=in_use * PAGE,
            owned_bytes=(in_use - counts.merged - counts.zero - counts.copied) * PAGE,
            merged_bytes=counts.merged * PAGE,
            zero_bytes=counts.zero * PAGE,
            copied_bytes=counts.copied * PAGE,
            saved_bytes=(counts.zero + spared) * PAGE,
            mappings=counts.mappings,
            mapping_budget=counts.budget,
            barrier=session.space.tier,
            tracker=session.tracker,
            connected=not (session.lost or session.trouble),
            trouble=obstacle_table.text(session.obstacles()),
            windows=windows.windows,
            window_p99_micros=windows.p99_micros,
            window_max_micros=windows.max_micros,
            window_max_running_micros=windows.max_running_micros,
            backing=session.arena.backing,
            memfd_bytes=session.arena.memfd_pages * PAGE,
        )

    def pinned(self, obj: Any) -> Pin:
        """Keeps memory from being merged, for as long as a device may write to it.

        Devices write by physical address, past every protection: O_DIRECT reads, io_uring's fixed buffers, RDMA.
        Pin before such a transfer begins, and until it is over. Nests; any number of threads may pin the same memory.
        What this returns is a context manager: the memory is pinned from the call on, until the end of the block.

        Args:
            obj: a Buffer, ndarray or memoryview in this client's memory; all pages that it touches are pinned.

        Raises:
            ValueError: it is not in memory of this client.
        """
        session = self._open()
        # A buffer that somebody looks at cannot be closed.
        return session.arena.pin(_place(session, obj), memoryview(obj) if isinstance(obj, Buffer) else obj)

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
        session = self._open()
        place = _place(session, obj)
        if place is None:
            return
        if mergeable:
            session.space.exclude(*place, False)
            return
        try:
            session.arena.take_back(*place)
        except NotBacked as error:
            raise not_taken_back(error) from None
        finally:
            session.kick()

    def reattach(self) -> None:
        """In a forked child: connects, so that what is allocated from here on is merged. Elsewhere it does nothing.

        Any other method does this by itself, on first use; call it to choose the moment, after a pre-forking server has
        started its worker, say. What was merged when the process was forked goes on merging, as the child's memory; the
        rest of what was inherited stays a snapshot, which shares its pages with the parent until they are written. The
        parent's memory is merged again when all children have ended or let go of theirs.

        Raises:
            ForkedClient: C code has forked this process past Python's hooks, or the client has a transport of its own.
            ServerUnavailable, ServerRefused, OutOfSharedMemory: see `connect`. The next use tries again.
        """
        self._open()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        session = self._session
        return session is None or session.is_ending

    def close(self) -> None:
        """Ends the session with the server. Buffers and arrays go on as ordinary memory. Closing twice is fine.

        What is merged of them stays so until it is written, and nothing more of them is merged: a warning of the
        logger "pagefold" says how much that is. A client that goes out of scope unclosed goes on merging as long as
        its buffers and arrays live. In a forked child it does nothing: the client is the parent's.
        """
        session = self._session
        if session is None or session.space.forked:
            return
        with contextlib.suppress(RuntimeError):  # it was closed already: what died may count as alive
            session.arena.sweep()
        left = 0 if session.is_ending else session.conversation.report.unmerged_pages()
        session.close()
        self._connection = None
        if left:
            _log.warning(
                "%s", obstacle_table.sentence(obstacle_table.Obstacle(kind=pb.OBSTACLE_KIND_CLOSED, pages=left))
            )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # The lifeline goes now, and the session with it; here is only said that this is no way to do it.
        session = self._session if hasattr(self, "_connection") else None
        if session is None or session.is_ending or session.space.forked or sys.is_finalizing():
            return
        if not session.arena.pages_in_use:  # buffers and arrays keep their session alive
            warnings.warn("a pagefold client was not closed", ResourceWarning, source=self, stacklevel=2)

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuses what copy, deepcopy and pickle ask for: the end of a copy would end the original's session."""
        raise TypeError(
            "a pagefold client is a connection of this process, and cannot be copied or pickled: pass the client "
            "itself on, or make another one with pagefold.connect()"
        )

    def __repr__(self) -> str:
        session = self._session
        if session is None:
            return "<pagefold.Client, closed>"
        whose = ", of the parent process" if session.space.forked else ""
        return f"<pagefold.Client, barrier {session.space.tier}{whose}>"

    @property
    def _session(self) -> Session | None:
        connection = self._connection
        return None if connection is None else connection.session

    def _open(self) -> Session:
        session = self._session
        if session is None or session.is_ending:
            raise ClientClosed("the client is closed: connect again")
        return self._attach() if session.space.forked else session

    def _attach(self) -> Session:
        fork.tell_troubles()
        if self._reconnect is None:
            raise ForkedClient(
                "this client belongs to the parent process, and its memory is a snapshot here: open a client of your "
                "own with pagefold.connect()"
            )
        if why := fork.why_not_attach():
            raise ForkedClient(f"this client belongs to the parent process, and its memory is a snapshot here: {why}")
        on_session_thread(functools.partial(self._reconnect, weakref.ref(self)))
        return self._open()

    # For the session's thread

    def abandon(self) -> None:
        """Nobody will ever have this client."""
        self._connection = None

    @property
    def parents(self) -> Session | None:
        """Its session, if that is a parent's."""
        session = self._session
        return session if session is not None and session.space.forked else None

    def attached(self, connection: Connection) -> None:
        """It has connected in a child."""
        self._connection = connection

    def _allocator(self) -> arrays.Allocate:
        return functools.partial(_allocate, self._open())


def on_session_thread(work: Callable[[Answer], object]) -> Any:
    """Has a thread of its own, which no signal reaches, begin a session, and waits for what it gives.

    Whoever is interrupted in here has nothing to undo: the thread finds that nobody waits.

    Raises:
        OutOfThreads: the thread cannot be started.
    """
    try:
        return pagefold_core.call(work)
    except OSError as error:
        if isinstance(error, PagefoldError) or error.errno != errno.EAGAIN:
            raise
        raise OutOfThreads(f"the session's thread cannot be started. {MORE_THREADS}") from error


def _allocate(session: Session, nbytes: int) -> Buffer:
    greenlets = threads.are_greenlets()
    try:
        if not greenlets:
            return Buffer(session.arena, nbytes)
        buffer = Buffer(session.arena, nbytes, waits=False)
    except NotBacked as error:
        raise not_allocated(nbytes, error) from None
    threads.wait_among_greenlets(lambda _: session.arena.is_announced or None, ANNOUNCE_SECONDS)
    return buffer


def _size(size: SupportsIndex) -> int:
    try:
        nbytes = operator.index(size)
    except TypeError:
        raise TypeError(f"a size is a whole number of bytes, not {type(size).__name__}") from None
    if nbytes < 0:
        raise ValueError(f"a size cannot be negative: {nbytes}")
    return nbytes


def _timeout(seconds: float | None) -> float:
    """What threads can wait for: no more than the kernel's clock holds, and no less than nothing."""
    most = threads.TIMEOUT_MAX
    if seconds is None:
        return most
    if seconds != seconds:
        raise ValueError("a timeout is a number of seconds, or None, not NaN")
    return float(max(0, min(seconds, most)))


def _place(session: Session, obj: Any) -> tuple[int, int, int] | None:
    address, nbytes = span_of(obj)
    if nbytes == 0:
        return None
    place = session.arena.locate(address, nbytes)
    if place is None and pagefold_core.is_inherited(address, nbytes):
        return None  # a snapshot that nothing was merged of: it never is
    if place is None:
        raise ValueError(f"this memory does not belong to the client: {HOW_TO_ALLOCATE}")
    return place


# While Python is whole: a thread that came back from native code later could not take the GIL any more.
atexit.register(pagefold_core.end_all, GOODBYE_SECONDS, _EXIT_SECONDS)
