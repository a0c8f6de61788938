//! What a quiet page equals: zeros, a frame of the stable tree, a page of the unstable tree, in this order.
//!
//! Equal digests count as equal bytes here. The client compares the bytes, with writes held, before a page is switched
//! (M4); a collision costs proposals that it declines.

use crate::engine::books::Books;
use crate::engine::ids::TableId;
use crate::engine::scan::Scan;
use crate::engine::scan::pass::{Founded, Pass, Proposal};
use crate::engine::tables::state::{LISTED, READING, State, WRITTEN};
use crate::page::Run;

/// Pages without a frame that a run is kept room for (M2).
const GAP: usize = 8;

impl Scan {
    /// Looks at those pages of a chunk that are to be looked at, with `self.chunks[n]` read and digested.
    pub(super) fn look_at_chunk(&mut self, books: &mut Books, current: &mut Pass, n: usize, pages: Run) {
        let (id, read) = (self.chunks[n].id, self.chunks[n].read);
        let tracked = books.tables.table(id).tracked;
        for at in 0..read {
            if tracked {
                self.look_at_tracked(books, current, id, pages.first + at, n, at);
            } else {
                self.look_at_untracked(books, current, id, pages.first + at, n, at);
            }
        }
    }

    fn look_at_untracked(
        &mut self,
        books: &mut Books,
        current: &mut Pass,
        id: TableId,
        page: usize,
        chunk: usize,
        at: usize,
    ) {
        let segment = books.tables.segment(id);
        if !segment.table.is_owned(page) {
            return;
        }
        let digest = self.chunks[chunk].digests[at];
        let is_hole = digest == self.digester.zero && !segment.has_data(page); // a hole reads as zeros
        let table = books.tables.table_mut(id);
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
        self.match_page(books, current, id, page, chunk, at);
    }

    fn look_at_tracked(
        &mut self,
        books: &mut Books,
        current: &mut Pass,
        id: TableId,
        page: usize,
        chunk: usize,
        at: usize,
    ) {
        let table = books.tables.table_mut(id);
        if !table.is_owned(page) || table.flags(page) & READING == 0 {
            return;
        }
        table.clear_flag(Run { first: page, count: 1 }, READING);
        if table.flags(page) & WRITTEN != 0 {
            return; // it has just been reported again
        }
        table.end_streak(page);
        if table.flags(page) & LISTED != 0 {
            books.unstable.remove(&mut books.tables, id, Run { first: page, count: 1 });
        }
        let digest = self.chunks[chunk].digests[at];
        if digest == self.digester.zero && !books.tables.segment(id).has_data(page) {
            return;
        }
        current.visited += 1;
        books.tables.table_mut(id).set_digest(page, digest);
        self.match_page(books, current, id, page, chunk, at);
    }

    fn match_page(&mut self, books: &mut Books, current: &mut Pass, id: TableId, page: usize, chunk: usize, at: usize) {
        let digest = self.chunks[chunk].digests[at];
        if digest == self.digester.zero && books.options.use_zero_pages {
            self.propose_if_room(books, current, id, page, None);
        } else if let Some(frame) = books.frames.find(digest, books.options.max_page_sharing) {
            self.propose_if_room(books, current, id, page, Some(frame));
        } else if let Some(twin) = books.unstable.find(&books.tables, digest) {
            self.found(books, current, (id, page), twin, digest, at);
        } else {
            enter(books, current, id, page);
        }
    }

