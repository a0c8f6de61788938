//! A proposal of the server's: pages, and the frames that they are to map. Nothing in it is believed.

use crate::page::Run;
use crate::space::books::journal::Event;
use crate::wire::EventKind;

/// A run that is to map following frames of a pool; pool 0 is the zero page.
#[derive(Clone, Copy, Debug)]
pub struct Proposal {
    /// The segment.
    pub segment: u32,
    /// Its first page.
    pub first: u32,
    /// How many pages.
    pub count: u32,
    /// The pool.
    pub pool: u32,
    /// The first page's frame.
    pub frame: u32,
}

impl Proposal {
    /// Its pages.
    pub fn run(&self) -> Run {
        Run { first: self.first as usize, count: self.count as usize }
    }

    /// Their frames.
    pub fn frames(&self) -> Run {
        Run { first: self.frame as usize, count: self.count as usize }
    }

    /// Splits the first `count` pages off.
    pub fn split(&mut self, count: usize) -> Proposal {
        let head = Proposal { count: count as u32, ..*self };
        self.first += count as u32;
        self.count -= count as u32;
        self.frame = if self.pool == 0 { 0 } else { self.frame + count as u32 };
        head
    }

    /// What became of a part of it. Numbers out of bounds are answered as they came, so that the server can tell what was
    /// meant.
    pub fn event(&self, kind: EventKind, run: Run, detail: u32) -> Event {
        let offset = (run.first - self.first as usize) as u32;
        let frame = if self.pool == 0 { 0 } else { self.frame.wrapping_add(offset) };
        Event { pool: self.pool, frame, detail, ..Event::new(kind, self.segment, run) }
    }
}
