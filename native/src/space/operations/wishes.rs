//! What the program wishes for its pages: that they are pinned, or not to be merged.

use crate::error::{Error, Result};
use crate::page::Run;
use crate::space::Space;
use crate::space::books::journal::Event;
use crate::wire::EventKind;

impl Space {
    /// Sets whether pages may be merged.
    pub fn exclude(&self, number: u32, run: Run, excluded: bool) -> Result<()> {
        self.with_range(number, run, |view, journal| {
            view.table.exclude(run, excluded);
            let kind = if excluded { EventKind::Excluded } else { EventKind::Included };
            journal.push(Event::new(kind, number, run));
        })
    }

    /// Pins pages once more.
    pub fn pin(&self, number: u32, run: Run) -> Result<()> {
        self.with_range(number, run, |view, _| view.table.pin(run))
    }

    /// Undoes one pin.
    pub fn unpin(&self, number: u32, run: Run) -> Result<()> {
        let found = self.with_range(number, run, |view, journal| {
            let found = view.table.unpin(run);
            if found {
                view.table.set_unwatched(run); // devices write past the page table: nobody has seen what they wrote
                view.agenda.stir();
            }
            if found && view.held_back {
                view.include(journal, number, run);
                view.held_back = view.table.has_pins();
            }
            found
        })?;
        if found { Ok(()) } else { Err(Error::Range("this range is not pinned")) }
    }

    /// How many pages of a run are switched: mapped to a frame or the zero page, or copied from there.
    pub fn switched(&self, number: u32, run: Run) -> Result<usize> {
        self.with_range(number, run, |view, _| {
            (run.first..run.end()).filter(|page| view.table.state(*page).is_switched()).count()
        })
    }
}
