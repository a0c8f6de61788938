"""NumPy arrays in a client's memory: layouts, types, and what is refused."""

from __future__ import annotations

import sys
from typing import Any

import pagefold
import pytest

np = pytest.importorskip("numpy")

PAGE = 4096


def test_arrays_are_plain_arrays_on_page_boundaries(client: pagefold.Client) -> None:
    arrays = [
        client.empty((100, 3), "f4"),
        client.zeros(7, "i2", order="F"),
        client.full((2, 2), 3.5),
        client.array([[1, 2], [3, 4]], "u1"),
        client.empty_like(np.ones((3, 4), "c8")),
        client.zeros_like([1, 2, 3]),
        client.full_like(np.ones(3), 9),
        client.zeros((), "f8"),
    ]
    for array in arrays:
        assert type(array) is np.ndarray
        assert array.ctypes.data % PAGE == 0
        assert array.flags.writeable
        assert not array.flags.owndata
    assert [a.shape for a in arrays] == [(100, 3), (7,), (2, 2), (2, 2), (3, 4), (3,), (3,), ()]
    assert [a.dtype.str for a in arrays] == ["<f4", "<i2", "<f8", "|u1", "<c8", "<i8", "<f8", "<f8"]
    assert arrays[2].tolist() == [[3.5, 3.5], [3.5, 3.5]]
    assert arrays[3].tolist() == [[1, 2], [3, 4]]
    assert arrays[6].tolist() == [9, 9, 9]
    assert client.full(3, 7).dtype == np.full(3, 7).dtype


@pytest.mark.parametrize("order", ["C", "F", "A", "K"])
@pytest.mark.parametrize(
    "source",
    [
        np.arange(24).reshape(2, 3, 4),
        np.asfortranarray(np.arange(24).reshape(2, 3, 4)),
        np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0),
        np.arange(48).reshape(2, 3, 8)[:, ::-1, ::2],
        np.float32(5),
    ],
    ids=["C", "F", "turned", "gaps", "scalar"],
)
def test_copies_have_the_layout_that_numpy_gives_them(client: pagefold.Client, source: Any, order: Any) -> None:
    theirs = np.array(source, order=order)
    ours = client.array(source, order=order)
    assert (ours == theirs).all()
    assert ours.dtype == theirs.dtype
    assert ours.strides == theirs.strides
    assert client.empty_like(source, order=order).strides == np.empty_like(source, order=order).strides


@pytest.mark.parametrize(
    ("obj", "dtype"),
    [
        (["a", "bcd"], "S"),
        (np.array([1, 22, 333]), "S"),
        (np.array(["x", "yz"]), None),
        (["2020-01-01"], "M8[s]"),
        (np.array([1.7, 2.2]), "i4"),
        ([(1, 2.5)], [("a", "i4"), ("b", "f8")]),
        (range(5), "f2"),
        ([], None),
        (np.zeros((0, 3)), None),
        (b"bytes", None),
        (3 + 4j, None),
    ],
)
def test_anything_that_numpy_takes(client: pagefold.Client, obj: Any, dtype: Any) -> None:
    theirs, ours = np.array(obj, dtype), client.array(obj, dtype)
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize(("shape", "dtype"), [((0,), "f8"), ((3, 0, 2), "i1"), (3, "V0"), ((), "V0")])
def test_arrays_without_bytes(client: pagefold.Client, shape: Any, dtype: str) -> None:
    array = client.empty(shape, dtype)
    theirs = np.empty(shape, dtype)
    assert (array.shape, array.dtype) == (theirs.shape, theirs.dtype)
    with client.pinned(array):
        client.advise(array, mergeable=False)


def test_types_that_add_a_dimension(client: pagefold.Client) -> None:
    assert client.zeros(5, np.dtype(("f4", (2, 3)))).shape == (5, 2, 3)
    assert client.zeros(5, "S").dtype == np.zeros(5, "S").dtype


@pytest.mark.parametrize("dtype", [object, [("a", "i4"), ("b", "O")]])
def test_objects_are_refused(client: pagefold.Client, dtype: Any) -> None:
    with pytest.raises(TypeError, match="Python objects"):
        client.empty(3, dtype)


def test_arguments_that_make_no_sense(client: pagefold.Client) -> None:
    with pytest.raises(ValueError, match="negative dimensions"):
        client.empty((2, -1))
    with pytest.raises(TypeError):
        client.empty(2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="order"):
        client.empty(2, order="X")  # type: ignore[arg-type]


def test_an_array_keeps_its_memory_from_being_closed(client: pagefold.Client) -> None:
    array = client.zeros(1000)
    buffer = array.base.base.obj
    assert isinstance(buffer, pagefold.Buffer)
    with pytest.raises(BufferError):
        buffer.close()


def test_without_numpy_the_error_says_how_to_get_it(client: pagefold.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'pagefold\[numpy\]'"):
        client.zeros(3)
    assert client.allocate(3)[:] == b"\0\0\0"
