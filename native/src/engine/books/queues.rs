//! What a client is to be told: pages to merge and pages to adopt, joined into runs.
//!
//! A run of a thousand pages is one instruction and one mapping. Pages come in the order of the scan, and two runs may
//! grow in turns (a page and its equal elsewhere), so merges look for the run that a page goes on from, not just at
//! the last.

use crate::engine::ids::TableId;
use crate::page::Run;
use std::collections::{HashMap, VecDeque};

/// What one client is to do next.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Instructions {
    /// Runs (segment, first page, count, frame of the first page); frame -1: the zero page for all of it.
    pub merges: Vec<(i64, usize, usize, i64)>,
    /// Runs (segment, first page, count).
    pub adopts: Vec<(i64, usize, usize)>,
    /// Whether more is queued.
    pub more: bool,
}

/// Neighbouring pages for neighbouring frames; None is the zero page, for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge {
    pub table: TableId,
    pub pages: Run,
    pub frame: Option<u32>,
}

impl Merge {
    /// The frame that belongs to a page, which may be the one after the run.
    pub fn frame_of(&self, page: usize) -> Option<u32> {
        self.frame.map(|frame| frame + (page - self.pages.first) as u32)
    }

    /// Cuts off the first pages.
    fn split(&mut self, pages: usize) -> Merge {
        let head = Merge { pages: Run { first: self.pages.first, count: pages }, ..*self };
        self.frame = self.frame_of(head.pages.end());
        self.pages = Run { first: head.pages.end(), count: self.pages.count - pages };
        head
    }
}

/// Proposals not yet taken. A page stands in here once at most.
#[derive(Default)]
pub struct MergeQueue {
    runs: VecDeque<Merge>,
    taken: u64, // runs that were in front of these: a run's number is this plus its place
    ends: HashMap<(TableId, usize), u64>, // the page after a run -> its number
}

impl MergeQueue {
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Merge> {
        self.runs.iter()
    }

    /// Adds one page.
    pub fn add_page(&mut self, table: TableId, page: usize, frame: Option<u32>) {
        if let Some(&number) = self.ends.get(&(table, page)) {
            let run = &mut self.runs[(number - self.taken) as usize];
            if run.frame_of(page) == frame {
                run.pages.count += 1;
                self.ends.remove(&(table, page));
                self.ends.insert((table, page + 1), number);
                return;
            }
        }
        self.ends.insert((table, page + 1), self.taken + self.runs.len() as u64);
        self.runs.push_back(Merge { table, pages: Run { first: page, count: 1 }, frame });
    }

    /// Takes the oldest runs out, up to a number of pages.
    pub fn take_runs(&mut self, mut pages: usize) -> Vec<Merge> {
        let mut taken = Vec::new();
        while pages > 0 {
            let Some(run) = self.runs.front_mut() else { break };
            if run.pages.count > pages {
                taken.push(run.split(pages));
                break;
            }
            pages -= run.pages.count;
            self.ends.remove(&(run.table, run.pages.end()));
            taken.extend(self.runs.pop_front());
            self.taken += 1;
        }
        taken
    }

    /// Takes out what is queued for one segment, or, with None, everything.
    pub fn remove(&mut self, table: Option<TableId>) -> Vec<Merge> {
        let all = std::mem::take(&mut self.runs);
        let (removed, kept): (Vec<_>, Vec<_>) = all.into_iter().partition(|run| table.is_none_or(|id| run.table == id));
        self.runs = kept.into();
        self.taken = 0;
        let numbers = self.runs.iter().zip(0..);
        self.ends = numbers.map(|(run, number)| ((run.table, run.pages.end()), number)).collect();
        removed
    }

    /// Whether each run can be found by its end.
    pub fn check(&self) -> Result<(), String> {
        let mut found = self.runs.iter().zip(self.taken..);
        let right = |(run, number): (&Merge, u64)| self.ends.get(&(run.table, run.pages.end())) == Some(&number);
        if self.ends.len() == self.runs.len() && found.all(right) {
            Ok(())
        } else {
            Err("a run of the queue is not found by its end".into())
        }
    }
}

/// Pages to adopt. Those released in the meantime are still in here: the flags in the page table say which count.
#[derive(Default)]
pub struct AdoptQueue {
    runs: VecDeque<(TableId, Run)>,
}

impl AdoptQueue {
    /// Adds a run, and joins it to the last if it goes on from that.
    pub fn add_run(&mut self, table: TableId, run: Run) {
        match self.runs.back_mut() {
            Some((id, last)) if *id == table && last.end() == run.first => last.count += run.count,
            _ => self.runs.push_back((table, run)),
        }
    }

    /// Takes the oldest runs out, up to a number of pages.
    pub fn take_runs(&mut self, mut pages: usize) -> Vec<(TableId, Run)> {
        let mut taken = Vec::new();
        while pages > 0 {
            let Some((table, run)) = self.runs.front_mut() else { break };
            if run.count > pages {
                taken.push((*table, Run { first: run.first, count: pages }));
                *run = Run { first: run.first + pages, count: run.count - pages };
                break;
            }
            pages -= run.count;
            taken.extend(self.runs.pop_front());
        }
        taken
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.runs.clear();
    }
}
