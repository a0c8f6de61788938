//! Discard: giving the memory of unused pages back.

use crate::error::{Error, Result};
use crate::faults;
use crate::page::{Run, bytes, pieces};
use crate::space::Space;
use crate::space::books::journal::Event;
use crate::space::books::view_table::PageState;
use crate::space::inner::Inner;
use crate::space::redo::{Change, Mapped};
use crate::sys::shm;
use crate::wire::EventKind;
use std::os::fd::AsFd;

impl Space {
    /// Gives the memory of unused pages back; they read as zeros from then on.
    pub fn discard(&self, number: u32, run: Run) -> Result<()> {
        self.open()?.discard(number, run)
    }
}

impl Inner {
    /// See `Space::discard`.
    pub fn discard(&mut self, number: u32, run: Run) -> Result<()> {
        let Inner { views, journal, redo, .. } = self;
        let view = views.get_mut(&number).ok_or(Error::NoView(number))?;
        if !run.fits(view.table.pages()) {
            return Err(Error::Range("the range is not inside of its view"));
        }
        if view.shared {
            return Err(Error::Shared);
        }
        let mut elsewhere = Vec::new();
        pieces(
            run,
            |page| view.table.state(page),
            |part, state| {
                if state != PageState::Owned {
                    elsewhere.push(part);
                }
            },
        );
        for part in elsewhere {
            let memory = &view.memory;
            let (first, count) = (bytes(part.first), bytes(part.count));
            let mapped = faults::check("discard.map")
                .and_then(|()| memory.range.map_shared(first, count, memory.segment().as_fd()));
            if let Err(e) = mapped
                && !view.ensure_mapped(part)
            {
                return Err(Error::System("mapping the segment", e));
            }
            redo.change = Some(Change { segment: number, run: part, mapped: Mapped::Discarded });
            faults::hit("discard.mapped");
            redo.follow(view, journal);
        }
        view.traces.forget(journal, number, run);
        pieces(
            run,
            |page| view.table.is_excluded(page),
            |part, is| {
                if is {
                    journal.push(Event::new(EventKind::Included, number, part));
                }
            },
        );
        view.table.forget_wishes(run);
        faults::check("discard.punch")
            .and_then(|()| shm::punch(view.memory.segment().as_fd(), bytes(run.first), bytes(run.count)))
            .map_err(|e| Error::System("punching the segment", e))
    }
}
