//! Coming back to a server that was started anew: its books of this client are what the journal says from here on.

use crate::error::Result;
use crate::page::{Run, pieces};
use crate::space::Space;
use crate::space::books::journal::{Event, Journal};
use crate::space::books::view_table::PageState;
use crate::space::inner::Inner;
use crate::space::view::View;
use crate::wire::{EventKind, MAY_BE_WRITTEN};

impl Space {
    /// Writes down how everything is, for a server that knows nothing of it; what was to be reported is forgotten.
    pub fn resume(&self) -> Result<()> {
        self.open()?.resume();
        Ok(())
    }

    /// Forgets a pool that no page maps a frame of; false if one does.
    pub fn drop_pool(&self, number: u32) -> Result<bool> {
        Ok(self.open()?.drop_pool(number))
    }
}

impl Inner {
    /// Empties the journal, and writes down how all views are.
    pub fn resume(&mut self) {
        self.journal = Journal::default();
        for (number, view) in &mut self.views {
            write_down(&mut self.journal, *number, view);
            view.agenda.stir();
        }
    }

    /// Forgets a pool. False if a page maps one of its frames.
    pub fn drop_pool(&mut self, number: u32) -> bool {
        let unused = self.views.values().all(|view| {
            let table = &view.table;
            (0..table.pages()).all(|page| !table.state(page).has_frame() || table.frame(page).0 != number)
        });
        if unused {
            self.pools.remove(&number);
        }
        unused
    }
}

pub fn write_down(journal: &mut Journal, number: u32, view: &View) {
    let table = &view.table;
    let whole = Run { first: 0, count: table.pages() };
    let note = |journal: &mut Journal, kind: EventKind, detail: u32, which: &dyn Fn(usize) -> bool| {
        pieces(whole, which, |run, is| {
            if is {
                journal.push(Event { detail, ..Event::new(kind, number, run) });
            }
        });
    };
    // Not watched, or not for a while, as far as a new server is concerned. What nobody was told of is found by a look.
    let doubtful = |page: usize| table.watches() && table.state(page) == PageState::Owned && view.traces.told.has(page);
    note(journal, EventKind::Written, MAY_BE_WRITTEN, &doubtful);
    for page in (0..table.pages()).filter(|page| table.state(*page).is_switched()) {
        let (pool, frame) = if table.state(page).has_frame() { table.frame(page) } else { (0, 0) };
        journal.push(Event { pool, frame, ..Event::new(EventKind::Resumed, number, Run { first: page, count: 1 }) });
    }
    let copied = |page: usize| matches!(table.state(page), PageState::Copied | PageState::CopiedZero);
    note(journal, EventKind::Copied, 0, &copied);
    note(journal, EventKind::Excluded, 0, &|page| table.is_excluded(page));
}
