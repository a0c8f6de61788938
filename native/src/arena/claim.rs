//! Memory that was handed out. It goes back when this is dropped, by whatever thread, at whatever moment.

use super::extents::Extent;
use crate::arena::freed::Freed;
use crate::arena::memory::Memory;
use crate::faults;
use crate::page::{Run, bytes, page_size};
use crate::sys::object::Object;
use crate::sys::shm;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

/// Reserved at once: tmpfs begins a reservation again from its start when a signal comes.
const AT_ONCE: usize = 4 << 20;

/// What a block holds on to. Its drop puts the extent into the freed list; it takes no lock but that list's.
pub struct Claim {
    memory: Arc<Memory>,
    _keeper: Arc<dyn Send + Sync>,
    freed: Arc<Freed>,
    extent: Extent,
    // And the segment: to ask the memory for it takes a lock, which a fork finds free under the lock of the space only.
    unreserved: Option<(Arc<Object>, Run)>,
}

impl Claim {
    pub(crate) fn new(
        memory: Arc<Memory>,
        keeper: Arc<dyn Send + Sync>,
        freed: Arc<Freed>,
        extent: Extent,
        unreserved: Option<(Arc<Object>, Run)>,
    ) -> Claim {
        Claim { memory, _keeper: keeper, freed, extent, unreserved }
    }

    /// Which pages of which segment.
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// Their address.
    pub fn address(&self) -> usize {
        self.memory.range.at(bytes(self.extent.run.first))
    }

    /// Reserves a part of what is to be reserved; whether that was all. `Interrupted`: a signal came, try again.
    pub fn reserve(&mut self) -> io::Result<bool> {
        let Some((segment, Run { first, count })) = &mut self.unreserved else { return Ok(true) };
        let part = (*count).min(AT_ONCE / page_size());
        faults::check("arena.reserve")?;
        shm::reserve(segment.as_fd(), bytes(*first), bytes(part))?;
        (*first, *count) = (*first + part, *count - part);
        self.unreserved.take_if(|(_, rest)| rest.count == 0);
        Ok(self.unreserved.is_none())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.freed.push(self.extent.segment, self.extent.run);
    }
}
