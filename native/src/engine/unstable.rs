//! The unstable tree: pages that were settled when they were read, and like no other, by the digest that they had then.
//!
//! Nothing keeps their programs from writing to them, so what the tree finds is a hint. Pages of clients that report
//! their writes ("tracked") stay in it until they are reported; of all others it forgets, at the end of a pass, what it
//! knows. An entry is eight bytes: the upper half of the digest, and the page's place; the rest of the digest stands in
//! the page's table.
//!
//! Kept true: an entry is a page of a segment that is there, owned, flagged LISTED, under the digest in its table, and
//! the only one of that digest.

use super::stable::{ENTRY_BYTES, UPPER};
use super::table::{LISTED, PENDING, State};
use super::tables::{TableId, Tables};
use crate::page::Run;
use std::collections::BTreeSet;

/// See the head of this file.
#[derive(Default)]
pub struct Unstable {
    entries: BTreeSet<u64>,
    tracked: usize,
}

impl Unstable {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Entries that the end of a pass leaves.
    pub fn tracked(&self) -> usize {
        self.tracked
    }

    /// The page that is listed under a digest.
    pub fn find(&self, tables: &Tables, digest: u64) -> Option<(TableId, usize)> {
        let alike = self.entries.range(digest & UPPER..).take_while(|&entry| entry & UPPER == digest & UPPER);
        alike.map(|entry| tables.locate(*entry as u32)).find(|&(id, page)| tables.table(id).digest(page) == digest)
    }

    /// Lists a page under its digest, where no other one is.
    pub fn enter(&mut self, tables: &mut Tables, id: TableId, page: usize) {
        let place = tables.segment(id).place(page);
        let table = tables.table_mut(id);
        self.entries.insert(table.digest(page) & UPPER | u64::from(place));
        table.flags[page] |= LISTED;
        self.tracked += usize::from(table.tracked);
    }

    /// Forgets those pages of a run that are listed.
    pub fn remove(&mut self, tables: &mut Tables, id: TableId, run: Run) {
        let base = tables.segment(id).base;
        let table = tables.table_mut(id);
        let listed = if run.count > 64 { table.count_flag(LISTED) } else { 0 };
        if listed > 0 && listed >= self.entries.len() / 4 && run == table.whole() {
            // One by one costs a descent each.
            let (first, last) = (u64::from(base), u64::from(base) + run.count as u64);
            self.entries.retain(|&entry| !(first..last).contains(&(entry & !UPPER)));
        } else {
            let mut at = run.first;
            while let Some(found) = table.next_flagged(at, run.end(), LISTED) {
                at = found.end();
                for page in found.first..found.end() {
                    self.entries.remove(&(table.digest(page) & UPPER | (u64::from(base) + page as u64)));
                }
            }
        }
        let removed = table.clear_flag(run, LISTED);
        if table.tracked {
            self.tracked -= removed;
        }
    }

    /// Forgets those pages of a run that are listed, and has the next pass read them: they may have an equal now.
    pub fn read_again(&mut self, tables: &mut Tables, id: TableId, run: Run) {
        let table = tables.table_mut(id);
        let mut at = run.first;
        while let Some(found) = table.next_flagged(at, run.end(), LISTED) {
            at = found.end();
            table.set_flag(found, PENDING);
        }
        self.remove(tables, id, run);
    }

    /// As `read_again`, for all that would stay listed.
    pub fn read_tracked_again(&mut self, tables: &mut Tables) {
        for id in tables.ids() {
            if tables.table(id).tracked {
                self.read_again(tables, id, tables.table(id).whole());
            }
        }
    }

    /// A pass is over: what nobody reports the writes of is not to be relied on any longer.
    pub fn forget_untracked(&mut self, tables: &mut Tables) {
        if self.entries.len() == self.tracked {
            return;
        }
        if self.tracked == 0 {
            self.entries.clear();
        } else {
            self.entries.retain(|&entry| tables.table(tables.locate(entry as u32).0).tracked);
        }
        for id in tables.ids() {
            let table = tables.table_mut(id);
            if !table.tracked {
                let whole = table.whole();
                table.clear_flag(whole, LISTED);
            }
        }
    }

    pub fn bookkeeping_bytes(&self) -> usize {
        ENTRY_BYTES * self.entries.len()
    }

    /// Compares the tree with the tables.
    pub fn check(&self, tables: &Tables) -> Result<(), String> {
        for entry in &self.entries {
            let (id, page) = tables.locate(*entry as u32);
            let table = tables.table(id);
            if table.state(page) != State::Owned {
                return Err("a page is listed that cannot be merged".into());
            }
            if table.digest(page) & UPPER != entry & UPPER || self.find(tables, table.digest(page)) != Some((id, page))
            {
                return Err("a page is listed under another digest, or two under one".into());
            }
            if table.flags[page] & LISTED == 0 {
                return Err("an entry without its flag".into());
            }
        }
        let flagged = |tracked| -> usize {
            tables.iter().filter(|(_, s)| s.table.tracked == tracked).map(|(_, s)| s.table.count_flag(LISTED)).sum()
        };
        if (flagged(true), flagged(false)) != (self.tracked, self.entries.len() - self.tracked) {
            return Err("flags without entries".into());
        }
        Ok(())
    }
}
