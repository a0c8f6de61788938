"""The extension's manual.

Pages and frames are counted, never bytes, unless a name says so. Runs are given as columns: sequences of equal
length. Every method releases the GIL before it takes a lock or makes a system call, and every class is thread-safe.
System calls that fail raise `OSError` with their errno. Nothing here is async-signal-safe or usable in a forked
child, but `Block` (its bytes), `Space.forked`, `Space.owns` and `Space.fork_trouble`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, Self, final

PAGE_SIZE: Final[int]
"""The kernel's base page, in bytes."""

# Event kinds and decline reasons have the numbers of EventKind and DeclineReason in memory.proto.

@final
class Features:
    """What this kernel and this user can do. A snapshot, made by `probe`."""

    page_size: int
    userfaultfd: Literal["full", "user-mode", "none"]
    """What a new userfaultfd holds: writes of the kernel too, those of user mode only, or nothing to be had."""
    userfaultfd_source: Literal["syscall", "device", ""]
    """Where it comes from: userfaultfd(2) or /dev/userfaultfd."""
    userfaultfd_error: str
    """Why there is no "full" one; empty if there is."""
    wp_shmem: bool
    """Shared memory can be write-protected (Linux 5.19). Without it the tier is "off"."""
    wp_unpopulated: bool
    """Untouched anonymous pages can be write-protected (Linux 6.4). Without it they are touched first."""
    wp_async: bool
    """The kernel can resolve write-protection itself (Linux 6.7): the "pagemap" tracker's half."""
    pagemap_scan: bool
    """PAGEMAP_SCAN (Linux 6.7). Without it the harvest reads /proc/self/pagemap."""
    max_map_count: int
    """Most mappings that a process may have."""

def probe(disabled: Sequence[str] = ()) -> Features:
    """Finds out what the kernel offers, by trying.

    Args:
        disabled: features to report as absent: "uffd", "user", "wp_unpopulated", "wp_async", "pagemap_scan".
            Lets a test walk the ways of an older kernel.
    """

# In a development build only (the crate's feature `faults`); what they arm is described in native/src/faults.rs.
def arm_fault(point: str, fault: str) -> None: ...
def disarm_faults() -> None: ...
def faults_passed(point: str) -> int: ...
def fault_points() -> list[tuple[str, bool]]: ...
def pretend_room(place: Literal["shm", "memfd"], room: tuple[int, int, bool] | None = None) -> None:
    """Says what a place has: bytes, free bytes, whether it is small. None: the truth again."""

# Threads, turns and forks

class Answer:
    """What the work of a `call` gives its answer by."""

    def give(self, value: object) -> bool:
        """Ends the caller's wait. False, and the value is dropped, if it was interrupted, or has an answer."""

    def fail(self, error: BaseException) -> None:
        """The same with an exception. It is unraisable if there is an answer, dropped if the wait was interrupted."""

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for it."""

@final
class Work:
    """What a thread of ours does: see `_running.py`. The context manager is what is to be called, told once."""

    @property
    def answer(self) -> Answer:
        """For `call`; else None."""

    def __enter__(self) -> Callable[..., object]: ...
    def __exit__(self, kind: object, value: object, trace: object, /) -> None: ...

def call(act: Callable[[Answer], object]) -> Any:
    """Has a thread of its own, which no signal reaches, do something, and waits for its answer.

    Returns what `act` gives, or else what it returns, and raises what it raises before. `act` may go on after it gave
    its answer. What a signal handler raises ends the wait and not the work.

    Raises:
        OSError: no thread can be started, or the program ends.
        RuntimeError: this thread is in the middle of a fork, or has a turn; or a signal handler has forked, and this is
            the child.
    """

def start(act: Callable[[], object], *, awaited: bool = True) -> None:
    """Has a thread of its own, which no signal reaches, do something. What that raises is unraisable.

    Args:
        act: what it does.
        awaited: the end of the program waits for it: see `end_all`.

    Raises:
        OSError: no thread can be started.
    """

def can_start(count: int) -> bool:
    """Whether the system has so many threads to spare now: starts them, all at once, and ends them."""

@final
class Turn:
    """A context manager: nobody forks, by way of `before_fork`, and no fork is under way."""

    def __enter__(self) -> None: ...
    def __exit__(self, kind: object, value: object, trace: object, /) -> None: ...

def before_fork() -> None:
    """For os.register_at_fork: waits until nobody has a turn, and lets none begin until the fork is over."""

def after_fork_in_parent() -> None:
    """For os.register_at_fork. In a child nothing has to be called."""

def fork_troubles() -> list[str]:
    """Takes out what went wrong at the last fork: see `Space.fork_trouble`."""

def hold_signals_over_forks() -> None:
    """From here on a thread that forks takes no signals meanwhile.

    To be called when gRPC has registered its fork handlers: these start its threads anew, which are to begin with all
    signals blocked.
    """

def can_attach() -> bool:
    """Whether no fork on the way to this process came in the middle of a turn."""

def is_inherited(address: int, nbytes: int) -> bool:
    """Whether memory was inherited from a parent's space."""

