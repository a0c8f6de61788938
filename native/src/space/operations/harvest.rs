//! The harvest: which pages were written. Merged ones are copies now, and watched ones are to be read again by the server.
//! How often views are looked at, each view's agenda says.

use crate::error::{Error, Result};
use crate::faults;
use crate::page::{Run, bytes, page_size};
use crate::space::Space;
use crate::space::books::journal::{Event, Journal};
use crate::space::books::view_table::PageState;
use crate::space::inner::Inner;
use crate::space::view::View;
use crate::sys::pagemap::{Pagemap, ZeroPage};
use crate::sys::sched;
use crate::wire::EventKind;
use std::time::{Duration, Instant};

impl Space {
    /// Finds pages that were written, in views that are due for it or in all. How many there were.
    pub fn harvest(&self, all: bool, tracked: bool) -> Result<usize> {
        let numbers: Vec<u32> = self.open()?.views.keys().copied().collect();
        let mut found = 0;
        for number in numbers {
            found += self.open()?.harvest(number, all, tracked)?;
        }
        Ok(found)
    }

    /// Watches for writes no longer.
    pub fn untrack(&self) {
        self.inner.lock().tracker = None;
    }
}

impl Inner {
    /// Looks at a view, if it is due or if all are wanted. How many pages were found written.
    pub fn harvest(&mut self, number: u32, all: bool, tracked: bool) -> Result<usize> {
        let Inner { views, journal, pagemap, tracker, poll, redo, .. } = self;
        let (Some(pagemap), Some(view)) = (pagemap, views.get_mut(&number)) else { return Ok(0) };
        if view.shared || !(all || view.agenda.pause(Instant::now()).is_zero()) {
            return Ok(0);
        }
        let began = sched::thread_time();
        let copies = find_copies(pagemap, journal, number, view)?;
        if !tracked {
            return Ok(copies);
        }
        let (written, in_vain) = match tracker {
            Some(tracker) => tracker.find_written(pagemap, journal, number, view, &mut redo.looking)?,
            None => (0, 0),
        };
        view.agenda.note_look(sched::thread_time().saturating_sub(began), *poll, copies + written, in_vain);
        Ok(copies + written)
    }

    /// How long until a view is due.
    pub fn pause(&self) -> Duration {
        if self.pagemap.is_none() {
            return Duration::MAX; // there is nothing to look with
        }
        let now = Instant::now();
        let views = self.views.values().filter(|view| !view.shared);
        views.map(|view| view.agenda.pause(now)).min().unwrap_or(Duration::MAX)
    }
}

fn find_copies(pagemap: &Pagemap, journal: &mut Journal, number: u32, view: &mut View) -> Result<usize> {
    if view.table.count(PageState::Merged) + view.table.count(PageState::Zero) == 0 {
        return Ok(0);
    }
    let copies = faults::check("harvest.copies")
        .and_then(|()| pagemap.copies(view.address(0), view.table.pages(), ZeroPage::IsNone))
        .map_err(|e| Error::System("reading /proc/self/pagemap", e))?;
    let mut found = 0;
    for page in copies.runs.into_iter().flat_map(|run| run.first..run.end()) {
        let copied = match view.table.state(page) {
            PageState::Merged => true,
            PageState::Zero => copies.exact || !view.memory.range.is_zero(bytes(page), page_size()),
            _ => false,
        };
        if copied {
            view.table.set_copied(page);
            journal.push(Event::new(EventKind::Copied, number, Run { first: page, count: 1 }));
            found += 1;
        }
    }
    Ok(found)
}
