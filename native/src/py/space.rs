//! The space.

use super::block::Block;
use super::doorbell::{Doorbell, seconds};
use super::handle::Space;
use crate::error::{Error, Result};
use crate::page::{Run, bytes, page_size};
use crate::space::books::journal::Event;
use crate::space::books::proposal::Proposal;
use crate::space::headroom::Hindrance;
use crate::space::operations::wait::Woken;
use crate::space::{self, Options};
use crate::sys::mmap::duplicate;
use crate::sys::object::Object;
use crate::sys::uffd::Scope;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// See `_native.pyi`.
#[pyclass(frozen, get_all, module = "pagefold_core")]
pub struct Counts {
    owned: usize,
    merged: usize,
    zero: usize,
    copied: usize,
    frozen: usize,
    shared: usize,
    mappings: usize,
    budget: usize,
    inherited: usize,
}

/// See `_native.pyi`.
#[pyclass(frozen, get_all, module = "pagefold_core")]
pub struct WindowStats {
    windows: u64,
    p50_micros: f64,
    p99_micros: f64,
    max_micros: f64,
    max_running_micros: f64,
    over_bound: u64,
}

/// See `_native.pyi`.
#[pyclass(frozen, get_all, module = "pagefold_core")]
pub struct Events {
    kind: Vec<u32>,
    segment: Vec<u32>,
    first: Vec<u32>,
    count: Vec<u32>,
    pool: Vec<u32>,
    frame: Vec<u32>,
    detail: Vec<u32>,
}

#[pymethods]
impl Events {
    fn __len__(&self) -> usize {
        self.kind.len()
    }
}

impl Events {
    fn new(events: &[Event]) -> Events {
        let column = |get: fn(&Event) -> u32| events.iter().map(get).collect();
        Events {
            kind: column(|e| e.kind as u32),
            segment: column(|e| e.segment),
            first: column(|e| e.first),
            count: column(|e| e.count),
            pool: column(|e| e.pool),
            frame: column(|e| e.frame),
            detail: column(|e| e.detail),
        }
    }
}

#[pymethods]
impl Space {
    #[new]
    #[pyo3(signature = (tier, lease, budget, window_pages = 256, window_micros = 120, disabled = Vec::new(), tracker = "checksum"))]
    #[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts owned values")]
    #[expect(clippy::too_many_arguments, reason = "Python passes most of them by name, or not at all")]
    fn new(
        py: Python<'_>,
        tier: &str,
        lease: i32,
        budget: usize,
        window_pages: usize,
        window_micros: u64,
        disabled: Vec<String>,
        tracker: &str,
    ) -> PyResult<Space> {
        let off = |name: &str| disabled.iter().any(|d| d == name);
        let (tier, scope) = match tier {
            "uffd" => ("uffd", Some(Scope::Full)),
            "user" => ("user", Some(Scope::UserMode)),
            "off" => ("off", None),
            other => return Err(PyValueError::new_err(format!("tier {other:?}: it is \"uffd\", \"user\" or \"off\""))),
        };
        let track = match tracker {
            "pagemap" => true,
            "checksum" => false,
            other => {
                return Err(PyValueError::new_err(format!("tracker {other:?}: it is \"pagemap\" or \"checksum\"")));
            }
        };
        if track && ["wp_async", "pagemap_scan"].into_iter().any(off) {
            let disabled = std::io::Error::from_raw_os_error(libc::ENOSYS);
            return Err(Error::System("tracking writes is disabled by request", disabled).into());
        }
        if off(tier) {
            let disabled = std::io::Error::from_raw_os_error(libc::ENOSYS);
            return Err(Error::System("userfaultfd is disabled by request", disabled).into());
        }
        let options = Options {
            scope,
            budget,
            window_pages,
            window_time: Duration::from_micros(window_micros),
            unpopulated: !off("wp_unpopulated"),
            pagemap_scan: !off("pagemap_scan"),
            track,
        };
        let space = py.detach(|| space::Space::new(duplicated(lease, "the lease")?, &options))?;
        Ok(Space { space: Arc::new(space), tier })
    }

