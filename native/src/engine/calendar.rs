//! When pages that rest come back: runs by the time at which they do. Time is counted in passes.

use super::state::State;
use super::tables::TableId;
use crate::page::Run;
use std::collections::BTreeMap;

/// A run that comes back, for those of its pages that are still in the state in which the rest began.
pub type Entry = (TableId, Run, State);

/// See the head of this file.
#[derive(Default)]
pub struct Calendar {
    now: u64,
    due: BTreeMap<u64, Vec<Entry>>,
}

impl Calendar {
    /// Enters a run, and joins it to the last of that time if it goes on from that.
    pub fn schedule(&mut self, table: TableId, run: Run, state: State, passes: u64) {
        let due = self.due.entry(self.now + passes).or_default();
        match due.last_mut() {
            Some((id, last, other)) if *id == table && last.end() == run.first && *other == state => {
                last.count += run.count;
            }
            _ => due.push((table, run, state)),
        }
    }

    /// A pass is over. Returns what comes back now.
    pub fn advance(&mut self) -> Vec<Entry> {
        self.now += 1;
        self.due.remove(&self.now).unwrap_or_default()
    }
}
