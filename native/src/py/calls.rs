//! What calls of Python have in common: how they fail, and how they wait.

use crate::error::Error;
use crate::sys::atfork;
use crate::sys::event::{Event, Waited};
use pyo3::exceptions::{PyBlockingIOError, PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use std::time::{Duration, Instant};

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
pub fn panicked(panic: Box<dyn std::any::Any + Send>) -> PyErr {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
    PyRuntimeError::new_err(format!("pagefold's native code has failed, and no memory was lost: {text}. Report this"))
}

/// What takes a lock when an object goes. A fork holds all locks while it calls its handlers, and one of these may be Python's.
pub fn without_gil<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    Python::attach(|py| py.detach(work))
}

/// Waits with the GIL released; false after `timeout`. Python's signal handlers run meanwhile, and what they raise ends it.
pub fn wait(py: Python<'_>, event: &Event, timeout: Duration) -> PyResult<bool> {
    let end = Instant::now().checked_add(timeout);
    let process = atfork::process();
    loop {
        py.check_signals()?;
        let left = end.map_or(LOOK, |end| end.saturating_duration_since(Instant::now()).min(LOOK));
        if py.detach(|| event.wait(left)) == Waited::Set {
            return Ok(true);
        }
        if atfork::process() != process {
            return Err(PyRuntimeError::new_err(
                "a signal handler has forked this process while it waited for pagefold: in the child nothing goes on",
            ));
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            return Ok(false);
        }
    }
}

/// A signal that is handled by another thread, or just before this one waits, is seen to after so long.
const LOOK: Duration = Duration::from_secs(1);
