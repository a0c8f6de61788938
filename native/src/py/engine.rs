//! The engine.

use crate::engine::{self, Columns, Counters, Error, Held, Left, Miscount, Options, PassReport};
use crate::page::Run;
use crate::sys::mmap::duplicate;
use pyo3::exceptions::{
    PyAssertionError, PyKeyError, PyMemoryError, PyOSError, PyOverflowError, PyRuntimeError, PyValueError,
};
use pyo3::prelude::*;
use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

/// See `_native.pyi`.
#[pyclass(frozen, module = "pagefold_core")]
pub struct Engine {
    engine: Mutex<engine::Engine>,
}

/// A frame, its references and reservations by the books, and both as counted.
type Recounted = (u32, u32, u32, u32, u32);
type Report = (u64, u64, u64, u64, u64, u64, u64, u64, u64);

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        let text = error.to_string();
        match error {
            Error::NoClient(_) | Error::NoSegment(_) => PyKeyError::new_err(text),
            Error::ClientTaken(_) | Error::SegmentRefused(..) | Error::Violation(_) => PyValueError::new_err(text),
            Error::NoMemory => PyMemoryError::new_err(text),
            Error::NoPlace => PyOverflowError::new_err(text),
            Error::System(_, source) => PyOSError::new_err((source.raw_os_error(), text)),
        }
    }
}

#[pymethods]
impl Engine {
    #[new]
    fn new(py: Python<'_>, pool: i32, seed: u64, limit: u32, number: u16) -> PyResult<Engine> {
        let made = py
            .detach(|| Ok(engine::Engine::new(duplicated(pool, "the pool")?, Options::default(), seed, limit, number)));
        Ok(Engine { engine: Mutex::new(made.map_err(|error: Error| PyErr::from(error))?) })
    }

    fn configure(
        &self,
        py: Python<'_>,
        use_zero_pages: bool,
        max_page_sharing: u32,
        smart_scan: bool,
        max_outstanding: usize,
    ) -> PyResult<()> {
        let options = Options { use_zero_pages, max_page_sharing, smart_scan, max_outstanding };
        self.with(py, |engine| {
            engine.configure(options);
            Ok(())
        })
    }

