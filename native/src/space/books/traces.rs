//! What is known of the writes to a view, and of what was reported of them.

use crate::page::Run;
use crate::space::books::bits::Bits;
use crate::space::books::journal::{Event, Journal};
use crate::wire::{EventKind, GIVEN_BACK};

/// See the head of this file. Two bits a page.
pub struct Traces {
    /// Found written by the last look.
    pub hot: Bits,
    /// Reported written, or adopted, since it was given back: the server may know a digest of it, or have it wait.
    pub told: Bits,
}

impl Traces {
    /// Nothing, of so many pages.
    pub fn new(pages: usize) -> Traces {
        Traces { hot: Bits::new(pages), told: Bits::new(pages) }
    }

    /// Owned pages were given back: what was reported of them is not so any more.
    pub fn forget(&mut self, journal: &mut Journal, number: u32, run: Run) {
        if self.told.remove(run) > 0 {
            journal.push(Event { detail: GIVEN_BACK, ..Event::new(EventKind::Written, number, run) });
        }
        self.hot.remove(run);
    }
}
