//! The class of a space, and how its methods work on it. The methods are in `space`.

use super::calls::panicked;
use crate::error::Result;
use crate::space;
use pyo3::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// See `_native.pyi`.
#[pyclass(subclass, frozen, module = "pagefold_core")]
pub struct Space {
    pub space: Arc<space::Space>,
    pub tier: &'static str,
}

impl Space {
    /// Works with the GIL released. A panic has been put right when it arrives here (see `redo`), and is a RuntimeError for
    /// Python: as pyo3's PanicException, which is no Exception, it would end the session's thread unnoticed.
    pub fn work<T: Send>(&self, py: Python<'_>, work: impl FnOnce(&space::Space) -> Result<T> + Send) -> PyResult<T> {
        let done = py.detach(|| catch_unwind(AssertUnwindSafe(|| work(&self.space))));
        Ok(done.map_err(panicked)??)
    }
}
