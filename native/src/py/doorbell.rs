//! The doorbell.

use crate::sys::doorbell;
use pyo3::prelude::*;
use std::sync::Arc;
use std::time::Duration;

/// See `_native.pyi`.
#[pyclass(frozen, module = "pagefold_core")]
pub struct Doorbell {
    pub bell: Arc<doorbell::Doorbell>,
}

#[pymethods]
impl Doorbell {
    #[new]
    #[pyo3(signature = (name, owner=None))]
    fn new(name: &str, owner: Option<u32>) -> PyResult<Doorbell> {
        Ok(Doorbell { bell: Arc::new(doorbell::Doorbell::open(name, owner)?) })
    }

    fn ring(&self) -> bool {
        self.bell.ring()
    }

    fn wait(&self, py: Python<'_>, timeout_seconds: f64) -> PyResult<bool> {
        let timeout = seconds(timeout_seconds);
        Ok(py.detach(|| self.bell.wait(timeout))?)
    }
}

/// A duration from Python's seconds; nonsense is 0, and nothing is longer than a year.
pub fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value.min(3.2e7)).unwrap_or(Duration::ZERO)
}