    fn inherit(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, engine::Engine::recover_frames)
    }

    fn bury(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |engine| {
            engine.release_unclaimed();
            Ok(())
        })
    }

    fn add_client(&self, py: Python<'_>, client: i64) -> PyResult<()> {
        self.with(py, |engine| engine.add_client(client))
    }

    fn add_segment(
        &self,
        py: Python<'_>,
        client: i64,
        segment: i64,
        fd: i32,
        pages: usize,
        tracked: bool,
    ) -> PyResult<()> {
        self.with(py, |engine| engine.add_segment(client, segment, duplicated(fd, "the segment")?, pages, tracked))
    }

    fn drop_segment(&self, py: Python<'_>, client: i64, segment: i64) -> PyResult<bool> {
        self.with(py, |engine| engine.drop_segment(client, segment))
    }

    fn depart_client(&self, py: Python<'_>, client: i64) -> PyResult<()> {
        self.with(py, |engine| engine.depart_client(client))
    }

    fn remove_client(&self, py: Python<'_>, client: i64) -> PyResult<()> {
        self.with(py, |engine| engine.remove_client(client))
    }

    #[expect(clippy::too_many_arguments, reason = "they are the columns of Events in memory.proto")]
    fn apply(
        &self,
        py: Python<'_>,
        client: i64,
        kind: Vec<i64>,
        segment: Vec<i64>,
        first: Vec<i64>,
        count: Vec<i64>,
        pool: Vec<i64>,
        frame: Vec<i64>,
        detail: Vec<i64>,
    ) -> PyResult<Option<String>> {
        let events = Columns { kind, segment, first, count, pool, frame, detail };
        self.with(py, |engine| match engine.apply(client, &events) {
            Err(Error::Violation(violation)) => Ok(Some(violation.to_string())),
            done => done.map(|()| None),
        })
    }

    #[expect(clippy::type_complexity, reason = "what Instructions are made of")]
    fn take(
        &self,
        py: Python<'_>,
        client: i64,
        pages: usize,
    ) -> PyResult<(Vec<(i64, usize, usize, i64)>, Vec<(i64, usize, usize)>, bool)> {
        let told = self.with(py, |engine| engine.take_instructions(client, pages))?;
        Ok((told.merges, told.adopts, told.more))
    }

    fn queued(&self, py: Python<'_>) -> PyResult<Vec<i64>> {
        self.with(py, |engine| Ok(engine.queued()))
    }

    fn outstanding(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |engine| Ok(engine.outstanding()))
    }

    fn scan(&self, py: Python<'_>, pages: u64, threads: usize) -> PyResult<(u64, Option<Report>)> {
        let step = self.with(py, |engine| Ok(engine.scan(pages, threads)))?;
        let columns = |r: PassReport| {
            (r.number, r.visited, r.proposed, r.fresh, r.volatile, r.unshared, r.waiting, r.backlog, r.unplaced)
        };
        Ok((step.visited, step.finished.map(columns)))
    }

    fn remaining(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |engine| Ok(engine.remaining()))
    }

    fn refusal(&self, py: Python<'_>) -> PyResult<Option<i32>> {
        let refusal = self.with(py, |engine| Ok(engine.refusal()))?;
        Ok(refusal.map(|error| error.raw_os_error().unwrap_or(libc::EIO)))
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, engine::Engine::flush)
    }

    fn unmerge(&self, py: Python<'_>, on: bool) -> PyResult<()> {
        self.with(py, |engine| {
            engine.unmerge(on);
            Ok(())
        })
    }

    fn counters(&self, py: Python<'_>) -> PyResult<HashMap<&'static str, u64>> {
        let counters: Counters = self.with(py, |engine| Ok(engine.counters()))?;
        macro_rules! named { ($($name:ident),* $(,)?) => { HashMap::from([$((stringify!($name), counters.$name)),*]) } }
        Ok(named![
            pages_shared,
            pages_sharing,
            pages_unshared,
            pages_volatile,
            pages_skipped,
            pages_scanned,
            full_scans,
            zero_pages,
            stable_node_dups,
            pages_merged,
            pages_broken,
            pages_declined,
            pages_over_budget,
            pages_refused,
            pages_waiting,
            pages_unplaced,
            pages_proposed,
            bookkeeping_bytes,
        ])
    }

    fn segment_counts(&self, py: Python<'_>, client: i64, segment: i64) -> PyResult<(usize, usize, usize, usize)> {
        let counts = self.with(py, |engine| engine.segment_counts(client, segment))?;
        Ok((counts.merged, counts.zero, counts.copied, counts.proposed))
    }

    fn merged_pages(&self, py: Python<'_>, client: i64) -> PyResult<(usize, usize)> {
        self.with(py, |engine| engine.merged_pages(client))
    }

    fn left(&self, py: Python<'_>, client: i64) -> PyResult<[usize; 7]> {
        let Left { over_budget, refused, pinned, failed, forked, copied, waiting } =
            self.with(py, |engine| engine.left(client))?;
        Ok([over_budget, refused, pinned, failed, forked, copied, waiting])
    }

    fn apart(&self, py: Python<'_>, client: i64) -> PyResult<usize> {
        self.with(py, |engine| engine.apart(client))
    }

    fn frames(&self, py: Python<'_>) -> PyResult<Vec<u32>> {
        self.with(py, |engine| Ok(engine.frames()))
    }

    fn held(
        &self,
        py: Python<'_>,
        client: i64,
        segment: i64,
        first: usize,
        count: usize,
    ) -> PyResult<Vec<(usize, usize, u8, i64)>> {
        let held = self.with(py, |engine| engine.held(client, segment, Run { first, count }))?;
        let columns = |held: Held| (held.run.first, held.run.count, held.state, held.frame.map_or(-1, i64::from));
        Ok(held.into_iter().map(columns).collect())
    }

    fn audit(&self, py: Python<'_>, first: u32, count: u32) -> PyResult<Vec<(u32, u8)>> {
        let faults = self.with(py, |engine| Ok(engine.audit(first, count)))?;
        Ok(faults.into_iter().map(|(frame, fault)| (frame, fault as u8)).collect())
    }

    fn recount(&self, py: Python<'_>) -> PyResult<Vec<Recounted>> {
        let found = self.with(py, |engine| Ok(engine.recount()))?;
        let columns = |m: Miscount| (m.frame, m.booked.0, m.booked.1, m.counted.0, m.counted.1);
        Ok(found.into_iter().map(columns).collect())
    }

    fn check(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |engine| Ok(engine.check()))?.map_err(PyAssertionError::new_err)
    }
}

impl Engine {
    /// Works on the engine with the GIL released. An engine that panicked once has books that nobody may trust: it
    /// refuses everything from then on, and what waits for it learns that by an exception, not by the process's end.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut engine::Engine) -> engine::Result<T> + Send,
    ) -> PyResult<T> {
        let done = py.detach(|| {
            catch_unwind(AssertUnwindSafe(|| {
                let mut engine = self.engine.lock().expect("the engine has not failed before");
                work(&mut engine)
            }))
        });
        match done {
            Ok(result) => Ok(result?),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
                Err(PyRuntimeError::new_err(format!("the engine has failed: {text}")))
            }
        }
    }
}

fn duplicated(fd: i32, what: &'static str) -> engine::Result<std::os::fd::OwnedFd> {
    duplicate(fd).map_err(|error: io::Error| Error::System(what, error))
}
