//! What there is to tell of an engine in numbers.

use crate::engine::engine::Engine;
use crate::engine::ids::TableId;
use crate::engine::report::Counters;
use crate::engine::tables::state::{PENDING, READING, REFUSED, State};

impl Engine {
    /// About how many pages are still to be read: in the pass under way, or else in one that began now.
    pub fn remaining(&self) -> usize {
        let count = |id: TableId, flag: u8| {
            self.books.tables.get(id).map_or(0, |segment| match segment.table.tracked {
                true => segment.table.count_flag(flag),
                false => segment.table.count(State::Owned),
            })
        };
        match self.scan.pass {
            Some(_) => {
                let ahead = self.scan.ahead.tables.iter().filter(|id| self.books.can_be_scanned(**id));
                ahead.map(|id| count(*id, READING)).sum()
            }
            None => self.books.scannable().iter().map(|id| count(*id, PENDING)).sum(),
        }
    }

    /// The books in KSM's terms. What was found of volatile and unshared pages is that of the last full pass.
    pub fn counters(&self) -> Counters {
        let books = &self.books;
        let count = |state: State| books.tables.count(state) as u64;
        let shared = books.frames.shared as u64;
        Counters {
            pages_shared: shared,
            pages_sharing: count(State::Merged).saturating_sub(shared),
            pages_unshared: self.scan.unshared + books.unstable.tracked() as u64,
            pages_volatile: self.scan.report.volatile,
            pages_skipped: self.scan.skipped,
            pages_scanned: self.scan.scanned + self.scan.pass.map_or(0, |pass| pass.visited),
            full_scans: self.scan.report.number,
            zero_pages: count(State::Zero),
            stable_node_dups: books.frames.duplicates() as u64,
            pages_merged: books.merged,
            pages_broken: books.broken,
            pages_declined: books.declined,
            pages_over_budget: count(State::OverBudget),
            pages_refused: books.tables.count_in(REFUSED) as u64,
            pages_waiting: count(State::Waiting),
            pages_unplaced: self.scan.report.unplaced,
            pages_proposed: count(State::Queued) + count(State::Proposed),
            bookkeeping_bytes: self.bookkeeping_bytes() as u64,
        }
    }

    /// Tables and frames by their columns, trees by their entries; queues and the calendar are not counted.
    fn bookkeeping_bytes(&self) -> usize {
        let tables: usize = self.books.tables.iter().map(|(_, segment)| segment.table.bookkeeping_bytes()).sum();
        tables + self.books.frames.bookkeeping_bytes() + self.books.unstable.bookkeeping_bytes()
    }
}
