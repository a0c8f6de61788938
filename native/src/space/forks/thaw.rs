//! Thaw: how freezing is undone, once no child of a fork shares the memory any more.

use crate::error::{Error, Result};
use crate::faults;
use crate::page::{Run, bytes, page_size};
use crate::space::Space;
use crate::space::books::view_table::PageState;
use crate::space::inner::Inner;
use crate::space::redo::{Change, Mapped};
use crate::space::view::View;
use crate::sys::pagemap::{Pagemap, ZeroPage};
use crate::sys::sched;
use crate::sys::shm;
use std::os::fd::AsFd;

/// Most pages in a window that thaws: each costs up to 2 us.
const CLOCK_PAGES: usize = 128;

impl Inner {
    /// Thaws what one window holds of a view. Whether there is more to do.
    pub fn thaw_window(&mut self, number: u32) -> Result<bool> {
        let Inner { views, journal, barrier, pagemap, window_pages, redo, generations, .. } = self;
        let Some(view) = views.get_mut(&number) else { return Ok(false) };
        if generations.any_since(view.since) {
            return Ok(false); // there was another fork since the last window
        }
        let pages = view.table.pages();
        if view.table.count(PageState::Frozen) == 0 {
            return Ok(false);
        }
        let Some(first) = (view.thawed..pages).find(|page| view.table.state(*page) == PageState::Frozen) else {
            return Ok(false);
        };
        let (Some(barrier), Some(pagemap)) = (barrier.as_mut(), pagemap.as_ref()) else { return Ok(false) };
        let end = pages.min(first + (*window_pages).min(CLOCK_PAGES));
        let count = (first..end).take_while(|page| view.table.state(*page) == PageState::Frozen).count();
        let run = Run { first, count };
        let window = barrier.window(view.address(first), bytes(count))?;
        faults::hit("thaw.held");
        thaw_run(pagemap, view, run)?;
        redo.change = Some(Change { segment: number, run, mapped: Mapped::Thawed });
        faults::hit("thaw.mapped");
        redo.follow(view, journal);
        drop(window);
        view.thawed = run.end();
        Ok(true)
    }
}

impl Inner {
    /// Ends the sharing of a view that no child shares any more. Pages that nothing can thaw (tier "off") stay frozen until
    /// they are discarded.
    pub fn end_sharing(&mut self, number: u32) {
        let Inner { views, journal, generations, barrier, flags, .. } = self;
        if let Some(view) = views.get_mut(&number)
            && !generations.any_since(view.since)
            && (view.table.count(PageState::Frozen) == 0 || barrier.is_none())
            && std::mem::take(&mut view.shared)
        {
            view.include(journal, number, Run { first: 0, count: view.table.pages() });
        }
        flags.set_shared(views.values().any(|view| view.shared));
    }
}

impl Space {
    /// Takes memory back that no forked child shares any more. False if some is left: children live, or memory was short.
    pub fn thaw(&self) -> Result<bool> {
        let numbers: Vec<u32> = {
            let mut inner = self.open()?;
            inner.generations.drop_gone();
            inner.views.iter().filter(|(_, view)| view.shared).map(|(number, _)| *number).collect()
        };
        for number in numbers {
            while self.open()?.thaw_window(number)? {
                sched::begin_slice();
            }
            self.open()?.end_sharing(number);
        }
        Ok(!self.flags().is_shared())
    }

    /// Nobody will thaw any more: the children of later forks need no lease.
    pub fn forget_children(&self) {
        let mut inner = self.inner.lock();
        inner.asks_for_children = false;
        inner.generations.forget();
    }

    /// What went wrong at the last fork, if it was not told yet.
    pub fn fork_trouble(&self) -> Option<Error> {
        self.inner.lock().trouble.take()
    }
}

/// Saves the pages of a run that were written since the fork, and maps the segment again. Writes to the run are held.
fn thaw_run(pagemap: &Pagemap, view: &View, run: Run) -> Result<()> {
    let memory = &view.memory;
    let copies = pagemap
        .copies(view.address(run.first), run.count, ZeroPage::IsCopy)
        .map_err(|e| Error::System("reading /proc/self/pagemap", e))?;
    for page in copies.runs.into_iter().flat_map(|copy| copy.first..copy.end()) {
        let offset = bytes(run.first + page);
        // The kernel cannot say which of these were only protected and never touched; but a copy was made from a page of
        // the segment, so over a hole there is none. To save one that is no copy writes a page's bytes over themselves.
        let data =
            shm::is_data(memory.segment().as_fd(), offset).map_err(|e| Error::System("looking for a hole", e))?;
        let save = || match faults::check("thaw.save") {
            Ok(()) => memory.range.save(offset, page_size(), memory.segment().as_fd()).1,
            Err(error) => Some(error),
        };
        if data && let Some(error) = save() {
            // What was saved is no harm: these pages are private copies, which do not look at the segment.
            return Err(Error::System("saving pages to their segment", error));
        }
    }
    let mapped = faults::check("thaw.map")
        .and_then(|()| memory.range.map_shared(bytes(run.first), bytes(run.count), memory.segment().as_fd()));
    if let Err(e) = mapped
        && !view.ensure_mapped(run)
    {
        return Err(Error::System("mapping the segment", e));
    }
    Ok(())
}
