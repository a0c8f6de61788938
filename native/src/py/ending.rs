//! How a session ends.

use super::arena::Arena;
use super::calls::{wait, without_gil};
use super::doorbell::{Doorbell, seconds};
use super::thread::{self, OVER, Running};
use crate::fork;
use crate::space;
use crate::space::ending;
use crate::sys::event::Waited;
use crate::sys::thread::is_ours;
use pyo3::prelude::*;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

struct Inner {
    ending: ending::Ending,
    cut: Py<PyAny>,
    thread: Option<Arc<Running>>,
}

// Locked with the GIL held, and for no longer than a look: a fork by Python never finds it taken.
static ALL: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

impl Inner {
    /// Ends what the session's thread is waiting for, on a thread that no signal reaches.
    fn cut(&self, py: Python<'_>) {
        let _ = thread::start(py, "pagefold-cut", self.cut.clone_ref(py), None, true);
    }
}

/// See `_native.pyi`.
#[pyclass(frozen, module = "pagefold_core")]
pub struct Ending {
    inner: Arc<Inner>,
}

#[pymethods]
impl Ending {
    #[new]
    fn new(bell: &Doorbell, cut: Py<PyAny>) -> Ending {
        let ending = ending::Ending::new(bell.bell.clone());
        let inner = Arc::new(Inner { ending, cut, thread: thread::current() });
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|inner| inner.strong_count() > 0);
        all.push(Arc::downgrade(&inner));
        if OVER.load(Ordering::SeqCst) {
            // It was on its way when the program began to end.
            inner.ending.stop();
        }
        Ending { inner }
    }

    #[getter]
    fn stopping(&self) -> bool {
        self.inner.ending.stopping.is_set()
    }

    #[getter]
    fn outlives(&self) -> bool {
        self.inner.ending.outlives.load(Ordering::Acquire)
    }

    fn pause(&self, py: Python<'_>, timeout_seconds: f64) -> bool {
        let timeout = seconds(timeout_seconds);
        py.detach(|| self.inner.ending.stopping.wait(timeout)) == Waited::Set
    }

    fn finish(&self) {
        self.inner.ending.finished.set();
    }

    fn stop(&self) {
        self.inner.ending.stop();
    }

    fn end(&self, py: Python<'_>, grace_seconds: f64) -> PyResult<()> {
        let ending = &self.inner.ending;
        ending.stop();
        // The session's own thread, or one that a session waits for: to wait here would be to wait for ourselves.
        if !ending.is_here() || is_ours() || py.detach(fork::is_in_the_middle) {
            return Ok(());
        }
        if !wait(py, &ending.finished, seconds(grace_seconds))? {
            self.inner.cut(py);
        }
        wait(py, &ending.finished, Duration::MAX)?;
        if let Some(thread) = &self.inner.thread {
            wait(py, &thread.ended, Duration::MAX)?;
        }
        Ok(())
    }
}

/// See `_native.pyi`.
#[pyclass(frozen, module = "pagefold_core")]
pub struct Lifeline {
    inner: Arc<Inner>,
    space: Arc<space::Space>,
}

#[pymethods]
impl Lifeline {
    #[new]
    fn new(ending: &Ending, arena: &Arena) -> Lifeline {
        Lifeline { inner: ending.inner.clone(), space: arena.space.clone() }
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        if self.inner.ending.stopping.is_set() {
            return;
        }
        if without_gil(|| self.space.is_used()) {
            self.inner.ending.outlive();
        } else {
            self.inner.ending.stop();
        }
    }
}

/// See `_native.pyi`.
#[pyfunction]
pub fn end_all(py: Python<'_>, grace_seconds: f64, most_seconds: f64) {
    OVER.store(true, Ordering::SeqCst);
    let began = Instant::now();
    let sessions = || -> Vec<Arc<Inner>> {
        let all = ALL.try_lock().map(|all| all.iter().filter_map(Weak::upgrade).collect::<Vec<_>>());
        all.unwrap_or_default().into_iter().filter(|inner| inner.ending.is_here()).collect()
    };
    sessions().iter().for_each(|inner| inner.ending.stop());
    if is_ours() || py.detach(fork::is_in_the_middle) {
        return;
    }
    thread::wait_for_all(py, began + seconds(grace_seconds));
    for inner in sessions().iter().filter(|inner| !inner.ending.finished.is_set()) {
        inner.cut(py);
    }
    thread::wait_for_all(py, began + seconds(most_seconds));
}
