//! The harvest: which pages were written. Merged ones are copies now, and watched ones are to be read again by the server.
//!
//! To look costs this process time, and makes the next write to each page that was protected a slow one. Neither may grow
//! with how much memory there is or how hot it is, so every view has times of its own:
//!
//! ```text
//!   the last look found nothing    2, then 4 times as long as usual until the next
//!   it took long                   long enough that looking takes 0.5 % of a core
//!   it protected pages in vain     long enough that their writers lose 1 % of a core
//! ```

use crate::error::{Error, Result};
use crate::faults;
use crate::page::{Run, bytes, page_size};
use crate::space::Inner;
use crate::space::books::journal::{Event, Journal, Kind};
use crate::space::books::page_table::State;
use crate::space::view::View;
use crate::sys::pagemap::{Pagemap, ZeroPage};
use crate::sys::sched;
use std::time::{Duration, Instant};

/// A look that took a time is not repeated before this many times as long: 0.5 % of a core.
const REST_AFTER_LOOK: u32 = 200;

/// How long a page is left alone that was protected in vain: the fault costs its writer about 1 us, and this makes it 1 %.
const REST_AFTER_FAULT: Duration = Duration::from_micros(100);

/// However hot a view is, it is looked at so often.
const LONGEST_REST: Duration = Duration::from_secs(30);

/// How many times the usual interval doubles while nothing is found.
const DOUBLINGS: u32 = 2;

/// When to look at a view.
#[derive(Default)]
pub struct Agenda {
    due: Option<Instant>,
    quiet: u32,
}

impl Agenda {
    /// Something has happened to the view: look soon.
    pub fn stir(&mut self) {
        self.quiet = 0;
    }

    /// How long until the next look; zero if it is due.
    pub fn pause(&self, now: Instant) -> Duration {
        self.due.map_or(Duration::ZERO, |due| due.saturating_duration_since(now))
    }

    /// A look is over, and took so much of the processor's time.
    fn looked(&mut self, took: Duration, poll: Duration, found: usize, in_vain: usize) {
        self.quiet = if found > 0 { 0 } else { (self.quiet + 1).min(DOUBLINGS) };
        let usual = poll * (1 << self.quiet);
        let wasted = REST_AFTER_FAULT.saturating_mul(u32::try_from(in_vain).unwrap_or(u32::MAX));
        let rest = usual.max(took * REST_AFTER_LOOK).max(wasted);
        self.due = Some(Instant::now() + rest.min(LONGEST_REST.max(usual)));
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
            Some(tracker) => tracker.look(pagemap, journal, number, view, redo)?,
            None => (0, 0),
        };
        view.agenda.looked(sched::thread_time().saturating_sub(began), *poll, copies + written, in_vain);
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
    if view.table.count(State::Merged) + view.table.count(State::Zero) == 0 {
        return Ok(0);
    }
    let copies = faults::check("harvest.copies")
        .and_then(|()| pagemap.copies(view.address(0), view.table.pages(), ZeroPage::IsNone))
        .map_err(|e| Error::System("reading /proc/self/pagemap", e))?;
    let mut found = 0;
    for page in copies.runs.into_iter().flat_map(|run| run.first..run.end()) {
        let copied = match view.table.state(page) {
            State::Merged => true,
            State::Zero => copies.exact || !view.memory.range.is_zero(bytes(page), page_size()),
            _ => false,
        };
        if copied {
            view.table.set_copied(page);
            journal.push(Event::new(Kind::Copied, number, Run { first: page, count: 1 }));
            found += 1;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLL: Duration = Duration::from_millis(100);

    fn rest(agenda: &Agenda, began: Instant) -> Duration {
        agenda.due.unwrap() - began
    }

    #[test]
    fn looks_become_rare_while_nothing_is_found_and_frequent_again() {
        let mut agenda = Agenda::default();
        assert!(agenda.pause(Instant::now()).is_zero());
        for factor in [2, 4, 4] {
            let began = Instant::now();
            agenda.looked(Duration::ZERO, POLL, 0, 0);
            assert!(rest(&agenda, began) >= POLL * factor);
            assert!(agenda.pause(began) > Duration::ZERO);
        }
        let began = Instant::now();
        agenda.looked(Duration::ZERO, POLL, 1, 0);
        assert!(rest(&agenda, began) < POLL * 2);
    }

    #[test]
    fn protection_in_vain_costs_its_writers_one_percent() {
        let mut agenda = Agenda::default();
        let began = Instant::now();
        agenda.looked(Duration::ZERO, POLL, 20_000, 20_000);
        assert!(rest(&agenda, began) >= Duration::from_secs(2), "20 ms of faults");
        agenda.looked(Duration::ZERO, POLL, usize::MAX, usize::MAX);
        assert!(rest(&agenda, began) <= LONGEST_REST + Duration::from_secs(1));
    }
}
