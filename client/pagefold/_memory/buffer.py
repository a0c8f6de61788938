"""Buffers, and which memory an object covers. The native arena decides where a buffer is."""

from __future__ import annotations

import operator
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, SupportsIndex, TypeGuard, cast, overload

from pagefold_core import Block, span
from pagefold_proto.text import human

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Buffer as BytesLike


_PLACE: Final = ("segment", "first", "pages")
"""Attributes of a `Block` that say where the arena has it."""


class Buffer(Block):
    r"""Page-aligned memory that may be merged with equal pages of other processes. `Client.allocate` makes it.

    It has the buffer protocol: `memoryview(buf)`, `numpy.frombuffer(buf)`, `file.readinto(buf)`, `sock.recv_into(buf)`.
    An index reads or writes an integer. A slice reads a copy as bytes, and takes bytes-like objects of the same length.
    The memory is freed by `close()`, or with the last reference to it, views and arrays included. It outlives its
    client. Threads may use it as any memory: those that write the same bytes have to agree.

    Example:
        >>> with client.allocate(1 << 20) as buf:
        ...     buf[:5] = b"hello"
        ...     bytes(memoryview(buf)[:6])
        b'hello\x00'
    """

    # No __new__ and no __init__: a single native call makes a buffer, and an exception comes before or after it.
    __slots__ = ()

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if name not in _PLACE]

    def __enter__(self) -> Buffer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @overload
    def __getitem__(self, key: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, key: slice) -> bytes: ...
    def __getitem__(self, key: SupportsIndex | slice) -> int | bytes:
        with memoryview(self) as view:
            if not isinstance(key, slice):
                return view[key]
            with view[key] as part:
                return bytes(part)

    @overload
    def __setitem__(self, key: SupportsIndex, value: SupportsIndex) -> None: ...
    @overload
    def __setitem__(self, key: slice, value: BytesLike) -> None: ...
    def __setitem__(self, key: SupportsIndex | slice, value: SupportsIndex | BytesLike) -> None:
        with memoryview(self) as view:
            if not isinstance(key, slice):
                view[key] = operator.index(cast(SupportsIndex, value))
                return
            with memoryview(value) as given, given.cast("B") as flat:  # type: ignore[arg-type]
                view[key] = flat

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuses copy, deepcopy and pickle: a buffer is a place in memory, and there is one of it."""
        raise TypeError(
            "a pagefold Buffer is memory of this process, and cannot be copied or pickled: copy or pickle "
            "bytes(buffer), or a NumPy array over it"
        )

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"at {self.address:#x}"
        return f"<pagefold.Buffer of {human(self.nbytes)}, {state}>"


def span_of(obj: Any) -> tuple[int, int]:
    """The memory that an object covers: (address, bytes); for an array with gaps, from its first to its last byte.

    Raises:
        ValueError: it is neither a Buffer, nor an ndarray, nor a memoryview, or it is closed.
    """
    if isinstance(obj, Buffer):
        if obj.closed:
            raise ValueError("the buffer is closed")
        return obj.address, obj.nbytes
    if _is_array(obj):
        return _bounds(obj.ctypes.data, obj.shape, obj.strides, obj.itemsize)
    if isinstance(obj, memoryview):
        return span(obj)
    raise ValueError(f"{type(obj).__name__} is not a pagefold Buffer, an ndarray or a memoryview: {HOW_TO_ALLOCATE}")


HOW_TO_ALLOCATE: Final = "take memory from this client with allocate(), empty(), zeros(), full() or array()"


def _is_array(obj: object) -> TypeGuard[np.ndarray[Any, Any]]:
    numpy = sys.modules.get("numpy")  # an ndarray exists only where numpy was imported
    return numpy is not None and isinstance(obj, numpy.ndarray)


def _bounds(address: int, shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    if 0 in shape or itemsize == 0:
        return address, 0
    low = high = 0
    for count, stride in zip(shape, strides, strict=True):
        reach = (count - 1) * stride
        low, high = low + min(reach, 0), high + max(reach, 0)
    return address + low, high - low + itemsize
