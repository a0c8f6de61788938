//! The unstable tree: pages that were settled when they were read, and like no other, by the digest that they had then.
//!
//! Nothing keeps their programs from writing to them, so what the tree finds is a hint. Pages of clients that report
//! their writes ("tracked") stay in it until they are reported; of all others it forgets, at the end of a pass, what it
//! knows. Pages stand in it by their places; whole digests are in their tables.
//!
//! Kept true: an entry is a page of a segment that is there, owned, flagged LISTED, under the digest in its table, and
//! the only one of that digest.

use crate::engine::frames::tree::Tree;
use crate::engine::ids::TableId;
use crate::engine::tables::Tables;
use crate::engine::tables::state::{LISTED, PENDING, State};
use crate::page::Run;

/// See the head of this file.
#[derive(Default)]
pub struct Unstable {
    tree: Tree,
    tracked: usize,
}

impl Unstable {
    pub fn len(&self) -> usize {
        self.tree.len()
    }

    /// Entries that the end of a pass leaves.
    pub fn tracked(&self) -> usize {
        self.tracked
    }

    /// The page that is listed under a digest.
    pub fn find(&self, tables: &Tables, digest: u64) -> Option<(TableId, usize)> {
        self.tree.get(digest, |place| digest_of(tables, place)).map(|place| tables.locate(place))
    }

    /// Lists a page under its digest, where no other one is.
    pub fn enter(&mut self, tables: &mut Tables, id: TableId, page: usize) {
        let place = tables.segment(id).place(page);
        let table = tables.table_mut(id);
        self.tree.insert(table.digest(page), place);
        table.set_flag(Run { first: page, count: 1 }, LISTED);
        self.tracked += usize::from(table.tracked);
    }

    /// Forgets those pages of a run that are listed.
    pub fn remove(&mut self, tables: &mut Tables, id: TableId, run: Run) {
        let base = tables.segment(id).base;
        let table = tables.table_mut(id);
        let listed = if run.count > 64 && run == table.whole() { table.count_flag(LISTED) } else { 0 };
        if listed > 0 && listed >= self.tree.len() / 4 {
            // One by one costs a descent each.
            let last = base + (run.count - 1) as u32;
            self.tree.retain(|place| !(base..=last).contains(&place));
        } else {
            let mut at = run.first;
            while let Some(found) = table.next_flagged(at, run.end(), LISTED) {
                at = found.end();
                for page in found.first..found.end() {
                    self.tree.remove(table.digest(page), base + page as u32);
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
        if self.tree.len() == self.tracked {
            return;
        }
        if self.tracked == 0 {
            self.tree.clear();
        } else {
            self.tree.retain(|place| tables.table(tables.locate(place).0).tracked);
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
        self.tree.bookkeeping_bytes()
    }

    /// Compares the tree with the tables.
    pub fn check(&self, tables: &Tables) -> Result<(), String> {
        for (id, page) in self.tree.numbers().map(|place| tables.locate(place)) {
            let table = tables.table(id);
            if table.state(page) != State::Owned {
                return Err("a page is listed that cannot be merged".into());
            }
            if table.flags(page) & LISTED == 0 {
                return Err("an entry without its flag".into());
            }
        }
        self.tree.check(|place| digest_of(tables, place))?;
        let flagged = |tracked| -> usize {
            tables.iter().filter(|(_, s)| s.table.tracked == tracked).map(|(_, s)| s.table.count_flag(LISTED)).sum()
        };
        if (flagged(true), flagged(false)) != (self.tracked, self.tree.len() - self.tracked) {
            return Err("flags without entries".into());
        }
        Ok(())
    }
}

fn digest_of(tables: &Tables, place: u32) -> u64 {
    let (id, page) = tables.locate(place);
    tables.table(id).digest(page)
}
