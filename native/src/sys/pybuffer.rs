//! The one place where memory is lent to Python.

use pyo3::ffi;
use pyo3::prelude::*;
use std::os::raw::c_int;

/// Fills a buffer request with writable bytes.
///
/// # Safety
/// `view` is the request that Python passed to a getbuffer slot. `bytes` bytes at `address` stay mapped, readable and
/// writable until the buffer is released: `owner`, of which the buffer holds a reference, sees to that.
pub unsafe fn fill(
    owner: &Bound<'_, PyAny>,
    view: *mut ffi::Py_buffer,
    address: usize,
    bytes: usize,
    flags: c_int,
) -> PyResult<()> {
    // SAFETY: as the caller promised; a length of a mapping fits Py_ssize_t.
    let result = unsafe { ffi::PyBuffer_FillInfo(view, owner.as_ptr(), address as *mut _, bytes as isize, 0, flags) };
    if result == 0 { Ok(()) } else { Err(PyErr::fetch(owner.py())) }
}
