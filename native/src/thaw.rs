//! Freeze and thaw: what a fork does to owned pages, and how that is undone.
//!
//! A shared mapping would let parent and child write into each other's memory. So before a fork owned pages are mapped
//! privately, onto the same segment pages: both processes copy on write from there, and nothing changes underneath
//! them, because a shared view is neither written, punched nor adopted until the last child is gone.

use crate::error::{Error, Result};
use crate::page::{Run, bytes, pieces};
use crate::space::{Inner, include};
use crate::states::State;
use crate::sys::pagemap::{Copies, Swapped};
use crate::view::View;
use crate::window::Window;
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
        if view.table.count(State::Frozen) == 0 {
            return Ok(false);
        }
        let Some(first) = (0..view.table.pages()).find(|page| view.table.state(*page) == State::Frozen) else {
            return Ok(false);
        };
        let (Some(barrier), Some(pagemap)) = (barrier.as_mut(), pagemap.as_ref()) else { return Ok(false) };
        let end = view.table.pages().min(first + *window_pages);
        let count = (first..end).take_while(|page| view.table.state(*page) == State::Frozen).count();
        let run = Run { first, count };
        let memory = view.memory.clone();
        let scan = |swapped| {
            pagemap
                .copies(view.address(first), count, swapped)
                .map_err(|e| Error::System("reading /proc/self/pagemap", e))
        };
        // Inside of the window a page that was swapped out looks like one that was never touched, and to save the
        // latter would fill the segment's holes. So copies are brought in, and kept in, before.
        let range = &memory.range;
        let locked = range.lock(bytes(first), bytes(count)).is_ok();
        if locked {
            scan(Swapped::Included)?
                .runs
                .iter()
                .for_each(|run| range.touch(bytes(first + run.first), bytes(run.count)));
        }
        let thawed = thaw_run(barrier.window(view.address(first), bytes(count))?, view, run, || {
            scan(if locked { Swapped::Excluded } else { Swapped::Included })
        });
        if thawed.is_err() && locked {
            range.unlock(bytes(first), bytes(count));
        }
        thawed?;
        view.table.set(run, State::Owned, 0, 0);
        Ok(true)
    }
}

impl Inner {
    /// No child shares the view any more. Pages that nothing can thaw (tier "off") stay frozen until they are discarded.
    pub fn end_sharing(&mut self, number: u32) {
        let Inner { views, journal, .. } = self;
        if let Some(view) = views.get_mut(&number)
            && std::mem::take(&mut view.shared)
        {
            include(view, journal, number, Run { first: 0, count: view.table.pages() });
        }
    }
}

/// Saves the pages of a run that were written since the fork, and maps the segment again.
fn thaw_run(window: Window<'_>, view: &View, run: Run, copies: impl Fn() -> Result<Copies>) -> Result<()> {
    let memory = &view.memory;
    // Written since the fork: a private copy. The rest is the segment's page itself.
    for copy in copies()?.runs {
        let offset = bytes(run.first + copy.first);
        if let (_, Some(error)) = memory.range.save(offset, bytes(copy.count), memory.segment.as_fd()) {
            // What was saved is no harm: these pages are private copies, which do not look at the segment.
            return Err(Error::System("saving pages to their segment", error));
        }
    }
    let mapped = memory.range.map_shared(bytes(run.first), bytes(run.count), memory.segment.as_fd());
    if let Err(e) = mapped
        && !view.ensure_mapped(run)
    {
        return Err(Error::System("mapping the segment", e));
    }
    drop(window);
    Ok(())
}