    /// Makes a frame for this page and the one that was seen before it with this digest.
    fn found(
        &mut self,
        books: &mut Books,
        current: &mut Pass,
        here: (TableId, usize),
        twin: (TableId, usize),
        digest: u64,
        at: usize,
    ) {
        let (key, other) = (books.member_of(here.0), books.member_of(twin.0));
        // Writes to a tracked page would have been reported. Any other may have been written since it was read (M1).
        let segment = books.tables.segment(twin.0);
        let stale =
            !segment.table.tracked && segment.digest_now(twin.1, &self.digester, &mut self.spare) != Some(digest);
        if stale {
            replace(books, current, twin, here);
            return;
        }
        if books.room(key) < if other == key { 2 } else { 1 } {
            postpone(books, current, here);
            return;
        }
        if books.room(other) == 0 {
            // The next of this content need not wait for that client.
            replace(books, current, twin, here);
            postpone(books, current, twin);
            return;
        }
        let near = continued(books, here).or_else(|| continued(books, twin));
        let frame = match books.frames.create(digest, near) {
            Ok(frame) => frame,
            Err(error) => {
                self.refusal = Some(error);
                leave(books, current, here);
                return;
            }
        };
        unlist(books, current, twin);
        self.founded.push(Founded { frame, digest, twin, at });
        self.propose(books, current, twin, Some(frame));
        self.propose(books, current, here, Some(frame));
    }

    fn propose_if_room(&mut self, books: &mut Books, current: &mut Pass, id: TableId, page: usize, frame: Option<u32>) {
        if books.room(books.member_of(id)) > 0 {
            self.propose(books, current, (id, page), frame);
        } else {
            postpone(books, current, (id, page));
        }
    }

    /// M1: proposes one page, with a reservation on the frame. It is queued once the chunk's frames are written.
    fn propose(&mut self, books: &mut Books, current: &mut Pass, (id, page): (TableId, usize), frame: Option<u32>) {
        books.tables.table_mut(id).hold(page, frame);
        if let Some(frame) = frame {
            books.frames.reserve(frame);
        }
        let key = books.member_of(id);
        books.members.get_mut(key).proposed += 1;
        current.proposed += 1;
        self.proposals.push(Proposal { key, id, page, frame });
    }
}

/// It is like no other page, as far as is known.
fn enter(books: &mut Books, current: &mut Pass, id: TableId, page: usize) {
    books.unstable.enter(&mut books.tables, id, page);
    current.unshared += u64::from(!books.tables.table(id).tracked);
}

/// No room for a frame: the page stays as it is.
pub fn leave(books: &mut Books, current: &mut Pass, (id, page): (TableId, usize)) {
    current.unplaced += 1;
    if books.tables.table(id).tracked {
        books.calendar.schedule(id, Run { first: page, count: 1 }, State::Owned, 1);
    }
}

/// A page takes the place of another one.
fn replace(books: &mut Books, current: &mut Pass, twin: (TableId, usize), here: (TableId, usize)) {
    unlist(books, current, twin);
    enter(books, current, here.0, here.1);
}

fn unlist(books: &mut Books, current: &mut Pass, (id, page): (TableId, usize)) {
    books.unstable.remove(&mut books.tables, id, Run { first: page, count: 1 });
    current.unshared -= u64::from(!books.tables.table(id).tracked);
}

/// Lists a page again whose frame could not be written.
pub fn list_again(books: &mut Books, current: &mut Pass, twin: (TableId, usize), digest: u64) {
    if books.unstable.find(&books.tables, digest).is_none() {
        enter(books, current, twin.0, twin.1);
    } else {
        leave(books, current, twin); // a page that found the frame full has taken the place
    }
}

/// Its client has too much to do already: the next pass comes back to it.
fn postpone(books: &mut Books, current: &mut Pass, (id, page): (TableId, usize)) {
    if books.tables.table(id).tracked {
        books.set_pending(id, page); // and counted at the end of the pass
    } else {
        current.backlog += 1;
    }
}

/// The frame that would continue the run before a page (M2); the reference has it in words.
fn continued(books: &Books, (id, page): (TableId, usize)) -> Option<u32> {
    let table = books.tables.table(id);
    let before = page.saturating_sub(GAP + 1)..page;
    let (gap, frame) = before.rev().enumerate().find_map(|(gap, page)| Some((gap as u32, table.run_frame(page)?)))?;
    let filled = frame + 1 >= gap && (frame + 1 - gap..=frame).all(|used| books.frames.users(used) > 0);
    Some(if filled { frame + gap + 1 } else { frame + 1 })
}
