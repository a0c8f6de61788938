//! When pages that rest come back: runs by the time at which they do. Time is counted in passes.

use crate::engine::ids::TableId;
use crate::engine::tables::state::State;
use crate::page::Run;
use std::collections::{BTreeMap, HashSet};

/// A run that comes back, for those of its pages that are still in the state in which the rest began.
pub type Entry = (TableId, Run, State);

/// What comes back at one time.
#[derive(Default)]
struct Due {
    entries: Vec<Entry>,
    /// Those that were entered, as they were: who enters the same again and again makes nothing grow.
    known: HashSet<Entry>,
}

/// See the head of this file.
#[derive(Default)]
pub struct Calendar {
    now: u64,
    due: BTreeMap<u64, Due>,
    len: usize,
}

impl Calendar {
    /// Enters a run, and joins it to the last of that time if it goes on from that.
    pub fn schedule(&mut self, table: TableId, run: Run, state: State, passes: u64) {
        let due = self.due.entry(self.now + passes).or_default();
        if !due.known.insert((table, run, state)) {
            return;
        }
        self.len += 1;
        match due.entries.last_mut() {
            Some((id, last, other)) if *id == table && last.end() == run.first && *other == state => {
                last.count += run.count;
            }
            _ => due.entries.push((table, run, state)),
        }
    }

    /// A pass is over. Returns what comes back now.
    pub fn advance(&mut self) -> Vec<Entry> {
        self.now += 1;
        let due = self.due.remove(&self.now).unwrap_or_default();
        self.len -= due.known.len();
        due.entries
    }

    /// What the entries take, about.
    pub fn claims(&self) -> usize {
        self.len * 2 * size_of::<Entry>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_entered_again_makes_nothing_grow() {
        let mut calendar = Calendar::default();
        let page = |first| Run { first, count: 1 };
        for n in 0..10_000 {
            calendar.schedule(TableId(1), page(n % 2 * 5), State::Waiting, 4);
        }
        assert_eq!(calendar.len, 2);
        calendar.schedule(TableId(1), page(6), State::Waiting, 4); // goes on from the last
        calendar.schedule(TableId(1), page(6), State::Waiting, 5); // at another time
        assert!((0..3).all(|_| calendar.advance().is_empty()));
        let joined = (TableId(1), Run { first: 5, count: 2 }, State::Waiting);
        assert_eq!(calendar.advance(), [(TableId(1), page(0), State::Waiting), joined]);
        assert_eq!(calendar.advance().len(), 1);
        assert_eq!((calendar.len, calendar.claims()), (0, 0));
    }
}
