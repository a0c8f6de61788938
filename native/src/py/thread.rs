//! Work that no signal reaches, on threads of the library's own.
//!
//! An exception may come out of a signal handler between any two steps of Python, in the main thread. So what must not be
//! left half done is not done there: `call` hands it to a thread of its own and waits. The waiting thread may be interrupted at
//! any moment; the work goes on, and finds that nobody wants its answer.

use super::calls::wait;
use crate::fork;
use crate::sys::atfork;
use crate::sys::event::{Event, Waited};
use crate::sys::signals::HeldBack;
use crate::sys::thread;
use pyo3::exceptions::{PyOSError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// As Python's own threads have it, as a rule.
const STACK: usize = 8 << 20;

/// A thread of ours that runs Python.
pub struct Running {
    /// It has ended, and will not need Python any more.
    pub ended: Event,
    process: u32,
}

// Locked with the GIL held, and for no longer than a look: a fork by Python never finds it taken.
static ALL: Mutex<Vec<Weak<Running>>> = Mutex::new(Vec::new());

/// The program ends: nothing begins any more.
pub static OVER: AtomicBool = AtomicBool::new(false);

thread_local! {
    static CURRENT: RefCell<Option<Arc<Running>>> = const { RefCell::new(None) };
}

/// The thread of ours that this is.
pub fn current() -> Option<Arc<Running>> {
    CURRENT.with_borrow(Clone::clone)
}

/// Waits until all threads of ours have ended, at most until then. Signals are handled later.
pub fn wait_for_all(py: Python<'_>, until: Instant) {
    let Ok(all) = ALL.try_lock().map(|all| all.clone()) else { return };
    for running in all.iter().filter_map(Weak::upgrade).filter(|running| running.process == atfork::process()) {
        py.detach(|| {
            while !running.ended.is_set() && Instant::now() < until {
                running.ended.wait(until.saturating_duration_since(Instant::now()));
            }
        });
    }
}

/// See `_native.pyi`.
#[pyfunction]
#[pyo3(name = "start", signature = (act, *, awaited = true))]
pub fn start_act(py: Python<'_>, act: Py<PyAny>, awaited: bool) -> PyResult<()> {
    start(py, "pagefold", act, None, awaited)
}

/// See `_native.pyi`.
#[pyfunction]
pub fn can_start(py: Python<'_>, count: usize) -> bool {
    py.detach(|| {
        let (end, gone) = (Arc::new(Event::default()), Arc::new(AtomicUsize::new(0)));
        let wait = |end: Arc<Event>, gone: Arc<AtomicUsize>| {
            move || {
                while end.wait(Duration::from_secs(60)) != Waited::Set {}
                gone.fetch_add(1, Ordering::AcqRel);
            }
        };
        let started = |_: &usize| thread::start("pagefold-probe", STACK, wait(end.clone(), gone.clone())).is_ok();
        let count_started = (0..count).take_while(started).count();
        end.set();
        while gone.load(Ordering::Acquire) < count_started {
            std::thread::yield_now(); // what they take is to be there again
        }
        count_started == count
    })
}

/// Starts a thread that runs Python, and is waited for when the program ends (`awaited`).
///
/// Python starts it, and it runs functions of Python's that run `act`. A thread that Python does not know of crashes before
/// Python 3.12 if something that is local to it asks for the GIL when it goes (PyGILState_Release ends its state twice), as
/// gevent's does; and `_running.py` says why no function of Rust's may be at the bottom of it.
pub fn start(
    py: Python<'_>,
    name: &'static str,
    act: Py<PyAny>,
    answer: Option<Py<Answer>>,
    awaited: bool,
) -> PyResult<()> {
    let running = Arc::new(Running { ended: Event::default(), process: atfork::process() });
    if answer.is_some() && OVER.load(Ordering::SeqCst) {
        // Nobody would wait for it, and Python would end it in the middle.
        let ends = "the program ends, and pagefold's sessions have ended with it: handlers of its end that connect are to be \
                    registered after pagefold is imported";
        return Err(PyOSError::new_err((libc::ESHUTDOWN, ends)));
    }
    if awaited {
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|running| running.strong_count() > 0);
        all.push(Arc::downgrade(&running));
    }
    let run = py.import("pagefold_core._running")?.getattr(if answer.is_some() { "answer" } else { "run" })?;
    let work = Py::new(py, Work { name, act: Mutex::new(Some(act)), answer, running })?;
    let start = starter(py)?;
    let held = HeldBack::all(); // a thread begins with the mask of its starter
    let started = start.call1(py, (run, (work,)));
    drop(held);
    started.map(drop).map_err(|error| PyOSError::new_err((libc::EAGAIN, format!("starting a thread: {error}"))))
}

