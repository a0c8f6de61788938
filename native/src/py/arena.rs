//! The arena: memory for programs.

use super::calls::{panicked, wait, without_gil};
use super::doorbell::seconds;
use super::handle::Space;
use crate::arena::room;
use crate::arena::{Announced, Backing, Claim, Place, Refused};
use crate::error::Result;
use crate::page::Run;
use crate::space;
use crate::sys::made;
use crate::sys::thread::is_ours;
use pyo3::buffer::PyUntypedBuffer;
use pyo3::create_exception;
use pyo3::exceptions::{PyAssertionError, PyException, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use std::os::fd::IntoRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

create_exception!(pagefold_core, NotBacked, PyException, "Memory cannot be had. See `_native.pyi`.");

/// How long an allocation waits until the server knows of new memory, so that a settle() in another process takes it in.
const ANNOUNCE: Duration = Duration::from_secs(1);

fn name(place: Place) -> &'static str {
    match place {
        Place::Shm => "shm",
        Place::Memfd => "memfd",
    }
}

fn place(text: &str) -> PyResult<Place> {
    match text {
        "shm" => Ok(Place::Shm),
        "memfd" => Ok(Place::Memfd),
        other => Err(PyValueError::new_err(format!("{other:?} is no place: it is \"shm\" or \"memfd\""))),
    }
}

impl From<Refused> for PyErr {
    fn from(refused: Refused) -> PyErr {
        match refused {
            Refused::Closed => NotBacked::new_err(("closed",)),
            Refused::TooLarge => NotBacked::new_err(("size",)),
            Refused::NoRoom(no) => {
                NotBacked::new_err(("room", name(no.place), no.room.size, no.room.free, no.promised))
            }
            Refused::NoSegment(error) => no_segment(&error),
            Refused::Space(error) => error.into(),
        }
    }
}

fn no_segment(error: &std::io::Error) -> PyErr {
    NotBacked::new_err(("segment", error.raw_os_error(), error.to_string()))
}

/// See `_native.pyi`.
#[pyclass(frozen, module = "pagefold_core")]
pub struct Segment {
    #[pyo3(get)]
    number: u32,
    #[pyo3(get)]
    name: String,
    #[pyo3(get)]
    fd: i32,
    #[pyo3(get)]
    pages: usize,
    #[pyo3(get)]
    address: usize,
    #[pyo3(get)]
    place: &'static str,
    #[pyo3(get)]
    inherited: bool,
    space: Arc<space::Space>,
}

#[pymethods]
impl Segment {
    fn discard(&self, py: Python<'_>) {
        py.detach(|| self.space.discard_object(self.number));
    }
}

/// See `_native.pyi`.
#[pyclass(frozen, module = "pagefold_core")]
pub struct Arena {
    pub space: Arc<space::Space>,
    backing: &'static str,
}

#[pymethods]
impl Arena {
    #[new]
    fn new(py: Python<'_>, space: &Space, backing: &str, first_pages: usize, last_pages: usize) -> PyResult<Arena> {
        let (backing, chosen) = match backing {
            "auto" => ("auto", Backing::Auto),
            other => place(other).map(|place| (name(place), Backing::Only(place)))?,
        };
        let space = space.space.clone();
        py.detach(|| space.found_arena(chosen, first_pages, last_pages))?;
        Ok(Arena { space, backing })
    }

