//! What a settled page equals: zeros, a frame of the stable tree, a page of the unstable tree, in this order.
//!
//! Equal digests count as equal bytes here. The client compares the bytes, with writes held, before a page is switched
//! (M4); a collision costs proposals that it declines.

use crate::engine::ids::{MemberKey, TableId};
use crate::engine::scan::Engine;
use crate::engine::scan::founding::{Founded, Proposal};
use crate::engine::scan::pass::Pass;
use crate::engine::tables::state::{LISTED, READING, State, WRITTEN};
use crate::page::Run;

/// Pages without a frame that a run is kept room for (M2).
const GAP: usize = 8;

impl Engine {
    /// Looks at those pages of a chunk that are to be looked at, with `self.chunks[n]` read and digested.
    pub(super) fn look(&mut self, current: &mut Pass, n: usize, pages: Run) {
        let (id, read) = (self.chunks[n].id, self.chunks[n].read);
        let tracked = self.books.tables.table(id).tracked;
        for at in 0..read {
            if tracked {
                self.look_at_tracked(current, id, pages.first + at, n, at);
            } else {
                self.look_at_untracked(current, id, pages.first + at, n, at);
            }
        }
    }

    fn look_at_untracked(&mut self, current: &mut Pass, id: TableId, page: usize, chunk: usize, at: usize) {
        let segment = self.books.tables.segment(id);
        if !segment.table.is_owned(page) {
            return;
        }
        let digest = self.chunks[chunk].digests[at];
        let is_hole = digest == self.digester.zero && !segment.has_data(page); // a hole reads as zeros
        let table = self.books.tables.table_mut(id);
        if is_hole {
            table.end_streak(page);
            return;
        }
        current.visited += 1;
        if digest != table.digest(page) {
            table.set_digest(page, digest);
            current.volatile += 1;
            current.fresh += u64::from(table.lengthen_streak(page));
            return;
        }
        table.end_streak(page);
        self.match_page(current, id, page, chunk, at);
    }

    fn look_at_tracked(&mut self, current: &mut Pass, id: TableId, page: usize, chunk: usize, at: usize) {
        let table = self.books.tables.table_mut(id);
        if !table.is_owned(page) || table.flags(page) & READING == 0 {
            return;
        }
        table.clear_flag(Run { first: page, count: 1 }, READING);
        if table.flags(page) & WRITTEN != 0 {
            return; // it has just been reported again
        }
        table.end_streak(page);
        if table.flags(page) & LISTED != 0 {
            self.books.unstable.remove(&mut self.books.tables, id, Run { first: page, count: 1 });
        }
        let digest = self.chunks[chunk].digests[at];
        if digest == self.digester.zero && !self.books.tables.segment(id).has_data(page) {
            return;
        }
        current.visited += 1;
        self.books.tables.table_mut(id).set_digest(page, digest);
        self.match_page(current, id, page, chunk, at);
    }

    fn match_page(&mut self, current: &mut Pass, id: TableId, page: usize, chunk: usize, at: usize) {
        let digest = self.chunks[chunk].digests[at];
        if digest == self.digester.zero && self.books.options.use_zero_pages {
            self.propose_if_room(current, id, page, None);
        } else if let Some(frame) = self.books.frames.find(digest, self.books.options.max_page_sharing) {
            self.propose_if_room(current, id, page, Some(frame));
        } else if let Some(twin) = self.books.unstable.find(&self.books.tables, digest) {
            self.found(current, (id, page), twin, digest, at);
        } else {
            self.enter(current, id, page);
        }
    }

    /// It is like no other page, as far as is known.
    fn enter(&mut self, current: &mut Pass, id: TableId, page: usize) {
        self.books.unstable.enter(&mut self.books.tables, id, page);
        current.unshared += u64::from(!self.books.tables.table(id).tracked);
    }

