//! The tracker: which owned pages the program has written since the last look.
//!
//! A userfaultfd of its own, in asynchronous mode: the kernel takes protection off by itself at the first write, and the
//! look (PAGEMAP_SCAN) finds what has none and protects it again. One mapping takes one userfaultfd, so a window lets its
//! span go from here first; what stays owned is watched again at the next look, and counts as written by then.
//!
//! ```text
//!   watched    -- window, or a new mapping -->  not watched
//!      ^                                             |
//!      '-- the next look: registered, protected, reported as "may have been written" --'
//! ```
//!
//! A page without an entry in the page table was not written since the last look: to write it makes one. (Reclaim can take
//! the entry of a written page away before it was seen, where there is swap. Then the server keeps an old digest of it, and
//! that page is not found or is declined, until it is written again.)

use crate::error::{Error, Result};
use crate::faults;
use crate::page::{Run, bytes, pieces};
use crate::space::books::journal::{Event, Journal};
use crate::space::books::view_table::PageState;
use crate::space::view::View;
use crate::sys::pagemap::Pagemap;
use crate::sys::uffd::{FEATURE_WP, FEATURE_WP_ASYNC, FEATURE_WP_SHMEM, FEATURE_WP_UNPOPULATED, Scope, Uffd};
use crate::wire::{EventKind, MAY_BE_WRITTEN, WAS_WRITTEN};

/// The tracker's half of the kernel's state.
pub struct Tracker {
    uffd: Uffd,
}

impl Tracker {
    /// Opens it. After a fork the child must not use it.
    pub fn open(scope: Scope) -> Result<Tracker> {
        // WP_UNPOPULATED: the kernel does not take asynchronous protection of shared memory without it.
        let wanted = FEATURE_WP | FEATURE_WP_SHMEM | FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED;
        let (uffd, _) = Uffd::open(scope, wanted).map_err(|e| Error::System("userfaultfd", e))?;
        if [FEATURE_WP_SHMEM, FEATURE_WP_ASYNC, FEATURE_WP_UNPOPULATED].iter().all(|feature| uffd.has(*feature)) {
            Ok(Tracker { uffd })
        } else {
            let absent = std::io::Error::from_raw_os_error(libc::ENOSYS);
            Err(Error::System("this kernel cannot track writes (Linux 6.7 can)", absent))
        }
    }

    /// Watches a view from its beginning on.
    pub fn watch_view(&self, view: &mut View) {
        let whole = Run { first: 0, count: view.table.pages() };
        view.table.begin_to_watch();
        let registered =
            faults::check("tracker.watch").and_then(|()| self.uffd.register(view.address(0), bytes(whole.count)));
        if registered.is_err() {
            view.table.set_unwatched(whole); // the next look tries again
        }
    }

    /// Lets a span go, for a window. Should the kernel refuse, the window will not open.
    pub fn let_span_go(&self, view: &mut View, span: Run) -> std::io::Result<()> {
        view.table.set_unwatched(span); // first: what is not watched must never count as watched
        let freed = self.uffd.unregister(view.address(span.first), bytes(span.count));
        faults::hit("tracker.let_go");
        freed
    }

    /// Registers again what stayed owned in a window's span, so that it is one mapping with its neighbours: the budget counts
    /// on that. What was written meanwhile is not known, so the next look reports it all the same.
    pub fn register_again(&self, view: &View, span: Run) {
        faults::hit("tracker.take_back");
        pieces(
            span,
            |page| view.table.state(page) == PageState::Owned,
            |run, is| {
                if is {
                    let _ = self.uffd.register(view.address(run.first), bytes(run.count));
                }
            },
        );
    }

    /// Looks, and writes down what it finds. How many pages that were watched were written, and how many of those had been
    /// written before the last look too: protecting them was in vain, and cost their writers a fault each.
    ///
    /// `looking` names the view while the kernel may have protected pages of which we do not know yet.
    pub fn find_written(
        &self,
        pagemap: &Pagemap,
        journal: &mut Journal,
        number: u32,
        view: &mut View,
        looking: &mut Option<u32>,
    ) -> Result<(usize, usize)> {
        // They are reported whether they can be watched again or not, and found below as well, for they had no protection.
        let doubtful = if view.table.unwatched() > 0 { self.watch_again(view) } else { Vec::new() };
        for run in &doubtful {
            view.traces.told.insert(*run);
            journal.push(Event { detail: MAY_BE_WRITTEN, ..Event::new(EventKind::Written, number, *run) });
        }
        *looking = Some(number);
        let written = faults::check("harvest.look").and_then(|()| pagemap.written(view.address(0), view.table.pages()));
        faults::hit("harvest.looked");
        *looking = None;
        let found = written.map_err(|e| {
            // Some may have been found, and are protected again: the next look takes all for written.
            view.table.set_unwatched(Run { first: 0, count: view.table.pages() });
            Error::System("looking for written pages", e)
        })?;
        let found = without(found, &doubtful);
        let in_vain = found.iter().map(|run| view.traces.hot.count(*run)).sum();
        view.traces.hot.clear();
        for run in &found {
            view.traces.hot.insert(*run);
            view.traces.told.insert(*run);
            journal.push(Event { detail: WAS_WRITTEN, ..Event::new(EventKind::Written, number, *run) });
        }
        Ok((found.iter().map(|run| run.count).sum(), in_vain))
    }

    /// Watches what is not watched. What could not be (out of mappings) is tried again, and reported, at the next look.
    fn watch_again(&self, view: &mut View) -> Vec<Run> {
        let whole = Run { first: 0, count: view.table.pages() };
        let mut lost = Vec::new();
        pieces(whole, |page| view.table.is_unwatched(page), |run, is| lost.extend(is.then_some(run)));
        for run in &lost {
            let (address, length) = (view.address(run.first), bytes(run.count));
            if faults::check("tracker.watch").and_then(|()| self.uffd.register(address, length)).is_ok() {
                view.table.set_watched(*run);
            }
        }
        lost
    }
}

/// Runs without what lies in others; both are in order.
fn without(runs: Vec<Run>, others: &[Run]) -> Vec<Run> {
    if others.is_empty() {
        return runs;
    }
    let mut left = Vec::with_capacity(runs.len());
    let mut others = others.iter().peekable();
    for run in runs {
        let mut first = run.first;
        while let Some(other) = others.next_if(|other| other.end() <= run.end()) {
            if other.first > first {
                left.push(Run { first, count: other.first - first });
            }
            first = first.max(other.end());
        }
        let end = others.peek().map_or(run.end(), |other| other.first.clamp(first, run.end()));
        if end > first {
            left.push(Run { first, count: end - first });
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn runs(pages: &[bool]) -> Vec<Run> {
        let mut found = Vec::new();
        pieces(Run { first: 0, count: pages.len() }, |page| pages[page], |run, is| found.extend(is.then_some(run)));
        found
    }

    proptest! {
        #[test]
        fn what_is_left_without_others(pages in prop::collection::vec(any::<(bool, bool)>(), 1..60)) {
            let (of, others): (Vec<bool>, Vec<bool>) = pages.into_iter().unzip();
            let both: Vec<bool> = of.iter().zip(&others).map(|(of, other)| *of && !*other).collect();
            let mut left = vec![false; of.len()];
            for run in without(runs(&of), &runs(&others)) {
                left[run.first..run.end()].fill(true);
            }
            prop_assert_eq!(left, both);
        }
    }
}
