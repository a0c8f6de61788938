"""The client: what programs use. The native arena and space, and the session, do the work.

A signal handler may raise an exception between any two steps of Python here. So each method does its work with one
native call, which returns an object that releases itself: nothing has to be undone, and no lock is held.
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
"""Connects, in a child and on a new thread, a client that the process has inherited."""


@dataclass(frozen=True, slots=True)
class Connection:
    """What an open client holds. A closed client drops it, so that memory is freed with its last buffer.

    The session ends when its `lifeline` is dropped. Nothing else holds the lifeline.
    """

    session: Session
    lifeline: Lifeline


class Client:
    """A connection to a pagefold server, and the memory that is merged through it. Made by `pagefold.connect`.

    Thread-safe: any thread may call any method at any time. `close()`, or the end of a `with` block, ends the merging;
    buffers and arrays stay readable and writable until they are released. After a fork the child has a snapshot of the
    memory, as with ordinary memory, and shares the pages that neither process writes. When the child uses the client,
    the client connects again, as the child's own: see `reattach`.

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
        """Allocates zeroed memory that starts on a page boundary. A page takes memory once it is touched.

        Args:
            size: bytes; 0 is allowed. Memory is handed out in whole pages.

        Raises:
            OutOfSharedMemory: (a MemoryError) there is no room for it; the text says where, and what to do.
            ValueError: the size is negative.
            TypeError: the size is not an integer.

        Example:
            >>> buf = client.allocate(64 << 20)
            >>> len(buf)
            67108864
        """
        return self._allocator()(_size(size))

    def empty(self, shape: Shape, dtype: DTypeLike = float, order: arrays.Order = "C") -> NDArray[Any]:
        """Makes an array as `numpy.empty` does, in mergeable memory. It holds zeros.

        Args:
            shape: elements along each axis.
            dtype: of the elements; no Python objects.
            order: "C" (rows first) or "F".

        Raises:
            OutOfSharedMemory: (a MemoryError) there is no room for it.
            TypeError: the type holds references to Python objects.
        """
        return arrays.zeros(self._allocator(), shape, dtype, order)

    def zeros(self, shape: Shape, dtype: DTypeLike = float, order: arrays.Order = "C") -> NDArray[Any]:
        """Makes an array of zeros, which takes no memory until it is written. Arguments and errors: as of `empty`."""
        return arrays.zeros(self._allocator(), shape, dtype, order)

    def full(
        self, shape: Shape, fill_value: ArrayLike, dtype: DTypeLike | None = None, order: arrays.Order = "C"
    ) -> NDArray[Any]:
        """Makes an array filled with a value, of the value's type unless `dtype` says otherwise."""
        return arrays.full(self._allocator(), shape, fill_value, dtype, order)

    def array(self, obj: ArrayLike, dtype: DTypeLike | None = None, order: arrays.LikeOrder = "K") -> NDArray[Any]:
        """Copies anything that NumPy takes for an array into mergeable memory."""
        return arrays.array(self._allocator(), obj, dtype, order)

    def empty_like(
        self, prototype: ArrayLike, dtype: DTypeLike | None = None, order: arrays.LikeOrder = "K"
    ) -> NDArray[Any]:
        """Makes an array with the shape, type and layout of another one. It holds zeros."""
        return arrays.like(self._allocator(), prototype, dtype, order)

    def zeros_like(
        self, prototype: ArrayLike, dtype: DTypeLike | None = None, order: arrays.LikeOrder = "K"
    ) -> NDArray[Any]:
        """Makes an array of zeros with the shape, type and layout of another one."""
        return arrays.like(self._allocator(), prototype, dtype, order)

    def full_like(
        self,
        prototype: ArrayLike,
        fill_value: ArrayLike,
        dtype: DTypeLike | None = None,
        order: arrays.LikeOrder = "K",
    ) -> NDArray[Any]:
        """Makes a filled array with the shape, type and layout of another one."""
        result = arrays.like(self._allocator(), prototype, dtype, order)
        arrays.import_numpy().copyto(result, fill_value, casting="unsafe")
        return result

    def settle(self, timeout: float | None = SETTLE_SECONDS) -> SettleReport:
        """Merges now, and returns when nothing in the domain is left to merge.

        Use it before measuring, or after loading data that other processes have too. The report is no guess: `settled`
        is True only if the server read all of the domain's memory, found nothing to merge, and no obstacle keeps pages
        of it from merging. Otherwise `reason` names each obstacle, its number of pages, and what to do.

        Args:
            timeout: seconds; None or `math.inf`: no limit. On timeout the report has settled=False and the current
                counts.

        Raises:
            ValueError: the timeout is NaN.
            TypeError: the timeout is no number.
        """
        seconds = _timeout(timeout)
        session = self._open()
        if session.space.tier == "off":
            session.kick()  # the server is told how much memory it is
            return SettleReport(settled=False, reason=obstacle_table.text(session.obstacles()), seconds=0.0)
        session.arena.sweep()
        return session.settle(seconds)

    def stats(self) -> Stats:
        """Counts this client's memory: as the kernel has it now, and as the server's last answer said of the domain."""
        session = self._open()
        session.arena.sweep()
        with contextlib.suppress(
            OSError
        ):  # the program closed its descriptor: pages copied since the last look are missing
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
        """Keeps memory from being merged while a device may write to it.

        Devices write by physical address, past every protection: O_DIRECT reads, io_uring's fixed buffers, RDMA. Pin
        the memory before such a transfer begins, until it is over. The call pins it and returns a context manager,
        which unpins it at the end of the block. Pins nest, and any number of threads may pin the same memory.

        Args:
            obj: a Buffer, ndarray or memoryview in this client's memory; all pages that it touches are pinned.

        Raises:
            ValueError: the memory is not this client's.
        """
        session = self._open()
        # A buffer with a memoryview cannot be closed.
        kept = memoryview(obj) if isinstance(obj, (Buffer, memoryview)) else obj
        return session.arena.pin(_place(session, obj), kept)

    def advise(self, obj: Any, *, mergeable: bool) -> None:
        """Says whether memory is to be merged, as madvise(MADV_MERGEABLE and MADV_UNMERGEABLE) does for KSM.

        With False, the call takes merged pages back before it returns. While a forked child shares the memory, they are
        taken back after the child's end. The advice ends with the buffer.

        Args:
            obj: a Buffer, ndarray or memoryview in this client's memory; the advice is for all pages that it touches.
            mergeable: False for memory that is written all the time, or that must not be shared.

        Raises:
            OutOfSharedMemory: there is no room to take merged pages back; they stay merged until they are written, and
                are not merged again.
            ValueError: the memory is not this client's.
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
        """Connects in a forked child, so that memory allocated from here on is merged. Elsewhere it does nothing.

        Every other method does this on its first use in a child. Call it to choose the moment, for example when a
        pre-forking server has started its worker. Pages that were merged at the fork go on merging, as the child's
        memory. The other inherited pages stay a snapshot: child and parent share each until one of them writes it. The
        parent's memory is merged again when all children have ended or released theirs.

        Raises:
            ForkedClient: C code has forked this process past Python's hooks, or the client has a transport of its own.
            ServerUnavailable, ServerRefused, OutOfSharedMemory: as from `connect`. The next use tries again.
        """
        self._open()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        session = self._session
        return session is None or session.is_ending

    def close(self) -> None:
        """Ends the session with the server. Buffers and arrays go on as ordinary memory. Closing twice is fine.

        Their merged pages stay merged until they are written. Their other pages will not be merged any more: a warning
        of the logger "pagefold" says how many these are. A client that goes out of scope unclosed goes on merging as
        long as its buffers and arrays live. In a forked child the call does nothing: the client is the parent's.
        """
        session = self._session
        if session is None or session.space.forked:
            return
        with contextlib.suppress(RuntimeError):  # another thread has closed it: freed memory may still be counted
            session.arena.sweep()
        left = 0 if session.is_ending else session.conversation.report.unmerged_pages()
        session.close()
        self._connection = None
        if left and session.space.tier != "off":  # connect() has said why nothing merges: it is not that this is closed
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
        # The lifeline is dropped now, and ends the session. Here the program is only told to call close().
        session = self._session if hasattr(self, "_connection") else None
        if session is None or session.is_ending or session.space.forked or sys.is_finalizing():
            return
        if not session.arena.pages_in_use:  # buffers and arrays keep their session alive
            warnings.warn("a pagefold client was not closed", ResourceWarning, source=self, stacklevel=2)

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuses copy, deepcopy and pickle: the end of a copy would end the original's session."""
        raise TypeError(
            "a pagefold client is a connection of this process, and cannot be copied or pickled: pass the client "
            "itself, or make another one with pagefold.connect()"
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
            raise ClientClosed("the client is closed; its buffers stay usable: connect again to allocate or merge")
        return self._attach() if session.space.forked else session

    def _attach(self) -> Session:
        fork.tell_troubles()
        if self._reconnect is None:
            raise ForkedClient(
                "this client belongs to the parent process; its memory is a snapshot here, and stays usable: make a "
                "client of this process's own with pagefold.connect()"
            )
        if why := fork.why_not_attach():
            raise ForkedClient(
                f"this client belongs to the parent process; its memory is a snapshot here, and stays usable: {why}"
            )
        on_session_thread(functools.partial(self._reconnect, weakref.ref(self)))
        return self._open()

    # For the session's thread

    def abandon(self) -> None:
        """Drops the connection: connect() was interrupted, and no program has this client."""
        self._connection = None

    @property
    def parents(self) -> Session | None:
        """The session, if it is the parent process's; else None."""
        session = self._session
        return session if session is not None and session.space.forked else None

    def attached(self, connection: Connection) -> None:
        """Takes the connection that this process, a child, has made."""
        self._connection = connection

    def _allocator(self) -> arrays.Allocate:
        return functools.partial(_allocate, self._open())


def on_session_thread(work: Callable[[Answer], object]) -> Any:
    """Starts a session's thread, which no signal reaches, and waits for its answer.

    An exception that interrupts the caller leaves nothing to undo: the thread finds that it is not waited for.

    Args:
        work: runs on the thread, gives the answer, and then is the session.

    Raises:
        OutOfThreads: the thread cannot be started.
        ClientClosed: the program ends.
    """
    try:
        return pagefold_core.call(work)
    except OSError as error:
        if not isinstance(error, PagefoldError) and error.errno == errno.ESHUTDOWN:
            raise ClientClosed(str(error.strerror)) from None
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
    """Seconds that a thread can wait: from 0 to what the kernel's clock holds."""
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
        return None  # a snapshot of which nothing was merged: nothing ever is
    if place is None:
        raise ValueError(f"this memory does not belong to the client: {HOW_TO_ALLOCATE}")
    return place


# While Python is whole: later, a thread that returns from native code cannot take the GIL any more.
atexit.register(pagefold_core.end_all, GOODBYE_SECONDS, _EXIT_SECONDS)
