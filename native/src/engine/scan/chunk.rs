//! A chunk: up to 64 pages that are read with one call and digested. Which pages these are does not depend on what is
//! decided about the pages before them, so chunks can be read ahead, and by several threads.
//!
//! That is so because a decision changes the state of the page itself and of a page in the unstable tree. Untracked
//! pages are in it only after this pass has read them; tracked pages are chosen by flags that no decision changes.

use crate::engine::digest::Digester;
use crate::engine::ids::TableId;
use crate::engine::tables::Tables;
use crate::engine::tables::segment::{Data, Segment};
use crate::engine::tables::state::{READING, WRITTEN};
use crate::page::{Run, bytes, page_size};

/// Pages read with one call.
pub const CHUNK: usize = 64;
/// Tracked pages so far apart are still read with one call.
const GAP: usize = 4;

/// What comes next in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Pages to read, and the holes that were passed over before them.
    Read { holes: Run, pages: Run },
    /// Holes led to this page, at which to go on.
    Skip { holes: Run, page: usize },
    /// Nothing up to the end; holes from here on.
    End { holes: Run },
}

/// What a pass comes to next in this table from a page on. Changes nothing.
pub fn next(segment: &Segment, page: usize) -> Next {
    if segment.table.tracked { next_tracked(segment, page) } else { next_untracked(segment, page) }
}

/// From the next owned page with data on.
fn next_untracked(segment: &Segment, page: usize) -> Next {
    let (table, end) = (&segment.table, segment.table.pages());
    let owned = table.next_owned(page);
    let nothing = Next::End { holes: Run { first: page, count: end.saturating_sub(page) } };
    let Some(owned) = owned else { return nothing };
    let (first, is_data) = match segment.next_data(owned) {
        Data::At(first) => (first, true),
        Data::NotBefore(first) => (first, false),
    };
    let holes = Run { first: owned, count: first - owned };
    if first == end {
        return nothing;
    }
    if !is_data || !table.is_owned(first) {
        return Next::Skip { holes, page: first };
    }
    let bits = table.owned_among(Run { first, count: CHUNK.min(end - first) });
    Next::Read { holes, pages: Run { first, count: CHUNK - bits.leading_zeros() as usize } }
}

/// From the next page on that this pass is to read, up to a gap. Holes are passed over at once, however many are to be read.
fn next_tracked(segment: &Segment, page: usize) -> Next {
    let (table, end) = (&segment.table, segment.table.pages());
    let nothing = Run { first: page, count: 0 };
    let Some(first) = table.find_flagged(page, end, READING) else { return Next::End { holes: nothing } };
    if let Data::At(page) | Data::NotBefore(page) = segment.next_data(first)
        && page > first
    {
        return Next::Skip { holes: Run { first, count: page - first }, page };
    }
    let (mut last, most) = (first, end.min(first + CHUNK));
    while let Some(more) = table.find_flagged(last, most.min(last + GAP), READING) {
        last = table.next_flagged(more, most, READING).map_or(more + 1, Run::end);
    }
    Next::Read { holes: nothing, pages: Run { first, count: last - first } }
}

/// See the head of this file.
pub struct Chunk {
    pub id: TableId,
    pub next: Next,
    /// Pages read, from the first on: fewer than wanted, or none, where a client truncates its segment.
    pub read: usize,
    /// By page, of those that were wanted.
    pub digests: [u64; CHUNK],
    buffer: Vec<u8>,
    start: usize, // of the first page in the buffer, which begins there on a page boundary: digesting likes that
}

impl Chunk {
    pub fn new() -> Chunk {
        let buffer = vec![0u8; bytes(CHUNK + 1)];
        let start = buffer.as_ptr().align_offset(page_size()).min(page_size());
        let nothing = Next::End { holes: Run { first: 0, count: 0 } };
        Chunk { id: TableId(0), next: nothing, read: 0, digests: [0; CHUNK], buffer, start }
    }

    /// The chunk will be this.
    pub fn plan(&mut self, id: TableId, next: Next) {
        (self.id, self.next, self.read) = (id, next, 0);
    }

    /// Reads what was planned, and digests the pages that will be looked at.
    pub fn fill(&mut self, tables: &Tables, digester: &Digester) {
        let Next::Read { pages, .. } = self.next else { return };
        let segment = tables.segment(self.id);
        let range = self.start..self.start + bytes(pages.count);
        self.read = segment.read(pages.first, &mut self.buffer[range]);
        let table = &segment.table;
        for n in 0..self.read {
            let (page, flags) = (pages.first + n, table.flags(pages.first + n));
            if table.is_owned(page) && (!table.tracked || flags & (READING | WRITTEN) == READING) {
                self.digests[n] = digester.digest(self.page(n));
            }
        }
    }

    /// The bytes of one of its pages, counted from its first.
    pub fn page(&self, n: usize) -> &[u8] {
        let start = self.start + bytes(n);
        &self.buffer[start..start + page_size()]
    }
}