@final
class Ending:
    """How a session ends. For its thread, which makes it, and for threads that wait.

    Args:
        bell: rung when it is to end.
        cut: called, on a thread that no signal reaches, if it takes too long: ends what the session is waiting for.
    """

    def __init__(self, bell: Doorbell, cut: Callable[[], object]) -> None: ...
    @property
    def stopping(self) -> bool:
        """Whether it is to end."""

    @property
    def outlives(self) -> bool:
        """Whether it is to end when no memory is in use any more."""

    def pause(self, timeout_seconds: float) -> bool:
        """Waits a while, or until it is to end: then True."""

    def finish(self) -> None:
        """It has ended."""

    def stop(self) -> None:
        """It is to end. Waits for nothing. In a forked child it does nothing."""

    def end(self, grace_seconds: float) -> None:
        """Has it end, and waits until it has, and its thread too. In a thread that it may need it does not wait.

        What a signal handler raises ends the wait, and the session ends all the same.
        """

@final
class Lifeline:
    """What a client holds of its session: when it is let go of, the session ends by itself.

    It goes on for as long as memory of the arena is in use (`Ending.outlives`).
    """

    def __init__(self, ending: Ending, arena: Arena) -> None: ...

def end_all(grace_seconds: float, most_seconds: float) -> None:
    """Has all sessions of this process end, and waits until they have, and all threads of `call` too.

    For the end of the program: `call` is refused from here on (ESHUTDOWN), and sessions that are beginning end at
    once. Signals are handled afterwards. Threads that were started as not `awaited` are not waited for.
    """

@final
class Settles:
    """Who waits for settle(), and which number goes to the server. `begin` is for any thread."""

    def __init__(self) -> None: ...
    def begin(self, kick: Callable[[], object]) -> Waiting:
        """Begins to wait, until the object is gone. `kick` is called then."""

    def __bool__(self) -> bool: ...
    @property
    def is_current(self) -> bool:
        """Whether the server knows all there is to know: `number` would return the same again."""

    def number(self) -> tuple[int, bool]:
        """What to tell the server: the number, 0 for none, and whether it is a new one."""

    def renew(self) -> None:
        """The server knows of none."""

    def answer(self, settling: int, report: object) -> bool:
        """The server is done with a request, and with all earlier ones. Whether anybody waits for that."""

    def end(self, why: str) -> None:
        """There will be no answers any more. The first reason stays."""

@final
class Waiting:
    """Somebody who waits for settle()."""

    def wait(self, timeout_seconds: float) -> tuple[Any | None, str] | None:
        """The report, or None and why there never will be one. None: the time is over. It is told once."""

# Memory

