//! Freeze and thaw: what a fork does to owned pages, and how that is undone.
//!
//! A shared mapping would let parent and child write into each other's memory. So before a fork owned pages are mapped
//! privately, onto the same segment pages: both processes copy on write from there, and nothing changes underneath
//! them, because a shared view is neither written, punched nor adopted until the last child is gone.

use crate::error::{Error, Result};
use crate::page::{Run, bytes, pieces};
use crate::space::Inner;
use crate::states::State;
use std::os::fd::AsFd;

impl Inner {
    /// Freezes every view. The mapping is replaced in one step, so writers need not be held: what they wrote before is in
    /// the segment, what they write after is copied.
    pub fn freeze(&mut self) -> Result<()> {
        for view in self.views.values_mut() {
            let whole = Run { first: 0, count: view.table.pages() };
            let mut owned = Vec::new();
            pieces(whole, |page| view.table.state(page) == State::Owned, |run, is| owned.extend(is.then_some(run)));
            view.shared = true;
            for run in owned {
                let memory = &view.memory;
                if let Err(e) = memory.range.map_frozen(bytes(run.first), bytes(run.count), memory.segment.as_fd()) {
                    view.ensure_mapped(run);
                    return Err(Error::System("freezing memory before a fork", e));
                }
                view.table.set(run, State::Frozen, 0, 0);
            }
        }
        Ok(())
    }

    /// Thaws what one window holds of a view. Whether there is more to do.
    pub fn thaw_window(&mut self, number: u32) -> Result<bool> {
        let Inner { views, barrier, pagemap, window_pages, .. } = self;
        let view = views.get_mut(&number).ok_or(Error::NoView(number))?;
        let Some(first) = (0..view.table.pages()).find(|page| view.table.state(*page) == State::Frozen) else {
            view.shared = false;
            return Ok(false);
        };
        let (Some(barrier), Some(pagemap)) = (barrier.as_mut(), pagemap.as_ref()) else { return Ok(false) };
        let end = view.table.pages().min(first + *window_pages);
        let count = (first..end).take_while(|page| view.table.state(*page) == State::Frozen).count();
        let run = Run { first, count };
        let memory = view.memory.clone();
        let window = barrier.window(view.address(first), bytes(count))?;
        // Written since the fork: a private copy. The rest is the segment's page itself.
        let copies =
            pagemap.copies(view.address(first), count).map_err(|e| Error::System("reading /proc/self/pagemap", e))?;
        for copy in copies.runs {
            let offset = bytes(first + copy.first);
            if let (_, Some(error)) = memory.range.save(offset, bytes(copy.count), memory.segment.as_fd()) {
                // What was saved is no harm: these pages are private copies, which do not look at the segment.
                return Err(Error::System("saving pages to their segment", error));
            }
        }
        if let Err(e) = memory.range.map_shared(bytes(first), bytes(count), memory.segment.as_fd())
            && !view.ensure_mapped(run)
        {
            return Err(Error::System("mapping the segment", e));
        }
        drop(window);
        view.table.set(run, State::Owned, 0, 0);
        Ok(true)
    }
}
