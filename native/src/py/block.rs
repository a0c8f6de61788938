//! A range of pages as a buffer.

#![allow(unsafe_code, reason = "the slots of the buffer protocol are unsafe functions")]

use super::arena::Arena;
use crate::arena::Claim;
use crate::arena::extents::Extent;
use crate::page::{Run, page_size};
use crate::sys::pybuffer;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use std::os::raw::c_int;
use std::sync::atomic::{AtomicUsize, Ordering};

/// See `_native.pyi`.
#[pyclass(subclass, frozen, module = "pagefold_core")]
pub struct Block {
    // None: of no pages, or closed.
    claim: std::sync::Mutex<Option<Claim>>,
    address: usize,
    nbytes: usize,
    segment: u32,
    run: Run,
    exports: AtomicUsize,
    closed: std::sync::atomic::AtomicBool,
}

impl Block {
    /// Of memory that was claimed; None: of no bytes.
    pub fn of(claim: Option<Claim>, nbytes: usize) -> Block {
        let address = claim.as_ref().map_or(page_size(), Claim::address);
        let nowhere = Extent { segment: 0, run: Run { first: 0, count: 0 } };
        let Extent { segment, run } = claim.as_ref().map_or(nowhere, Claim::extent);
        let (exports, closed) = (AtomicUsize::new(0), false.into());
        Block { claim: claim.into(), address, nbytes, segment, run, exports, closed }
    }

    fn claim(&self) -> std::sync::MutexGuard<'_, Option<Claim>> {
        self.claim.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[pymethods]
impl Block {
    // Called with the class of a subclass as well: nothing of Python's runs between the claim and the object.
    #[new]
    #[pyo3(signature = (arena, nbytes, waits = true))]
    fn new(py: Python<'_>, arena: &Arena, nbytes: &Bound<'_, PyAny>, waits: bool) -> PyResult<Block> {
        let nbytes = nbytes.extract::<usize>().unwrap_or(usize::MAX); // what does not fit is too large anyway
        let claim = if nbytes == 0 { None } else { Some(arena.allocate(py, nbytes, waits)?) };
        Ok(Block::of(claim, nbytes))
    }

    #[getter]
    fn address(&self) -> usize {
        self.address
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.nbytes
    }

    #[getter]
    fn segment(&self) -> u32 {
        self.segment
    }

    #[getter]
    fn first(&self) -> usize {
        self.run.first
    }

    #[getter]
    fn pages(&self) -> usize {
        self.run.count
    }

    #[getter]
    fn closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn __len__(&self) -> usize {
        self.nbytes
    }

    fn close(&self) -> PyResult<()> {
        // The claim's lock orders this against a getbuffer on a Python without a GIL.
        let mut claim = self.claim();
        if self.exports.load(Ordering::Acquire) > 0 {
            return Err(PyBufferError::new_err("a memoryview or an array still looks at this buffer; delete it first"));
        }
        self.closed.store(true, Ordering::Release);
        drop(claim.take());
        Ok(())
    }

    /// # Safety
    /// Called by Python with a buffer request for this object.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let this = slf.get();
        let _claim = this.claim();
        if this.closed.load(Ordering::Acquire) {
            return Err(PyValueError::new_err("the buffer is closed"));
        }
        // SAFETY: Python passes its own request. The claim keeps the memory mapped; it goes with this object, of which
        // the buffer holds a reference, or with `close`, which refuses while `exports` is not 0.
        unsafe { pybuffer::fill(slf.as_any(), view, this.address, this.nbytes, flags)? };
        this.exports.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// # Safety
    /// Called by Python with a buffer that `__getbuffer__` filled.
    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.exports.fetch_sub(1, Ordering::AcqRel);
    }
}