class NotBacked(Exception):
    """Memory cannot be had. The arguments say why.

    ("closed",), ("size",): the arena is closed; it is more than one piece may have.
    ("room", place, bytes, free bytes, promised bytes): there is no room.
    ("segment", errno, text): no object can be made or mapped.
    ("pages", errno, pages): so many keep their frames.
    """

@final
class Segment:
    """A shared-memory object of ours, as others are told of it. A memfd is found by its descriptor, through /proc."""

    @property
    def number(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def fd(self) -> int: ...
    @property
    def pages(self) -> int: ...
    @property
    def address(self) -> int: ...
    @property
    def place(self) -> Literal["shm", "memfd"]: ...
    @property
    def inherited(self) -> bool:
        """It is behind memory of a parent's, which no block is ever taken from."""

    def discard(self) -> None:
        """Lets go of the name and the descriptor; the memory goes with its last mapping. Twice is fine."""

@final
class Arena:
    """Segments, and which of their pages are handed out: what `Block` takes memory from.

    Args:
        space: that the memory is in. It has one arena.
        backing: where segments are made.
        first_pages, last_pages: pages of the first segment, and most that one grows to by doubling.
    """

    def __init__(
        self,
        space: Space,
        backing: Literal["auto", "shm", "memfd"],
        first_pages: int,
        last_pages: int,
    ) -> None: ...
    @property
    def backing(self) -> Literal["auto", "shm", "memfd"]: ...
    @property
    def pages_in_use(self) -> int:
        """Pages handed out, or freed and not free yet."""

    @property
    def memfd_pages(self) -> int:
        """Those of them that are in memfds."""

    @property
    def quarantined(self) -> bool:
        """Whether freed memory waits for forked children, or for another reason."""

    def sweep(self, retry: bool = False) -> tuple[int, str] | None:
        """Takes back what was freed, and drops segments that are not needed.

        Args:
            retry: try again to discard what is in quarantine.

        Returns:
            How many pages cannot be given back yet, and why, if it is not for a forked child.
        """

    def locate(self, address: int, nbytes: int) -> tuple[int, int, int] | None:
        """The pages that a range of memory touches: (segment, first, pages). None: they are not this space's."""

    def take_back(self, segment: int, first: int, count: int) -> None:
        """Excludes pages from merging, and adopts them at once.

        Raises:
            NotBacked: some keep their frames.
        """

    def pin(self, place: tuple[int, int, int] | None, keep: object) -> Pin:
        """Keeps pages from being merged and adopted until the pin ends; None: no pages. Holds `keep` for so long."""

    def inherit(self, parent: Space) -> list[Segment]:
        """In a child: takes over what is merged of the memory that its parent's space has left, as far as possible."""

    def added(self) -> list[Segment]:
        """Takes out the segments that were made since the last call."""

    def dropped(self) -> list[Segment]:
        """Takes out those that were dropped: to be discarded when the server was told. Events are in the journal."""

    @property
    def has_added(self) -> bool:
        """Whether there are some that were made."""

    @property
    def has_dropped(self) -> bool:
        """Whether there are some that were dropped."""

    def announced(self) -> None:
        """The server knows of all segments that were taken out."""

    @property
    def is_announced(self) -> bool:
        """Whether the server knows of all segments, or will not be told."""

    def set_reachable(self, reachable: bool) -> None:
        """Whether the server is told of new segments: then an allocation waits for that, for a second at most."""

    def close(self) -> list[Segment]:
        """Drops all segments in which no block lives, and hands out no more. Returns the others, to be discarded."""

    def check(self) -> None:
        """Raises AssertionError if the books are wrong."""

@final
class Pin:
    """A context manager, good for once. The pin ends with it, at the latest when the object is gone."""

    def __enter__(self) -> None: ...
    def __exit__(self, kind: object, value: object, trace: object, /) -> None: ...

def span(obj: object) -> tuple[int, int]:
    """The memory that a buffer covers: (address, bytes), from its first to its last byte.

    Raises:
        ValueError: it is not memory of one piece.
        TypeError: it is no buffer.
    """

def memory_room() -> tuple[int, int] | None:
    """Bytes of memory that this process may use, and how many are free. None: the kernel does not say."""

def spare_pages(age_seconds: float = 0.0) -> int | None:
    """How many pages may be taken back from frames now: that takes memory which nobody asked for. None: no bound known.

    Args:
        age_seconds: an earlier look is good enough for so long: the kernel takes half a millisecond for one.
    """

def make_object(place: Literal["shm", "memfd"], nbytes: int) -> tuple[str, int]:
    """A shared-memory object as segments are: its name, and its descriptor, which is the caller's."""

def punch_hole(fd: int, offset: int, length: int) -> None:
    """Gives a file's bytes back to the kernel; the range reads as zeros and the file keeps its size.

    Args:
        fd: open for writing.
        offset: first byte.
        length: bytes. Whole pages of the range are freed, parts of pages are zeroed.
    """

@final
class WindowStats:
    """The windows opened so far."""

    windows: int
    p50_micros: float
    p99_micros: float
    max_micros: float
    max_running_micros: float
    """The longest without the time for which its thread was off the processor."""
    over_bound: int
    """Windows that lasted longer than their bound; being preempted inside one is the usual reason."""

@final
class Counts:
    """Pages by state, over all views. Excluded and pinned pages are counted by their state as well."""

    owned: int
    merged: int
    zero: int
    copied: int
    frozen: int
    shared: int
    mappings: int
    """Mappings (VMAs) that the views use."""
    budget: int
    inherited: int
    """Pages of memory that was a parent's, and that are this space's by now."""

@final
class Events:
    """Columns of events, oldest first; see Events in memory.proto."""

    kind: list[int]
    segment: list[int]
    first: list[int]
    count: list[int]
    pool: list[int]
    frame: list[int]
    detail: list[int]
    def __len__(self) -> int: ...

class Space:
    """One client's share of the address space: its views, the pools they map, and the means to hold writes.

    A window opens and closes inside one call. What a call did is put in the journal before the call returns, in the
    order in which it happened; `drain` takes it out.
    """

    def __init__(
        self,
        tier: Literal["uffd", "user", "off"],
        lease: int,
        budget: int,
        window_pages: int = 256,
        window_micros: int = 120,
        disabled: Sequence[str] = (),
        tracker: Literal["pagemap", "checksum"] = "checksum",
    ) -> None:
        """Makes the space and, unless the tier is "off", its userfaultfd.

        Args:
            tier: how writes are held.
            lease: descriptor of the lease. It is duplicated, and the duplicate stays open as long as the space or
                any of its blocks lives.
            budget: most mappings that the views may use together.
            window_pages: most pages in one window.
            window_micros: after so many microseconds a window takes up no further page.
            disabled: see `probe`.
            tracker: "pagemap": owned pages that were written are found by looking, with a second userfaultfd. In tier
                "off" it does nothing.

        Raises:
            OSError: the tier or the tracker cannot be had here.
        """

    @property
    def tier(self) -> Literal["uffd", "user", "off"]: ...
    def add_view(self, segment: int, fd: int, pages: int) -> int:
        """Maps a segment shared and writable; duplicates `fd`. Returns the view's address.

        Raises:
            OSError: no address space or no descriptor left.
            ValueError: the number is taken, or `pages` is 0 or beyond the object's size.
        """

    def drop_view(self, segment: int) -> bool:
        """Unmaps a view of which no block lives, and closes its segment. False if a block lives (nothing is done).

        Pages that mapped a frame are journalled as Released. The caller sees to it that no fork child needs it.
        """

    def add_pool(self, pool: int, fd: int) -> None:
        """Makes a pool known (numbers from 1); duplicates `fd`, which is open for reading only.

        A forked child closes its copy of `fd` as well, which would hold the pool's locks.
        """

    def merge(
        self,
        segment: Sequence[int],
        first: Sequence[int],
        count: Sequence[int],
        pool: Sequence[int],
        frame: Sequence[int],
    ) -> int:
        """Switches owned pages to frames where the bytes are equal (M3 to M7). Returns the pages merged.

        Pool 0 is the zero page. Every page of every run is journalled, as Merged or Declined. Nothing that a caller
        can pass here makes a page read differently: unknown numbers, ranges out of bounds and unequal bytes are
        declined.
        """

    def adopt(self, segment: Sequence[int], first: Sequence[int], count: Sequence[int], room: int | None = None) -> int:
        """Takes pages back into their segment, whatever they map now. Returns the pages adopted.

        Owned and unknown pages are passed over in silence. Journals Released, or NotAdopted with an errno (ENOSPC:
        /dev/shm is full; EBUSY: pinned, or a forked child shares it; ENOMEM: no mappings or no memory are left) for
        pages that keep their bytes where they are. `room`: pages of memory that may be used up; None: no bound.
        """

    def discard(self, segment: int, first: int, count: int) -> None:
        """Makes pages read as zeros, gives their memory back, journals Released for those that mapped a frame.

        For memory that nobody uses. It ends exclusion and pins of the range too.

        Raises:
            BlockingIOError: a forked child may still share the segment; ask again after `thaw`.
        """

    def exclude(self, segment: int, first: int, count: int, excluded: bool) -> None:
        """Sets whether pages may be merged, and journals it. Does not adopt."""

    def pin(self, segment: int, first: int, count: int) -> None:
        """Keeps pages from being merged and from being adopted. Nests; not journalled."""

    def unpin(self, segment: int, first: int, count: int) -> None:
        """Undoes one `pin` of the same range."""

    def switched(self, segment: int, first: int, count: int) -> int:
        """How many pages of a run map a frame or the zero page, or were copied from there: not owned."""

    def harvest(self, all: bool = True, tracked: bool = True) -> int:
        """Finds pages that were written; returns how many. Journals merged ones as Copied, watched ones as Written.

        With all=False only in views whose time has come: those in which nothing was found are looked at less often, and
        so are those that are large, or so hot that to protect their pages again would cost the program more than 1 % of
        a core. With tracked=False only merged pages are looked at: that slows nobody down.

        Raises:
            OSError: the kernel could not say; what was not found will be reported by a later look.
        """

    def resume(self) -> None:
        """Empties the journal and writes down how every page is, for a server that knows nothing of it."""

    def drop_pool(self, pool: int) -> bool:
        """Forgets a pool; False, and nothing is done, if a page maps one of its frames."""

    def untrack(self) -> None:
        """Watches for writes no longer: for a space whose reports nobody reads."""

    def freed(self) -> list[tuple[int, int, int]]:
        """Takes the extents (segment, first, pages) of blocks that died since the last call."""

    def drain(self, limit: int = 65536) -> Events:
        """Takes at most `limit` events out of the journal, oldest first."""

    def pending(self) -> int:
        """Events in the journal."""

    def counts(self) -> Counts: ...
    def windows(self) -> WindowStats: ...
    def hindrance(self) -> tuple[Literal["locked", "data"], int, int] | None:
        """What pages of the last batch were declined for, of the program's own limits, if that is so still; else None.

        "locked": all its memory is locked ahead (mlockall with MCL_FUTURE): the kernel would copy what is merged.
        "data": merging takes no more than half of what the program leaves of RLIMIT_DATA, and leaves 64 MiB. The limit,
        and what of it the process uses, merged memory included, in bytes.
        """

    def wait(self, doorbell: Doorbell, poll_seconds: float, timeout_seconds: float) -> Literal["rung", "news", "idle"]:
        """Waits without the GIL: for the doorbell ("rung"), for events or freed blocks ("news"), or in vain ("idle").

        Looks for written pages meanwhile (`harvest(all=False)`), as a rule every `poll_seconds`.
        """

    @property
    def shared(self) -> bool:
        """Whether forked children may share memory, or it is not thawed yet. Takes no lock.

        At every fork of the process, Python's or that of C code, all views of all spaces are frozen (owned pages become
        private to each process), by a handler that the C library calls. No call is needed for that.
        """

    @property
    def forked(self) -> bool:
        """Whether this process was forked from the space's. Then blocks have their bytes, and all else is closed."""

    def thaw(self) -> bool:
        """Takes memory back that no forked child shares any more. True if that is all there was.

        False: children live, or memory was short; call it again. In tier "off" frozen pages stay frozen.
        """

    def owns(self, address: int, nbytes: int) -> bool:
        """Whether a range of addresses lies inside of one view. Works in a forked child as well."""

    def heritage(self) -> list[tuple[int, int]]:
        """In a child: memory of the parent's that buffers live in and of which something is merged: address, pages."""

    def take_over(self, parent: Space, address: int, segment: int, fd: int) -> bool:
        """Makes such memory a view of this space, over a segment that is empty; duplicates `fd`.

        What is merged of it is journalled as Resumed, and as Copied what was written since. The rest stays a snapshot.

        Returns:
            False if the memory is gone.
        """

    def let_parents_go(self, segment: int) -> None:
        """The server has booked that: the parents' references need not stay for its sake."""

    def block(self, segment: int, first: int, nbytes: int) -> Block:
        """Claims ceil(nbytes / PAGE_SIZE) pages from `first` on, of a view that no arena made. `nbytes` 0 claims none.

        Raises:
            ValueError: there is no such view, or the range is out of its bounds.
        """

    def attend(self, doorbell: Doorbell) -> None:
        """Rings that when there are segments to announce, and after a fork whose child shares memory."""

    def forget_children(self) -> None:
        """Nobody will call `thaw` any more: memory that is shared stays so, and later forks cost no descriptor."""

    def fork_trouble(self) -> str | None:
        """Takes out what went wrong at the last fork: memory that the child lacks, or a lease that could not be had."""

    def close(self) -> None:
        """Ends windows and merging for good; the bytes of living blocks stay as they are. Closing twice is fine.

        What still works: `counts`, `drain`, `pending`, `freed` and `windows`. Forks go on to freeze the
        memory of living blocks.
        """

class Block:
    """A range of whole pages of one view, as a writable buffer. Lives longer than its space if need be.

    When the last reference goes, the extent shows up in `Space.freed`.
    """

    def __new__(cls, arena: Arena, nbytes: int, waits: bool = True) -> Self:
        """Allocates zeroed memory that starts on a page boundary: it is this object's from the first moment on.

        Args:
            arena: that it comes from.
            nbytes: how much; 0 is fine.
            waits: until the server knows of new memory, for a second at most.

        Raises:
            NotBacked: it cannot be had.
        """

    @property
    def address(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def segment(self) -> int: ...
    @property
    def first(self) -> int: ...
    @property
    def pages(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __release_buffer__(self, view: memoryview, /) -> None: ...
    def close(self) -> None:
        """Gives the extent back now. Closing twice is fine.

        Raises:
            BufferError: a memoryview or an array still looks at it.
        """

@final
class Doorbell:
    """A named POSIX semaphore that one side rings and the other waits on.

    Rings coalesce: the value is 0 or 1. Ringing is a system call that fails (False) where touching the semaphore's
    memory would kill the process, so a peer that truncates it hurts only itself.
    """

    def __init__(self, name: str, owner: int | None = None) -> None:
        """Opens the existing semaphore `name` (with its leading slash).

        Args:
            name: of the semaphore.
            owner: uid that it has to belong to. None: anybody.

        Raises:
            OSError: there is none, it may not be opened, it is not a plain file of a semaphore's size, or (EACCES) not
                the owner's.
        """

    def ring(self) -> bool: ...
    def wait(self, timeout_seconds: float) -> bool:
        """True if it rang. Takes the ring."""

@final
class Engine:
    """One domain's page tables, digests, trees and frames: what `pagefold_server.engine.native` makes an engine of.

    The methods are those of `Engine` in `pagefold_server.engine.interface`, with columns and tuples for its classes;
    what each promises is said there. Calls take turns. Clients and segments are the caller's numbers, and one that is
    not known is a `KeyError`.
    """

    def __init__(self, pool: int, seed: int, limit: int, number: int) -> None:
        """An engine without clients.

        Args:
            pool: descriptor of an empty shared-memory object, open for reading and writing. It is duplicated, and
                nobody else writes to the object.
            seed: of the digests (XXH3-64).
            limit: most frames, used or not.
            number: of the pool, in events.
        """

    def inherit(self) -> int: ...
    def bury(self) -> None: ...
    def configure(
        self, use_zero_pages: bool, max_page_sharing: int, smart_scan: bool, max_outstanding: int
    ) -> None: ...
    def add_client(self, client: int) -> None:
        """Raises `ValueError` if the number is taken."""

    def add_segment(self, client: int, segment: int, fd: int, pages: int, tracked: bool) -> None:
        """Makes a segment part of the scan; duplicates `fd`.

        Raises:
            ValueError: the number is taken, the client has departed, or there are no pages.
            MemoryError: there is none for the page table.
            OverflowError: the segments of an engine would have more than 2**32 pages together.
        """

    def drop_segment(self, client: int, segment: int) -> bool: ...
    def depart_client(self, client: int) -> None: ...
    def remove_client(self, client: int) -> None: ...
    def apply(
        self,
        client: int,
        kind: Sequence[int],
        segment: Sequence[int],
        first: Sequence[int],
        count: Sequence[int],
        pool: Sequence[int],
        frame: Sequence[int],
        detail: Sequence[int],
    ) -> str | None:
        """Books events. Returns what is wrong with the first that does not fit; it and the rest are not booked."""

    def take(self, client: int, pages: int) -> tuple[list[tuple[int, int, int, int]], list[tuple[int, int, int]], bool]:
        """Merges, adopts, and whether there is more."""

    def queued(self) -> list[int]: ...
    def outstanding(self) -> int: ...
    def scan(self, pages: int, threads: int) -> tuple[int, tuple[int, int, int, int, int, int, int, int, int] | None]:
        """Pages visited, and the fields of `PassReport` if a pass has ended."""

    def remaining(self) -> int: ...
    def refusal(self) -> int | None:
        """The errno for which there was no room for a frame, if so, since this was asked last."""

    def flush(self) -> None: ...
    def unmerge(self, on: bool) -> None: ...
    def counters(self) -> dict[str, int]:
        """The fields of `EngineCounters`."""

    def segment_counts(self, client: int, segment: int) -> tuple[int, int, int, int]: ...
    def merged_pages(self, client: int) -> tuple[int, int]: ...
    def left(self, client: int) -> list[int]:
        """The fields of `Left` in pagefold_server.engine.interface."""

    def apart(self, client: int) -> int: ...
    def frames(self) -> list[int]:
        """Numbers of the frames in use, in order."""

    def held(self, client: int, segment: int, first: int, count: int) -> list[tuple[int, int, int, int]]:
        """Runs of pages with frames, or proposed for them: first, count, state, first frame or -1."""

    def audit(self, first: int, count: int) -> list[tuple[int, int]]:
        """Frames of a range with something wrong, and what (`FrameFault` there)."""

    def recount(self) -> list[tuple[int, int, int, int, int]]:
        """Frames with miscounted users: references and reservations by the books, and as counted."""

    def check(self) -> None: ...
