//! The redo log: what the thread that has the lock is in the middle of.
//!
//! Mappings are changed by the kernel, books by us, and between the two a thread may panic or be killed. So a change is
//! noted here once the kernel has made it, and the books follow from the note. The thread that finds a note which its writer left
//! behind does the same: the books always come to what is mapped, and every proposal to its answer.
//!
//! ```text
//!   mmap --> noted --> booked: page table, journal, what is to be punched
//!              '------> the thread is gone: `recover` books it
//! ```

use crate::page::{Run, pieces};
use crate::space::books::journal::{Event, Journal};
use crate::space::books::proposal::Proposal;
use crate::space::books::view_table::PageState;
use crate::space::view::View;
use crate::wire::{DISCARDED, DeclineReason, EventKind};
use std::collections::VecDeque;

/// What pages map since a moment ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// Frames, or the zero page: what the first proposal that was taken names for them.
    Frames,
    /// Their segment: they were adopted.
    Adopted,
    /// Their segment: they were given back.
    Discarded,
    /// Their segment: they were thawed.
    Thawed,
    /// Their segment, privately.
    Frozen,
}

/// A change of mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Of which view.
    pub segment: u32,
    /// Of which pages.
    pub run: Run,
    /// What they map now.
    pub mapped: Mapped,
}

/// The log. Empty whenever the lock is free, but for proposals that wait for their window.
#[derive(Default)]
pub struct Redo {
    /// The kernel has made this change, and the books do not show it.
    pub change: Option<Change>,
    /// Proposals that wait for their turn.
    pub queue: VecDeque<Proposal>,
    /// Proposals that are carried out now, and are not answered yet.
    pub taken: VecDeque<Proposal>,
    /// Segment pages that were merged, and are to be given back (M7).
    pub punch: Vec<(u32, Run)>,
    /// A view to whose segment bytes are saved that its pages do not map yet.
    pub saving: Option<u32>,
    /// A view whose pages the kernel may have protected again without our knowing which it has found written.
    pub looking: Option<u32>,
}

impl Redo {
    /// Books the change that was noted, if there is one.
    pub fn follow(&mut self, view: &mut View, journal: &mut Journal) {
        let Some(Change { segment, run, mapped }) = self.change.take() else { return };
        let table = &mut view.table;
        match mapped {
            Mapped::Frames => {
                let proposal = self.taken[0];
                let state = if proposal.pool == 0 { PageState::Zero } else { PageState::Merged };
                table.set(run, state, proposal.pool, proposal.frame);
                journal.push(proposal.event(EventKind::Merged, run, 0));
                match self.punch.last_mut() {
                    Some((of, last)) if *of == segment && last.end() == run.first => last.count += run.count,
                    _ => self.punch.push((segment, run)),
                }
                self.note_answered(run.count);
            }
            Mapped::Adopted => {
                table.set(run, PageState::Owned, 0, 0);
                journal.push(Event::new(EventKind::Released, segment, run));
                view.traces.told.insert(run);
            }
            Mapped::Discarded => {
                let mut released = Vec::new();
                pieces(run, |page| table.state(page).is_switched(), |part, is| released.extend(is.then_some(part)));
                table.set(run, PageState::Owned, 0, 0);
                for part in released {
                    journal.push(Event { detail: DISCARDED, ..Event::new(EventKind::Released, segment, part) });
                }
            }
            Mapped::Thawed => table.set(run, PageState::Owned, 0, 0),
            Mapped::Frozen => table.set(run, PageState::Frozen, 0, 0),
        }
    }

    /// Answers the first pages of the first proposal that was taken: they are not merged.
    pub fn decline(&mut self, journal: &mut Journal, count: usize, reason: DeclineReason) {
        let proposal = self.taken[0];
        let run = Run { first: proposal.first as usize, count };
        journal.push(proposal.event(EventKind::Declined, run, reason as u32));
        self.note_answered(count);
    }

    fn note_answered(&mut self, count: usize) {
        if count == self.taken[0].count as usize {
            self.taken.pop_front();
        } else {
            self.taken[0].split(count);
        }
    }
}
