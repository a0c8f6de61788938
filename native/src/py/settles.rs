//! Who waits for settle(), and which number goes to the server.

use super::calls::wait;
use super::doorbell::seconds;
use crate::sys::event::Event;
use pyo3::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The report, or why there never will be one.
type Outcome = (Option<Py<PyAny>>, String);

#[derive(Default)]
struct Waiter {
    event: Event,
    outcome: Mutex<Option<Outcome>>,
}

impl Waiter {
    fn finish(&self, report: Option<Py<PyAny>>, failure: String) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some((report, failure));
        self.event.set();
    }
}

#[derive(Default)]
struct State {
    last: u64,
    waiting: BTreeMap<u64, Arc<Waiter>>,
    under_way: u64,
    ended: Option<String>,
}

/// See `_native.pyi`. Numbers only grow; one is under way at a time.
///
/// A report answers its own request and all earlier ones. While one is under way a newer one waits for the next turn:
/// if it took the place of the first, threads that settle again and again would never see an end.
#[pyclass(frozen, module = "pagefold_core")]
pub struct Settles {
    // Locked with the GIL held, for no longer than a look.
    state: Arc<Mutex<State>>,
}

impl Settles {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See `_native.pyi`.
#[pyclass(frozen, module = "pagefold_core")]
pub struct Waiting {
    waiter: Arc<Waiter>,
    state: Arc<Mutex<State>>,
    number: u64,
}

#[pymethods]
impl Waiting {
    fn wait(&self, py: Python<'_>, timeout_seconds: f64) -> PyResult<Option<Outcome>> {
        wait(py, &self.waiter.event, seconds(timeout_seconds))?;
        Ok(self.waiter.outcome.lock().unwrap_or_else(PoisonError::into_inner).take())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).waiting.remove(&self.number);
    }
}

#[pymethods]
impl Settles {
    #[new]
    fn new() -> Settles {
        Settles { state: Arc::default() }
    }

    fn begin(&self, py: Python<'_>, kick: Py<PyAny>) -> PyResult<Waiting> {
        let waiter = Arc::new(Waiter::default());
        let mut state = self.state();
        state.last += 1;
        let waiting = Waiting { waiter: waiter.clone(), state: self.state.clone(), number: state.last };
        if let Some(why) = state.ended.clone() {
            waiter.finish(None, why);
        } else {
            state.waiting.insert(waiting.number, waiter);
        }
        drop(state);
        kick.call0(py)?;
        Ok(waiting)
    }

    fn __bool__(&self) -> bool {
        !self.state().waiting.is_empty()
    }

    #[getter]
    fn is_current(&self) -> bool {
        let state = self.state();
        if state.waiting.is_empty() { state.under_way == 0 } else { state.waiting.contains_key(&state.under_way) }
    }

    fn number(&self) -> (u64, bool) {
        let mut state = self.state();
        let known = state.waiting.contains_key(&state.under_way);
        if !known {
            state.under_way = state.waiting.last_key_value().map_or(0, |(number, _)| *number);
        }
        (state.under_way, !known && state.under_way != 0)
    }

    fn renew(&self) {
        self.state().under_way = 0;
    }

    fn answer(&self, py: Python<'_>, settling: u64, report: Py<PyAny>) -> bool {
        let mut state = self.state();
        let later = state.waiting.split_off(&settling.saturating_add(1));
        let answered = std::mem::replace(&mut state.waiting, later);
        drop(state);
        for waiter in answered.values() {
            waiter.finish(Some(report.clone_ref(py)), String::new());
        }
        !answered.is_empty()
    }

    fn end(&self, why: &str) {
        let mut state = self.state();
        let why = state.ended.get_or_insert_with(|| why.into()).clone();
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        for waiter in waiting.values() {
            waiter.finish(None, why.clone());
        }
    }
}
