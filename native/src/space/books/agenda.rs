//! When to look for written pages.
//!
//! To look costs this process time, and makes the next write to each page that was protected a slow one. Neither may grow
//! with how much memory there is or how hot it is, so every view has times of its own:
//!
//! ```text
//!   the last look found nothing    2, then 4 times as long as usual until the next
//!   it took long                   long enough that looking takes 0.5 % of a core
//!   it protected pages in vain     long enough that their writers lose 1 % of a core
//! ```

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
    pub fn note_look(&mut self, took: Duration, poll: Duration, found: usize, in_vain: usize) {
        self.quiet = if found > 0 { 0 } else { (self.quiet + 1).min(DOUBLINGS) };
        let usual = poll * (1 << self.quiet);
        let wasted = REST_AFTER_FAULT.saturating_mul(u32::try_from(in_vain).unwrap_or(u32::MAX));
        let rest = usual.max(took * REST_AFTER_LOOK).max(wasted);
        self.due = Some(Instant::now() + rest.min(LONGEST_REST.max(usual)));
    }
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
            agenda.note_look(Duration::ZERO, POLL, 0, 0);
            assert!(rest(&agenda, began) >= POLL * factor);
            assert!(agenda.pause(began) > Duration::ZERO);
        }
        let began = Instant::now();
        agenda.note_look(Duration::ZERO, POLL, 1, 0);
        assert!(rest(&agenda, began) < POLL * 2);
    }

    #[test]
    fn protection_in_vain_costs_its_writers_one_percent() {
        let mut agenda = Agenda::default();
        let began = Instant::now();
        agenda.note_look(Duration::ZERO, POLL, 20_000, 20_000);
        assert!(rest(&agenda, began) >= Duration::from_secs(2), "20 ms of faults");
        agenda.note_look(Duration::ZERO, POLL, usize::MAX, usize::MAX);
        assert!(rest(&agenda, began) <= LONGEST_REST + Duration::from_secs(1));
    }
}