    #[getter]
    fn backing(&self) -> &'static str {
        self.backing
    }

    #[getter]
    fn pages_in_use(&self, py: Python<'_>) -> usize {
        py.detach(|| self.space.in_use().0)
    }

    #[getter]
    fn memfd_pages(&self, py: Python<'_>) -> usize {
        py.detach(|| self.space.in_use().1)
    }

    #[getter]
    fn quarantined(&self, py: Python<'_>) -> bool {
        py.detach(|| self.space.is_quarantined())
    }

    #[pyo3(signature = (retry = false))]
    fn sweep(&self, py: Python<'_>, retry: bool) -> PyResult<Option<(usize, String)>> {
        let trouble = self.work(py, |space| space.sweep(retry))?;
        Ok(trouble.map(|(pages, error)| (pages, error.to_string())))
    }

    fn locate(&self, py: Python<'_>, address: usize, nbytes: usize) -> Option<(u32, usize, usize)> {
        let found = py.detach(|| self.space.locate(address, nbytes));
        found.map(|(segment, run)| (segment, run.first, run.count))
    }

    fn take_back(&self, py: Python<'_>, segment: u32, first: usize, count: usize) -> PyResult<()> {
        match self.work(py, |space| space.take_back(segment, Run { first, count }))? {
            None => Ok(()),
            Some((pages, errno)) => Err(NotBacked::new_err(("pages", errno, pages))),
        }
    }

    #[pyo3(signature = (place, keep))]
    fn pin(&self, py: Python<'_>, place: Option<(u32, usize, usize)>, keep: Py<PyAny>) -> PyResult<Pin> {
        let pinned = place.map(|(segment, first, count)| (segment, Run { first, count }));
        if let Some((segment, run)) = pinned {
            self.work(py, |space| space.pin(segment, run))?;
        }
        let (pinned, keep, entered) = (Mutex::new(pinned), Mutex::new(Some(keep)), false.into());
        Ok(Pin { space: self.space.clone(), pinned, keep, entered })
    }

    fn inherit(&self, py: Python<'_>, parent: &Space) -> PyResult<Vec<Segment>> {
        let taken = self.work(py, |space| space.attach_inherited(&parent.space))?;
        Ok(self.segments(taken))
    }

    fn added(&self, py: Python<'_>) -> Vec<Segment> {
        self.segments(py.detach(|| self.space.added()))
    }

    fn dropped(&self, py: Python<'_>) -> Vec<Segment> {
        self.segments(py.detach(|| self.space.dropped()))
    }

    #[getter]
    fn has_added(&self, py: Python<'_>) -> bool {
        py.detach(|| self.space.news().0)
    }

    #[getter]
    fn has_dropped(&self, py: Python<'_>) -> bool {
        py.detach(|| self.space.news().1)
    }

    fn announced(&self, py: Python<'_>) {
        py.detach(|| self.space.announced());
    }

    #[getter]
    fn is_announced(&self) -> bool {
        self.space.all_announced().is_set() || !self.space.reachable.load(Ordering::Acquire)
    }

    fn set_reachable(&self, reachable: bool) {
        self.space.reachable.store(reachable, Ordering::Release);
    }

    fn close(&self, py: Python<'_>) -> PyResult<Vec<Segment>> {
        let left = self.work(py, space::Space::close_arena)?;
        Ok(self.segments(left))
    }

    fn check(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.space.check_arena()).map_err(PyAssertionError::new_err)
    }
}

impl Arena {
    /// Memory for a block, or what its owner is to be told. What has to be waited for is waited for here: an exception
    /// comes out of here without the memory, or there is a block that gives it back.
    ///
    /// `waits`: until the server knows of new memory, for a moment.
    pub fn allocate(&self, py: Python<'_>, nbytes: usize, waits: bool) -> PyResult<Claim> {
        let done = py.detach(|| catch_unwind(AssertUnwindSafe(|| self.space.allocate(nbytes))));
        let mut claim = done.map_err(panicked)??;
        loop {
            match py.detach(|| claim.reserve()) {
                Ok(true) => break,
                Err(error) if error.kind() != std::io::ErrorKind::Interrupted => {
                    drop(claim);
                    self.work(py, |space| space.sweep(false))?; // a part may be reserved
                    return Err(no_segment(&error));
                }
                _ => py.check_signals()?,
            }
        }
        if waits && !self.is_announced() && !is_ours() {
            wait(py, self.space.all_announced(), ANNOUNCE)?;
        }
        Ok(claim)
    }

    fn segments(&self, told: Vec<Announced>) -> Vec<Segment> {
        let segment = |a: Announced| Segment {
            number: a.number,
            name: a.name,
            fd: a.fd,
            pages: a.pages,
            address: a.address,
            place: name(a.place),
            inherited: a.inherited,
            space: self.space.clone(),
        };
        told.into_iter().map(segment).collect()
    }

