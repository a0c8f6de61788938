//! What Python's fork hooks call, and the turns that a fork waits for.

use crate::fork;
use pyo3::prelude::*;

/// See `_native.pyi`.
#[pyfunction]
pub fn before_fork(py: Python<'_>) {
    py.detach(fork::before_hook);
}

/// See `_native.pyi`.
#[pyfunction]
pub fn after_fork_in_parent(py: Python<'_>) {
    py.detach(fork::after_hook);
}

/// See `_native.pyi`.
#[pyfunction]
pub fn fork_troubles(py: Python<'_>) -> Vec<String> {
    py.detach(|| fork::troubles().iter().map(ToString::to_string).collect())
}

/// See `_native.pyi`.
#[pyfunction]
pub fn hold_signals_over_forks(py: Python<'_>) -> PyResult<()> {
    Ok(py.detach(fork::hold_signals)?)
}

/// See `_native.pyi`.
#[pyfunction]
pub fn can_attach(py: Python<'_>) -> bool {
    py.detach(fork::can_attach)
}

/// See `_native.pyi`.
#[pyfunction]
pub fn is_inherited(py: Python<'_>, address: usize, nbytes: usize) -> bool {
    py.detach(|| fork::is_inherited(address, nbytes))
}

/// See `_native.pyi`.
#[pyclass(frozen, module = "pagefold_core")]
pub struct Turn;

#[pymethods]
impl Turn {
    #[new]
    fn new() -> Turn {
        Turn
    }

    fn __enter__(&self, py: Python<'_>) {
        py.detach(fork::begin_turn);
    }

    fn __exit__(&self, py: Python<'_>, _kind: Py<PyAny>, _value: Py<PyAny>, _trace: Py<PyAny>) {
        py.detach(fork::end_turn);
    }
}
