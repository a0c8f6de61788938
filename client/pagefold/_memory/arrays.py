"""NumPy arrays in the client's memory. Each starts on a page boundary: only pages at equal offsets can be equal.

NumPy is imported when the first array is made, and is not a dependency: `pip install 'pagefold[numpy]'`.
Each is a plain ndarray. Its base keeps the memory alive and exported, so that the buffer behind it cannot be closed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from pagefold._memory.buffer import Buffer

Allocate = Callable[[int], "Buffer"]
Order = Literal["C", "F"]
LikeOrder = Literal["C", "F", "A", "K"]


def import_numpy() -> ModuleType:
    """NumPy, or an ImportError that says how to get it."""
    try:
        import numpy
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("arrays need NumPy: pip install 'pagefold[numpy]'", name="numpy") from error
    return numpy


def zeros(
    allocate: Allocate, shape: SupportsIndex | tuple[SupportsIndex, ...], dtype: DTypeLike, order: Order
) -> NDArray[Any]:
    """An array of zeros. It serves for `empty` too: new memory is zero."""
    np = import_numpy()
    if order not in ("C", "F"):
        raise ValueError(f"order must be 'C' or 'F', not {order!r}")
    # NumPy's own reading of sizeless and subarray types: 'S' is S1, ('f4', 3) adds a dimension.
    sample = np.empty((0,), dtype)
    element = sample.dtype
    if element.hasobject:
        raise TypeError(
            f"dtype {element} holds references to Python objects, which have no meaning in memory that is shared: "
            "use numbers, fixed-size strings or records"
        )
    sizes = _sizes(shape) + sample.shape[1:]
    nbytes = math.prod(sizes) * element.itemsize
    if nbytes == 0:
        nothing: NDArray[Any] = np.zeros(sizes, element, order)
        return nothing
    memory = np.frombuffer(allocate(nbytes), dtype=np.uint8)
    array: NDArray[Any] = np.ndarray(sizes, element, buffer=memory, order=order)
    return array


def full(
    allocate: Allocate,
    shape: SupportsIndex | tuple[SupportsIndex, ...],
    fill_value: ArrayLike,
    dtype: DTypeLike | None,
    order: Order,
) -> NDArray[Any]:
    """An array filled with a value; the type is the value's if none is given."""
    np = import_numpy()
    result = zeros(allocate, shape, np.asarray(fill_value).dtype if dtype is None else dtype, order)
    np.copyto(result, fill_value, casting="unsafe")
    return result


def array(allocate: Allocate, obj: ArrayLike, dtype: DTypeLike | None, order: LikeOrder) -> NDArray[Any]:
    """A copy of anything that NumPy takes for an array."""
    np = import_numpy()
    if dtype is None or (isinstance(obj, np.ndarray) and np.dtype(dtype).itemsize > 0):
        source = np.asarray(obj)  # converted while it is copied, below
    else:
        source = np.asarray(obj, dtype)
    result = like(allocate, source, dtype if dtype is not None and np.dtype(dtype).itemsize else source.dtype, order)
    np.copyto(result, source, casting="unsafe")
    return result


def like(allocate: Allocate, prototype: ArrayLike, dtype: DTypeLike | None, order: LikeOrder) -> NDArray[Any]:
    """Zeros with the shape and, unless told otherwise, the type and layout of another array."""
    np = import_numpy()
    source = np.asarray(prototype)
    dtype = source.dtype if dtype is None else dtype
    if order == "A":
        order = "F" if source.flags.fnc else "C"
    if order != "K":
        return zeros(allocate, source.shape, dtype, order)
    # 'K': axes in memory as they are there, the widest steps first.
    axes = sorted(range(source.ndim), key=lambda axis: -abs(source.strides[axis]))
    if source.flags.c_contiguous:
        axes.sort()
    result = zeros(allocate, tuple(source.shape[axis] for axis in axes), dtype, "C")
    return result.transpose([axes.index(axis) for axis in range(source.ndim)])


def _sizes(shape: SupportsIndex | tuple[SupportsIndex, ...]) -> tuple[int, ...]:
    if isinstance(shape, SupportsIndex):
        shape = (shape,)
    sizes = tuple(size.__index__() for size in shape)
    if any(size < 0 for size in sizes):
        raise ValueError(f"negative dimensions are not allowed: {sizes}")
    return sizes
