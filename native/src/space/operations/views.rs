//! Views come and go: segments and pools are mapped, and unmapped when nobody looks at them any more.

use crate::arena::Claim;
use crate::arena::extents::Extent;
use crate::arena::memory::Memory;
use crate::error::{Error, Result};
use crate::page::{Run, bytes, page_size, pieces};
use crate::space::Space;
use crate::space::books::journal::Event;
use crate::space::inner::Inner;
use crate::space::pool::Pool;
use crate::space::view::View;
use crate::sys::mmap::ViewRange;
use crate::sys::object::Object;
use crate::sys::shm;
use crate::wire::{DISCARDED, EventKind};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

impl Space {
    /// Maps a segment; its address.
    pub fn add_view(&self, number: u32, segment: OwnedFd, pages: usize) -> Result<usize> {
        self.open()?.add_view(number, Arc::new(Object::keep(segment)), pages)
    }

    /// Unmaps a view that no block lives in; false if one does, or if a forked child may share it.
    pub fn drop_view(&self, number: u32) -> Result<bool> {
        self.open()?.drop_view(number)
    }

    /// The memory behind a range of a view, for a block.
    pub fn claim(&self, number: u32, run: Run) -> Result<Claim> {
        let inner = self.open()?;
        let view = inner.views.get(&number).ok_or(Error::NoView(number))?;
        if !run.fits(view.table.pages()) {
            return Err(Error::Range("the range is not inside of its view"));
        }
        let extent = Extent { segment: number, run };
        Ok(Claim::new(view.memory.clone(), self.keeper(), self.freed.clone(), extent, None))
    }

    /// Makes a pool known.
    pub fn add_pool(&self, number: u32, fd: OwnedFd) -> Result<()> {
        if number == 0 || number > u32::from(u16::MAX) {
            return Err(Error::Range("pools have numbers from 1 to 65535"));
        }
        let mut inner = self.open()?;
        if inner.pools.contains_key(&number) {
            return Err(Error::Taken(number));
        }
        inner.pools.insert(number, Pool::new(fd));
        Ok(())
    }

    /// Whether a range of addresses lies inside of one view.
    pub fn owns(&self, address: usize, bytes: usize) -> bool {
        self.inner.lock().owns(address, bytes)
    }
}

impl Inner {
    /// Whether a range of addresses lies inside of one view.
    pub fn owns(&self, address: usize, bytes: usize) -> bool {
        let within = |memory: &Memory| memory.range.covers(address, bytes);
        self.views.values().any(|view| within(&view.memory))
            || self.inherited.iter().filter_map(|(memory, _)| memory.upgrade()).any(|memory| within(&memory))
    }

    /// Maps a segment; its address.
    pub fn add_view(&mut self, number: u32, segment: Arc<Object>, pages: usize) -> Result<usize> {
        let size = shm::size(segment.as_fd()).map_err(|e| Error::System("size of the segment", e))?;
        if pages == 0 || pages > size / page_size() || pages > u32::MAX as usize {
            return Err(Error::Range("a view has at least one page and no more than its segment"));
        }
        if self.views.contains_key(&number) {
            return Err(Error::Taken(number));
        }
        let range = ViewRange::map_segment(segment.as_fd(), bytes(pages))
            .map_err(|e| Error::System("mapping the segment", e))?;
        let lease = self.lease.clone().ok_or(Error::Closed)?;
        let mut view = View::new(Memory::new(range, segment, lease), pages, self.generations.next());
        if let Some(tracker) = &self.tracker {
            tracker.watch_view(&mut view);
        }
        let address = view.address(0);
        self.views.insert(number, view);
        Ok(address)
    }

    /// Unmaps a view that no block lives in; false if one does, or if a forked child may share it.
    pub fn drop_view(&mut self, number: u32) -> Result<bool> {
        let view = self.views.get(&number).ok_or(Error::NoView(number))?;
        if view.shared || Arc::strong_count(&view.memory) > 1 {
            return Ok(false);
        }
        let view = self.views.remove(&number).expect("looked up above");
        let View { memory, table, .. } = view;
        drop(memory); // unmapped first, released then: I3
        let whole = Run { first: 0, count: table.pages() };
        pieces(
            whole,
            |page| table.state(page).is_switched(),
            |run, switched| {
                if switched {
                    self.journal.push(Event { detail: DISCARDED, ..Event::new(EventKind::Released, number, run) });
                }
            },
        );
        Ok(true)
    }
}
