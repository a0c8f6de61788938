//! Frames are founded while a chunk is looked at, and written at its end with as few calls as there are runs of them:
//! 1.3 us a page in long writes against 2.0 us one by one. Their pages are still in the chunk's buffer then.
//!
//! Nobody hears of a frame before it was written: what the chunk proposes is queued after that. Where the pool has no
//! room for the bytes, what was decided for the frame is undone, as if it could not have been made.

use crate::engine::books::Books;
use crate::engine::scan::Scan;
use crate::engine::scan::matching::{leave, list_again};
use crate::engine::scan::pass::{Pass, Proposal};
use crate::engine::tables::state::State;
use crate::faults;

impl Scan {
    /// The chunk was looked at: writes its frames, and queues its proposals.
    pub(super) fn conclude(&mut self, books: &mut Books, current: &mut Pass, chunk: usize) {
        let unwritten = self.write_founded(books, chunk);
        if !self.founded.is_empty() {
            faults::hit("engine.founded");
        }
        if let Some(written) = unwritten {
            self.undo(books, current, written);
        }
        for Proposal { key, id, page, frame } in self.proposals.drain(..) {
            books.members.get_mut(key).merges.add_page(id, page, frame);
        }
        self.founded.clear();
    }

    /// Returns how many were written, from the first on, if not all could be.
    fn write_founded(&mut self, books: &mut Books, chunk: usize) -> Option<usize> {
        let mut first = 0;
        while first < self.founded.len() {
            let follows = |n: usize| self.founded[first].frame + n as u32;
            let run = self.founded[first..].iter().enumerate().take_while(|(n, made)| made.frame == follows(*n));
            let pages: Vec<&[u8]> = run.map(|(_, made)| self.chunks[chunk].page(made.at)).collect();
            let (written, error) = books.frames.store.write(self.founded[first].frame, &pages);
            first += written;
            if error.is_some() {
                self.refusal = error;
                return Some(first);
            }
        }
        None
    }

    /// Takes back what was decided for the frames that were not written.
    fn undo(&mut self, books: &mut Books, current: &mut Pass, written: usize) {
        let lost = self.founded.split_off(written);
        let is_lost = |frame: Option<u32>| lost.iter().any(|made| Some(made.frame) == frame);
        let (undone, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.proposals).into_iter().partition(|proposal| is_lost(proposal.frame));
        self.proposals = kept;
        for proposal in &undone {
            let Some(frame) = proposal.frame else { continue };
            let table = books.tables.table_mut(proposal.id);
            // Not as `own` does: no tracked page is to be read again for it.
            table.let_go(proposal.page, books.frames.digest(frame));
            table.set_state(proposal.page, State::Owned);
            books.frames.cancel(frame);
            books.members.get_mut(proposal.key).proposed -= 1;
            current.proposed -= 1;
        }
        for made in &lost {
            list_again(books, current, made.twin, made.digest);
        }
        for proposal in &undone {
            let here = (proposal.id, proposal.page);
            if !lost.iter().any(|made| made.twin == here) {
                leave(books, current, here);
            }
        }
    }
}