/// See `_native.pyi`.
#[pyclass(frozen, module = "pagefold_core")]
pub struct Work {
    name: &'static str,
    act: Mutex<Option<Py<PyAny>>>,
    answer: Option<Py<Answer>>,
    running: Arc<Running>,
}

#[pymethods]
impl Work {
    fn __enter__(&self) -> Option<Py<PyAny>> {
        thread::become_ours(self.name);
        CURRENT.set(Some(self.running.clone()));
        self.act.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn __exit__(&self, py: Python<'_>, _kind: Py<PyAny>, _value: Py<PyAny>, _trace: Py<PyAny>) {
        let _ = forget_dummy(py); // there is none, or `threading` has become another
        CURRENT.set(None);
        self.running.ended.set();
    }

    #[getter]
    fn answer(&self, py: Python<'_>) -> Option<Py<Answer>> {
        self.answer.as_ref().map(|answer| answer.clone_ref(py))
    }
}

/// `start_new_thread` of an instance of `_thread` that nobody else can reach: what others do to theirs (gevent puts greenlets in
/// the place of threads) is not done to it.
fn starter(py: Python<'_>) -> PyResult<&Py<PyAny>> {
    static START: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    START.get_or_try_init(py, || {
        let importer = py.import("importlib.machinery")?.getattr("BuiltinImporter")?;
        let spec = importer.call_method1("find_spec", ("_thread",))?;
        let module = py.import("importlib.util")?.call_method1("module_from_spec", (spec,))?;
        importer.call_method1("exec_module", (&module,))?;
        Ok(module.getattr("start_new_thread")?.unbind())
    })
}

/// Code that asks `threading` for the current thread, as gRPC does, has it make a dummy for one that it did not start. Before
/// Python 3.13 it keeps that for ever.
fn forget_dummy(py: Python<'_>) -> PyResult<()> {
    let active = py.import("threading")?.getattr("_active")?;
    let me = py.import("_thread")?.call_method0("get_ident")?;
    if active.contains(&me)? && active.get_item(&me)?.get_type().name()? == "_DummyThread" {
        active.del_item(me)?;
    }
    Ok(())
}

#[derive(Default)]
struct Desk {
    answer: Option<PyResult<Py<PyAny>>>,
    left: bool,
}

struct Call {
    // With the GIL held, always.
    desk: Mutex<Desk>,
    answered: Event,
}

impl Call {
    /// Lays an answer down; false, and it is dropped, if nobody waits for it, or there is one.
    fn answer(&self, answer: PyResult<Py<PyAny>>) -> bool {
        let mut desk = self.desk.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = !desk.left && desk.answer.is_none();
        if wanted {
            desk.answer = Some(answer);
            self.answered.set();
        } else {
            drop(desk);
            drop(answer); // which may run anything
        }
        wanted
    }

    fn is_left(&self) -> bool {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner).left
    }

    fn leave(&self) -> Option<PyResult<Py<PyAny>>> {
        let mut desk = self.desk.lock().unwrap_or_else(PoisonError::into_inner);
        desk.left = true;
        desk.answer.take()
    }
}

/// See `_native.pyi`.
#[pyclass(frozen, module = "pagefold_core")]
pub struct Answer {
    call: Arc<Call>,
}

#[pymethods]
impl Answer {
    fn give(&self, value: Py<PyAny>) -> bool {
        self.call.answer(Ok(value))
    }

    fn fail(&self, error: Bound<'_, PyAny>) {
        let py = error.py();
        let error = PyErr::from_value(error);
        if !self.call.answer(Err(error.clone_ref(py))) && !self.call.is_left() {
            error.write_unraisable(py, None); // after the answer was given
        }
    }

    #[getter]
    fn wanted(&self) -> bool {
        let desk = self.call.desk.lock().unwrap_or_else(PoisonError::into_inner);
        !desk.left && desk.answer.is_none()
    }
}

/// See `_native.pyi`.
#[pyfunction]
pub fn call(py: Python<'_>, act: Py<PyAny>) -> PyResult<Py<PyAny>> {
    if py.detach(fork::is_in_the_middle) {
        return Err(PyRuntimeError::new_err(
            "pagefold was asked to connect by a thread that is in the middle of a fork or of a call to the server: do it later",
        ));
    }
    let call = Arc::new(Call { desk: Mutex::default(), answered: Event::default() });
    start(py, "pagefold", act, Some(Py::new(py, Answer { call: call.clone() })?), true)?;
    let waited = wait(py, &call.answered, Duration::MAX);
    let answer = call.leave();
    waited?;
    answer.expect("answered, and nobody else takes it")
}