    /// Makes a frame for this page and the one that was seen before it with this digest.
    fn found(&mut self, current: &mut Pass, here: (TableId, usize), twin: (TableId, usize), digest: u64, at: usize) {
        let (key, other) = (self.client_of(here.0), self.client_of(twin.0));
        // Writes to a tracked page would have been reported. Any other may have been written since it was read (M1).
        let segment = self.books.tables.segment(twin.0);
        let stale =
            !segment.table.tracked && segment.digest_now(twin.1, &self.digester, &mut self.spare) != Some(digest);
        if stale {
            self.replace(current, twin, here);
            return;
        }
        if self.books.room(key) < if other == key { 2 } else { 1 } {
            self.postpone(current, here);
            return;
        }
        if self.books.room(other) == 0 {
            // The next of this content need not wait for that client.
            self.replace(current, twin, here);
            self.postpone(current, twin);
            return;
        }
        let near = self.continued(here).or_else(|| self.continued(twin));
        let frame = match self.books.frames.create(digest, near) {
            Ok(frame) => frame,
            Err(error) => {
                self.refusal = Some(error);
                self.leave(current, here);
                return;
            }
        };
        self.unlist(current, twin);
        self.founded.push(Founded { frame, digest, twin, at });
        self.propose(current, twin, Some(frame));
        self.propose(current, here, Some(frame));
    }

    /// No room for a frame: the page stays as it is.
    pub(super) fn leave(&mut self, current: &mut Pass, (id, page): (TableId, usize)) {
        current.unplaced += 1;
        if self.books.tables.table(id).tracked {
            self.books.calendar.schedule(id, Run { first: page, count: 1 }, State::Owned, 1);
        }
    }

    /// A page takes the place of another one.
    fn replace(&mut self, current: &mut Pass, twin: (TableId, usize), here: (TableId, usize)) {
        self.unlist(current, twin);
        self.enter(current, here.0, here.1);
    }

    fn unlist(&mut self, current: &mut Pass, (id, page): (TableId, usize)) {
        self.books.unstable.remove(&mut self.books.tables, id, Run { first: page, count: 1 });
        current.unshared -= u64::from(!self.books.tables.table(id).tracked);
    }

    /// Lists a page again whose frame could not be written.
    pub(super) fn list_again(&mut self, current: &mut Pass, twin: (TableId, usize), digest: u64) {
        if self.books.unstable.find(&self.books.tables, digest).is_none() {
            self.enter(current, twin.0, twin.1);
        } else {
            self.leave(current, twin); // a page that found the frame full has taken the place
        }
    }

    fn propose_if_room(&mut self, current: &mut Pass, id: TableId, page: usize, frame: Option<u32>) {
        if self.books.room(self.client_of(id)) > 0 {
            self.propose(current, (id, page), frame);
        } else {
            self.postpone(current, (id, page));
        }
    }

    /// M1: proposes one page, with a reservation on the frame. It is queued once the chunk's frames are written.
    fn propose(&mut self, current: &mut Pass, (id, page): (TableId, usize), frame: Option<u32>) {
        self.books.tables.table_mut(id).hold(page, frame);
        if let Some(frame) = frame {
            self.books.frames.reserve(frame);
        }
        let key = self.client_of(id);
        self.books.members.get_mut(key).proposed += 1;
        current.proposed += 1;
        self.proposals.push(Proposal { key, id, page, frame });
    }

    /// Its client has too much to do already: the next pass comes back to it.
    fn postpone(&mut self, current: &mut Pass, (id, page): (TableId, usize)) {
        if self.books.tables.table(id).tracked {
            self.books.set_pending(id, page); // and counted at the end of the pass
        } else {
            current.backlog += 1;
        }
    }

    fn client_of(&self, id: TableId) -> MemberKey {
        self.books.tables.segment(id).member
    }

    /// The frame that would continue the run before a page (M2); the reference has it in words.
    fn continued(&self, (id, page): (TableId, usize)) -> Option<u32> {
        let table = self.books.tables.table(id);
        let before = page.saturating_sub(GAP + 1)..page;
        let (gap, frame) =
            before.rev().enumerate().find_map(|(gap, page)| Some((gap as u32, table.run_frame(page)?)))?;
        let filled = frame + 1 >= gap && (frame + 1 - gap..=frame).all(|used| self.books.frames.users(used) > 0);
        Some(if filled { frame + gap + 1 } else { frame + 1 })
    }
}
