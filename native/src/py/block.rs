//! A range of pages as a buffer.

#![allow(unsafe_code, reason = "the slots of the buffer protocol are unsafe functions")]

use super::space::Space;
use crate::freed::Freed;
use crate::page::{Run, bytes, page_size};
use crate::sys::pybuffer;
use crate::view::Memory;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use std::os::raw::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a block holds on to. Its drop puts the extent into the freed list; it takes no lock but that list's.
struct Claim {
    memory: Arc<Memory>,
    _keeper: Arc<dyn Send + Sync>,
    freed: Arc<Freed>,
    segment: u32,
    run: Run,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.freed.push(self.segment, self.run);
    }
}

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
    fn claim(&self) -> std::sync::MutexGuard<'_, Option<Claim>> {
        self.claim.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[pymethods]
impl Block {
    #[new]
    fn new(py: Python<'_>, space: &Space, segment: u32, first: usize, nbytes: usize) -> PyResult<Block> {
        let run = Run { first, count: nbytes.div_ceil(page_size()) };
        let claim = if run.count == 0 {
            None
        } else {
            let memory = py.detach(|| space.space.memory(segment, run))?;
            Some(Claim { memory, _keeper: space.space.keeper(), freed: space.space.freed().clone(), segment, run })
        };
        let address = claim.as_ref().map_or(page_size(), |claim| claim.memory.range.at(bytes(first)));
        Ok(Block {
            claim: claim.into(),
            address,
            nbytes,
            segment,
            run,
            exports: AtomicUsize::new(0),
            closed: false.into(),
        })
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
