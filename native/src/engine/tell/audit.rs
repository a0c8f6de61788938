//! What an audit of a running engine asks: who holds which frame, whether frames are what they were when they
//! were made, and whether their users are counted right. Reads, and changes nothing.

use crate::engine::engine::Engine;
use crate::engine::error::{Error, Result};
use crate::engine::frames::{Fault, Miscount};
use crate::engine::tables::state::{HELD, MAPPED};
use crate::page::Run;

/// Neighbouring pages in one state, on frames that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The pages.
    pub run: Run,
    /// What all of them are doing, by its number.
    pub state: u8,
    /// The first page's frame; None: the zero page, for all of them.
    pub frame: Option<u32>,
}

impl Engine {
    /// The pages of a part of a segment that hold frames, or that frames are proposed to. The part may reach beyond
    /// the end.
    pub fn held(&self, client: i64, number: i64, part: Run) -> Result<Vec<Held>> {
        let member = self.books.members.get(self.books.members.key(client)?);
        let table = self.books.tables.table(member.segment(number).ok_or(Error::NoSegment(number))?);
        let end = part.first.saturating_add(part.count).min(table.pages());
        let mut held: Vec<Held> = Vec::new();
        let mut at = part.first.min(end);
        while let Some(run) = table.next_of(at, end, HELD) {
            at = run.end();
            for page in run.first..run.end() {
                let (state, frame) = (table.state(page) as u8, table.frame(page));
                match held.last_mut() {
                    Some(last) if last.run.end() == page && last.state == state && last.goes_on_with(frame) => {
                        last.run.count += 1;
                    }
                    _ => held.push(Held { run: Run { first: page, count: 1 }, state, frame }),
                }
            }
        }
        Ok(held)
    }

    /// What is wrong with the frames of a range.
    pub fn audit(&mut self, first: u32, count: u32) -> Vec<(u32, Fault)> {
        let digester = self.scan.digester;
        self.books.frames.audit(first, count, &mut self.scan.spare, |page| digester.digest(page))
    }

    /// Counts the users of all frames again, by the page tables. About 5 ms for a million pages.
    pub fn recount(&self) -> Vec<Miscount> {
        let mut counted = vec![(0u32, 0u32); self.books.frames.numbers()];
        for (_, segment) in self.books.tables.iter() {
            let table = &segment.table;
            let mut at = 0;
            while let Some(run) = table.next_of(at, table.pages(), HELD) {
                at = run.end();
                for page in run.first..run.end() {
                    let Some(frame) = table.frame(page).map(|frame| frame as usize) else { continue };
                    if frame >= counted.len() {
                        counted.resize(frame + 1, (0, 0));
                    }
                    let users = &mut counted[frame];
                    *(if table.state(page).bit() & MAPPED != 0 { &mut users.0 } else { &mut users.1 }) += 1;
                }
            }
        }
        self.books.frames.recount(counted)
    }
}

impl Held {
    fn goes_on_with(&self, frame: Option<u32>) -> bool {
        match self.frame {
            None => frame.is_none(),
            Some(first) => frame.is_some_and(|frame| u64::from(frame) == u64::from(first) + self.run.count as u64),
        }
    }
}
