"""The frames of a domain: their users, and the stable tree by which they are found.

A frame has references (pages that map it, or are copies of it) and reservations (proposals that name it). It
is made with its bytes already in the store, enters the stable tree at once, and leaves tree and store with
the last of both (I1, I3). Frames of a pool that was taken over have a reservation more, until all clients that
may map them have reported it, or are gone. Equal digests are a list: contents beyond `max_page_sharing` have
several frames, and, in theory, digests collide.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import Final

from sortedcontainers import SortedDict

from pagefold_server.engine.interface import FrameFault, Miscount
from pagefold_server.engine.reference.store import FrameStore

# tracemalloc over 200 k entries: digest, list of one frame, slots in the dict and in the sorted list.
_ENTRY_BYTES: Final = 220


class Frames:
    """References and reservations by frame number, and the stable tree.

    Attributes:
        stable: the tree: digest -> frames that have it, oldest first. Read only.
        shared: frames with a reference.
        duplicates: frames beyond the first of each digest.
    """

    def __init__(self, store: FrameStore) -> None:
        self._store = store
        self.stable = SortedDict()  # digest -> frames
        self._digests = array("Q")
        self._references = array("I")
        self._reservations = array("I")
        self._unclaimed: list[int] = []  # recovered, and reserved
        self.shared = 0
        self.duplicates = 0

    def create(self, digest: int, content: bytes, near: int) -> int:
        """Makes a frame without users: reserve it before anything else happens.

        Args:
            digest: of the content.
            content: a copy that no program can change.
            near: the number that would be best.

        Raises:
            OSError: there is no room; nothing has changed.
        """
        frame = self._store.allocate(near)
        try:
            self._store.write(frame, content)
        except OSError:
            self._store.release(frame)
            raise
        self._enter(frame, digest)
        return frame

    def _enter(self, frame: int, digest: int) -> None:
        missing = frame + 1 - len(self._digests)
        if missing > 0:
            self._digests.extend(array("Q", bytes(8 * missing)))
            self._references.extend(array("I", bytes(4 * missing)))
            self._reservations.extend(array("I", bytes(4 * missing)))
        self._digests[frame] = digest
        twins = self.stable.setdefault(digest, [])
        self.duplicates += bool(twins)
        twins.append(frame)

    def recover(self, digest: Callable[[bytes], int]) -> int:
        """Takes over what the store holds from before. How many frames."""
        for frame, content in self._store.recover():
            self._enter(frame, digest(content))
            self.reserve(frame)
            self._unclaimed.append(frame)
        return len(self._unclaimed)

    def take_unclaimed(self) -> list[int]:
        """Takes out the recovered frames, which have a reservation for it still: cancel each."""
        unclaimed, self._unclaimed = self._unclaimed, []
        return unclaimed

    def resume(self, frame: int) -> None:
        """A page maps the frame since before it was recovered."""
        self.reserve(frame)
        self.commit(frame)

    def is_used(self, frame: int) -> bool:
        """Whether a page may map it: it has users, so its bytes stay."""
        return 0 <= frame < len(self._digests) and self.users(frame) > 0

    def read(self, frame: int) -> bytes:
        """The bytes of a frame."""
        return self._store.read(frame)

    def digest(self, frame: int) -> int:
        """The digest of a frame, or what it was before the frame was released."""
        return self._digests[frame]

    def users(self, frame: int) -> int:
        """References and reservations together."""
        return self._references[frame] + self._reservations[frame]

    def reserve(self, frame: int) -> None:
        """A proposal names the frame (M1)."""
        self._reservations[frame] += 1

    def cancel(self, frame: int) -> None:
        """A proposal came to nothing."""
        self._reservations[frame] -= 1
        self._release_unused(frame)

    def commit(self, frame: int) -> None:
        """A proposal was carried out: its reservation becomes a reference (M8)."""
        self._reservations[frame] -= 1
        self.shared += not self._references[frame]
        self._references[frame] += 1

    def drop(self, frame: int) -> None:
        """A mapping of the frame is proven gone."""
        self._references[frame] -= 1
        self.shared -= not self._references[frame]
        self._release_unused(frame)

    def _release_unused(self, frame: int) -> None:
        if self._references[frame] or self._reservations[frame]:
            return
        digest = self._digests[frame]
        twins = self.stable[digest]
        twins.remove(frame)
        if twins:
            self.duplicates -= 1
        else:
            del self.stable[digest]
        self._store.release(frame)

    def flush(self) -> None:
        """Gives the memory of released frames back; see `FrameStore.flush`."""
        self._store.flush()

    def bookkeeping_bytes(self) -> int:
        """The columns, and the stable tree by its measured size per entry."""
        return 16 * len(self._digests) + _ENTRY_BYTES * (len(self.stable) + self.duplicates)

    def audit(self, frame: int, digest: Callable[[bytes], int]) -> Iterator[FrameFault]:
        """What is wrong with a frame."""
        used, free, page = self._store.inspect(frame)
        if free and page is not None:
            yield FrameFault.LEFT
        if not used:
            return
        expected = self._digests[frame] if frame < len(self._digests) else None
        if page is None:
            yield FrameFault.HOLE
        elif digest(page) != expected:
            yield FrameFault.CHANGED
        if frame not in self.stable.get(expected, ()):
            yield FrameFault.UNLISTED

    def recount(self, references: dict[int, int], reservations: dict[int, int]) -> list[Miscount]:
        """Where the users of frames are other than was counted."""
        known, found = len(self._digests), []
        reservations = self._with_unclaimed(reservations)
        for frame in sorted({*range(known), *references, *reservations}):
            booked = (self._references[frame], self._reservations[frame]) if frame < known else (0, 0)
            counted = (references.get(frame, 0), reservations.get(frame, 0))
            if booked != counted:
                found.append(Miscount(frame, booked[0], booked[1], counted[0], counted[1]))
        return found

    def check(self, references: dict[int, int], reservations: dict[int, int]) -> None:
        """Compares the books with what the page tables say, by frame."""
        reservations = self._with_unclaimed(reservations)
        in_tree = sorted(frame for twins in self.stable.values() for frame in twins)
        assert in_tree == sorted(references.keys() | reservations.keys()), "frames of the tree are not those in use"
        for frame in range(len(self._digests)):
            assert self._references[frame] == references.get(frame, 0), f"references of frame {frame}"
            assert self._reservations[frame] == reservations.get(frame, 0), f"reservations of frame {frame}"
        assert all(frame in self.stable[self._digests[frame]] for frame in in_tree), "a frame under another digest"
        assert self.shared == len(references), "frames in use miscounted"
        assert self.duplicates == len(in_tree) - len(self.stable), "duplicates miscounted"
        assert all(self.stable.values()), "an empty list in the stable tree"

    def _with_unclaimed(self, reservations: dict[int, int]) -> dict[int, int]:
        together = dict(reservations)
        for frame in self._unclaimed:
            together[frame] = together.get(frame, 0) + 1
        return together