    #[getter]
    fn tier(&self) -> &'static str {
        self.tier
    }

    fn add_view(&self, py: Python<'_>, segment: u32, fd: i32, pages: usize) -> PyResult<usize> {
        self.work(py, |space| space.add_view(segment, duplicated(fd, "the segment")?, pages))
    }

    fn drop_view(&self, py: Python<'_>, segment: u32) -> PyResult<bool> {
        self.work(py, |space| space.drop_view(segment))
    }

    fn add_pool(&self, py: Python<'_>, pool: u32, fd: i32) -> PyResult<()> {
        self.work(py, |space| {
            space.add_pool(pool, duplicated(fd, "the pool")?)?;
            space.lend(fd);
            Ok(())
        })
    }

    fn merge(
        &self,
        py: Python<'_>,
        segment: Vec<u32>,
        first: Vec<u32>,
        count: Vec<u32>,
        pool: Vec<u32>,
        frame: Vec<u32>,
    ) -> PyResult<usize> {
        same_length(&[segment.len(), first.len(), count.len(), pool.len(), frame.len()])?;
        let proposals: Vec<Proposal> = (0..segment.len())
            .map(|i| Proposal {
                segment: segment[i],
                first: first[i],
                count: count[i],
                pool: pool[i],
                frame: if pool[i] == 0 { 0 } else { frame[i] },
            })
            .filter(|proposal| proposal.count > 0)
            .collect();
        self.work(py, |space| space.merge(proposals))
    }

    #[pyo3(signature = (segment, first, count, room = None))]
    fn adopt(
        &self,
        py: Python<'_>,
        segment: Vec<u32>,
        first: Vec<u32>,
        count: Vec<u32>,
        room: Option<usize>,
    ) -> PyResult<usize> {
        same_length(&[segment.len(), first.len(), count.len()])?;
        let runs = (0..segment.len()).map(|i| (segment[i], first[i], count[i]));
        let runs: Vec<_> = runs.collect();
        self.work(py, |space| space.adopt(runs, room.unwrap_or(usize::MAX)))
    }

    fn discard(&self, py: Python<'_>, segment: u32, first: usize, count: usize) -> PyResult<()> {
        self.work(py, |space| space.discard(segment, Run { first, count }))
    }

    fn exclude(&self, py: Python<'_>, segment: u32, first: usize, count: usize, excluded: bool) -> PyResult<()> {
        self.work(py, |space| space.exclude(segment, Run { first, count }, excluded))
    }

    fn pin(&self, py: Python<'_>, segment: u32, first: usize, count: usize) -> PyResult<()> {
        self.work(py, |space| space.pin(segment, Run { first, count }))
    }

    fn unpin(&self, py: Python<'_>, segment: u32, first: usize, count: usize) -> PyResult<()> {
        self.work(py, |space| space.unpin(segment, Run { first, count }))
    }

    fn switched(&self, py: Python<'_>, segment: u32, first: usize, count: usize) -> PyResult<usize> {
        self.work(py, |space| space.switched(segment, Run { first, count }))
    }

    #[pyo3(signature = (all = true, tracked = true))]
    fn harvest(&self, py: Python<'_>, all: bool, tracked: bool) -> PyResult<usize> {
        self.work(py, |space| space.harvest(all, tracked))
    }

    fn resume(&self, py: Python<'_>) -> PyResult<()> {
        self.work(py, space::Space::resume)
    }

    fn drop_pool(&self, py: Python<'_>, pool: u32) -> PyResult<bool> {
        self.work(py, |space| space.drop_pool(pool))
    }

    fn untrack(&self, py: Python<'_>) {
        py.detach(|| self.space.untrack());
    }

    fn freed(&self) -> Vec<(u32, usize, usize)> {
        self.space.freed().take_extents()
    }

    #[pyo3(signature = (limit = 65536))]
    fn drain(&self, py: Python<'_>, limit: usize) -> Events {
        py.detach(|| Events::new(&self.space.drain(limit)))
    }

    fn pending(&self, py: Python<'_>) -> usize {
        py.detach(|| self.space.pending())
    }

    fn counts(&self, py: Python<'_>) -> Counts {
        let c = py.detach(|| self.space.counts());
        Counts {
            owned: c.owned,
            merged: c.merged,
            zero: c.zero,
            copied: c.copied,
            frozen: c.frozen,
            shared: c.shared,
            mappings: c.mappings,
            budget: c.budget,
            inherited: c.inherited,
        }
    }

    fn hindrance(&self, py: Python<'_>) -> Option<(&'static str, usize, usize)> {
        py.detach(|| self.space.hindrance()).map(|found| match found {
            Hindrance::Locked => ("locked", 0, 0),
            Hindrance::Data { limit, used } => ("data", bytes(limit), bytes(used)),
        })
    }

    fn windows(&self, py: Python<'_>) -> WindowStats {
        let w = py.detach(|| self.space.windows());
        let micros = |d: Duration| d.as_nanos() as f64 / 1e3;
        WindowStats {
            windows: w.windows,
            p50_micros: micros(w.p50),
            p99_micros: micros(w.p99),
            max_micros: micros(w.max),
            max_running_micros: micros(w.max_running),
            over_bound: w.over_bound,
        }
    }

    fn wait(
        &self,
        py: Python<'_>,
        doorbell: &Doorbell,
        poll_seconds: f64,
        timeout_seconds: f64,
    ) -> PyResult<&'static str> {
        let (poll, timeout) = (seconds(poll_seconds), seconds(timeout_seconds));
        Ok(match self.work(py, |space| space.wait(&doorbell.bell, poll, timeout))? {
            Woken::Rung => "rung",
            Woken::News => "news",
            Woken::Idle => "idle",
        })
    }

    #[getter]
    fn shared(&self) -> bool {
        self.space.flags().is_shared()
    }

    #[getter]
    fn forked(&self) -> bool {
        self.space.flags().is_forked()
    }

    fn thaw(&self, py: Python<'_>) -> PyResult<bool> {
        self.work(py, space::Space::thaw)
    }

    fn owns(&self, py: Python<'_>, address: usize, nbytes: usize) -> bool {
        py.detach(|| self.space.owns(address, nbytes))
    }

    fn heritage(&self, py: Python<'_>) -> Vec<(usize, usize)> {
        py.detach(|| self.space.heritage())
    }

    fn take_over(&self, py: Python<'_>, parent: &Space, address: usize, segment: u32, fd: i32) -> PyResult<bool> {
        self.work(py, |space| {
            let object = Arc::new(Object::keep(duplicated(fd, "the segment")?));
            space.attach(&parent.space, address, segment, object)
        })
    }

    fn block(&self, py: Python<'_>, segment: u32, first: usize, nbytes: usize) -> PyResult<Block> {
        let run = Run { first, count: nbytes.div_ceil(page_size()) };
        let claim = if run.count == 0 { None } else { Some(self.work(py, |space| space.claim(segment, run))?) };
        Ok(Block::of(claim, nbytes))
    }

    fn attend(&self, py: Python<'_>, doorbell: &Doorbell) {
        py.detach(|| self.space.attend(doorbell.bell.clone()));
    }

    fn let_parents_go(&self, py: Python<'_>, segment: u32) -> PyResult<()> {
        self.work(py, |space| space.let_parents_go(segment))
    }

    fn forget_children(&self, py: Python<'_>) {
        py.detach(|| self.space.forget_children());
    }

    fn fork_trouble(&self, py: Python<'_>) -> Option<String> {
        py.detach(|| self.space.fork_trouble()).map(|error| error.to_string())
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.space.close());
    }
}

fn duplicated(fd: i32, what: &'static str) -> Result<OwnedFd> {
    duplicate(fd).map_err(|e| Error::System(what, e))
}

fn same_length(lengths: &[usize]) -> PyResult<()> {
    if lengths.windows(2).all(|pair| pair[0] == pair[1]) {
        Ok(())
    } else {
        Err(PyValueError::new_err("columns have different lengths"))
    }
}
