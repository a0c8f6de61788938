//! The thin layer that Python sees. Its manual is `native/python/pagefold_core/_native.pyi`.
//!
//! Everything that takes a lock, makes a system call or may wait for a window runs with the GIL released.

mod arena;
mod block;
mod doorbell;
mod ending;
mod engine;
#[cfg(feature = "faults")]
mod faults;
mod features;
mod files;
mod fork;
mod settles;
mod space;
mod thread;

use crate::error::Error;
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
fn panicked(panic: Box<dyn std::any::Any + Send>) -> PyErr {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
    PyRuntimeError::new_err(format!("pagefold's native code has failed, and no memory was lost: {text}. Report this"))
}

/// Waits with the GIL released; false after `timeout`. Python's signal handlers run meanwhile, and what they raise ends it.
fn wait(py: Python<'_>, event: &Event, timeout: Duration) -> PyResult<bool> {
    let end = Instant::now().checked_add(timeout);
    loop {
        py.check_signals()?;
        let left = end.map_or(LOOK, |end| end.saturating_duration_since(Instant::now()).min(LOOK));
        if py.detach(|| event.wait(left)) == Waited::Set {
            return Ok(true);
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            return Ok(false);
        }
    }
}

/// A signal that is handled by another thread, or just before this one waits, is seen to after so long.
const LOOK: Duration = Duration::from_secs(1);

#[pymodule]
mod _native {
    #[cfg(feature = "faults")]
    #[pymodule_export]
    use super::arena::pretend_room;
    #[pymodule_export]
    use super::arena::{Arena, NotBacked, Pin, Segment, make_object, memory_room, span, spare_pages};
    #[pymodule_export]
    use super::block::Block;
    #[pymodule_export]
    use super::doorbell::Doorbell;
    #[pymodule_export]
    use super::ending::{Ending, Lifeline, end_all};
    #[pymodule_export]
    use super::engine::Engine;
    #[cfg(feature = "faults")]
    #[pymodule_export]
    use super::faults::{arm_fault, disarm_faults, fault_points, faults_passed};
    #[pymodule_export]
    use super::features::{Features, probe};
    #[pymodule_export]
    use super::files::punch_hole;
    #[pymodule_export]
    use super::fork::{
        Turn, after_fork_in_parent, before_fork, can_attach, fork_troubles, hold_signals_over_forks, is_inherited,
    };
    #[pymodule_export]
    use super::settles::{Settles, Waiting};
    #[pymodule_export]
    use super::space::{Counts, Events, Space, WindowStats};
    #[pymodule_export]
    use super::thread::{Answer, call, can_start, start_act};

    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("PAGE_SIZE", crate::page::page_size())
    }
}
