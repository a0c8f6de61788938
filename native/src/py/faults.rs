//! Faults, for tests. Not in a wheel.

use crate::faults;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// See `_native.pyi`.
#[pyfunction]
pub fn arm_fault(point: &str, fault: &str) -> PyResult<()> {
    faults::parse(fault).and_then(|fault| faults::arm(point, fault)).map_err(PyValueError::new_err)
}

/// See `_native.pyi`.
#[pyfunction]
pub fn disarm_faults() {
    faults::disarm();
}

/// See `_native.pyi`.
#[pyfunction]
pub fn faults_passed(point: &str) -> u64 {
    faults::passed(point)
}

/// See `_native.pyi`.
#[pyfunction]
pub fn fault_points() -> Vec<(&'static str, bool)> {
    faults::POINTS.to_vec()
}
