//! The thin layer that Python sees. Its manual is `native/python/pagefold_core/_native.pyi`.
//!
//! Everything that takes a lock, makes a system call or may wait for a window runs with the GIL released.

mod block;
mod doorbell;
mod engine;
#[cfg(feature = "faults")]
mod faults;
mod features;
mod space;

use crate::error::Error;
use pyo3::exceptions::{PyBlockingIOError, PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        let text = error.to_string();
        match error {
            Error::System(what, source) => match source.raw_os_error() {
                Some(errno) => PyOSError::new_err((errno, format!("{what}: {source}"))),
                None => PyOSError::new_err(text),
            },
            Error::Shared => PyBlockingIOError::new_err((libc::EAGAIN, text)),
            Error::NoView(_) | Error::Taken(_) | Error::Range(_) => PyValueError::new_err(text),
            Error::Closed | Error::Forking => PyRuntimeError::new_err(text),
        }
    }
}

/// What a panic becomes.
#[expect(clippy::needless_pass_by_value, reason = "as `catch_unwind` hands it over")]
fn panicked(panic: Box<dyn std::any::Any + Send>) -> PyErr {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
    PyRuntimeError::new_err(format!("pagefold's native code has failed, and no memory was lost: {text}. Report this"))
}

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::block::Block;
    #[pymodule_export]
    use super::doorbell::Doorbell;
    #[pymodule_export]
    use super::engine::Engine;
    #[cfg(feature = "faults")]
    #[pymodule_export]
    use super::faults::{arm_fault, disarm_faults, fault_points, faults_passed};
    #[pymodule_export]
    use super::features::{Features, probe};
    #[pymodule_export]
    use super::space::{Counts, Events, Space, WindowStats};

    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("PAGE_SIZE", crate::page::page_size())
    }
}
