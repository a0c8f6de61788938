//! What `os` lacks of files.

use crate::sys::mmap::duplicate;
use crate::sys::shm;
use pyo3::prelude::*;
use std::os::fd::AsFd;

/// See `_native.pyi`.
#[pyfunction]
pub fn punch_hole(py: Python<'_>, fd: i32, offset: usize, length: usize) -> PyResult<()> {
    Ok(py.detach(|| shm::punch(duplicate(fd)?.as_fd(), offset, length))?)
}