    fn work<T: Send>(&self, py: Python<'_>, work: impl FnOnce(&space::Space) -> Result<T> + Send) -> PyResult<T> {
        let done = py.detach(|| catch_unwind(AssertUnwindSafe(|| work(&self.space))));
        Ok(done.map_err(panicked)??)
    }
}

/// See `_native.pyi`.
#[pyclass(frozen, module = "pagefold_core")]
pub struct Pin {
    space: Arc<space::Space>,
    pinned: Mutex<Option<(u32, Run)>>,
    keep: Mutex<Option<Py<PyAny>>>, // so that the memory cannot be given back meanwhile
    entered: AtomicBool,
}

#[pymethods]
impl Pin {
    fn __enter__(&self) -> PyResult<()> {
        if self.entered.swap(true, Ordering::AcqRel) {
            return Err(PyRuntimeError::new_err(
                "a pin is good for one `with`, and this memory may be merged: pin it anew",
            ));
        }
        Ok(())
    }

    fn __exit__(&self, py: Python<'_>, _kind: Py<PyAny>, _value: Py<PyAny>, _trace: Py<PyAny>) {
        py.detach(|| self.release());
        let kept = self.keep.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(kept);
    }
}

impl Pin {
    fn release(&self) {
        let pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((segment, run)) = pinned {
            let _ = self.space.unpin(segment, run); // closed meanwhile, or a child's: nothing merges any more anyway
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        without_gil(|| self.release());
    }
}

/// See `_native.pyi`.
#[pyfunction]
pub fn span(obj: &Bound<'_, PyAny>) -> PyResult<(usize, usize)> {
    let buffer = PyUntypedBuffer::get(obj)?;
    if buffer.suboffsets().is_some() {
        return Err(PyValueError::new_err("the memoryview follows pointers; it is not memory of one piece"));
    }
    let address = buffer.buf_ptr() as usize;
    if buffer.len_bytes() == 0 {
        return Ok((address, 0));
    }
    let (mut low, mut high) = (0isize, 0isize);
    for (count, stride) in buffer.shape().iter().zip(buffer.strides()) {
        let reach = (*count as isize - 1) * stride;
        (low, high) = (low + reach.min(0), high + reach.max(0));
    }
    Ok((address.wrapping_add_signed(low), (high - low) as usize + buffer.item_size()))
}

/// See `_native.pyi`.
#[pyfunction]
pub fn memory_room(py: Python<'_>) -> Option<(u64, u64)> {
    py.detach(room::of_memory).map(|room| (room.size, room.free))
}

/// See `_native.pyi`.
#[pyfunction]
#[pyo3(signature = (age_seconds = 0.0))]
pub fn spare_pages(py: Python<'_>, age_seconds: f64) -> Option<usize> {
    // Locked with the GIL held, and for no longer than a look.
    static LOOKED: Mutex<Option<(Instant, Option<room::Room>)>> = Mutex::new(None);
    let last = *LOOKED.lock().unwrap_or_else(PoisonError::into_inner);
    let room = match last {
        Some((at, room)) if at.elapsed() < seconds(age_seconds) => room,
        _ => {
            let room = py.detach(room::of_memory);
            *LOOKED.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), room));
            room
        }
    };
    room::spare_pages(room)
}

/// See `_native.pyi`.
#[pyfunction]
pub fn make_object(py: Python<'_>, place: &str, nbytes: usize) -> PyResult<(String, i32)> {
    let place = self::place(place)?;
    let made = py.detach(|| match place {
        Place::Shm => made::named(nbytes),
        Place::Memfd => made::unnamed(nbytes),
    });
    made.map(|(name, fd)| (name, fd.into_raw_fd()))
        .map_err(|error| crate::error::Error::System("making an object", error).into())
}

/// See `_native.pyi`.
#[cfg(feature = "faults")]
#[pyfunction]
#[pyo3(signature = (place, room = None))]
pub fn pretend_room(place: &str, room: Option<(u64, u64, bool)>) -> PyResult<()> {
    let room = room.map(|(size, free, small)| Some(room::Room { size, free, small }));
    room::pretend(self::place(place)? as usize, room);
    Ok(())
}
