//! The scan: it goes through the segments of a domain in passes, and proposes what is equal.

mod chunk;
mod founding;
mod matching;
pub mod pass;

use crate::engine::books::Books;
use crate::engine::digest::Digester;
use crate::engine::report::{PassReport, Step};
use crate::engine::scan::chunk::{Chunk, Next};
use crate::engine::scan::pass::{Ahead, Founded, Pass, Proposal};
use crate::engine::tables::state::{READING, State};
use crate::page::{Run, page_size};
use crate::sys::zeroed::give_back_heap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread::Builder;

/// What a proposal takes, in pages digested (measured: 4 to 20).
const PROPOSAL_COST: u64 = 2;
/// Passes after which every page is forgiven one break.
const FORGIVENESS: u64 = 256;
/// Most chunks that a thread reads ahead of what is decided.
const AHEAD: usize = 8;
/// After a pass that read so many pages the heap is looked through for what nobody uses.
const LARGE_PASS: u64 = 1 << 16;
/// Fewer chunks than this for each thread are not worth starting one.
const WORTH: usize = 4;
/// A chunk is a quarter of a megabyte: this bounds what a caller can ask for.
const MOST_THREADS: usize = 32;

/// See the head of this file. What it decides is in the books, which it is given for each step.
pub struct Scan {
    pub digester: Digester,
    pub ahead: Ahead,
    pub pass: Option<Pass>,
    /// Of the last pass.
    pub report: PassReport,
    /// Found by the last pass, tracked pages not included.
    pub unshared: u64,
    pub scanned: u64,
    pub skipped: u64,
    /// Why there was no room for a frame.
    pub refusal: Option<io::Error>,
    /// For one page.
    pub spare: Vec<u8>,
    pub founded: Vec<Founded>,
    pub proposals: Vec<Proposal>,
    chunks: Vec<Chunk>,
    effort: u64, // what a chunk took lately, for reading no more ahead than will be used
}

impl Scan {
    pub fn new(digester: Digester) -> Scan {
        Scan {
            digester,
            ahead: Ahead::default(),
            pass: None,
            report: PassReport::default(),
            unshared: 0,
            scanned: 0,
            skipped: 0,
            refusal: None,
            spare: vec![0; page_size()],
            founded: Vec::new(),
            proposals: Vec::new(),
            chunks: vec![Chunk::new()],
            effort: chunk::CHUNK as u64,
        }
    }

    /// See `Engine::scan`.
    pub fn go_on(&mut self, books: &mut Books, pages: u64, threads: usize) -> Step {
        if books.unmerging {
            books.advance_clock();
            return Step { visited: 0, finished: None };
        }
        let mut current = self.pass.take().unwrap_or_else(|| self.begin_pass(books));
        let threads = threads.clamp(1, MOST_THREADS);
        let before = current.visited;
        let mut effort = 0; // in pages; proposing is work too, and so is passing over holes
        while effort < pages {
            let planned = self.plan(books, pages - effort, threads);
            if planned == 0 {
                let visited = current.visited - before;
                return Step { visited, finished: Some(self.finish_pass(books, current)) };
            }
            self.fill(books, planned, threads);
            for n in 0..planned {
                let spent = self.scan_chunk(books, &mut current, n);
                effort += spent;
                self.effort = (7 * self.effort + spent).div_ceil(8);
                let Next::Read { pages: wanted, .. } = self.chunks[n].next else { continue };
                if effort >= pages || self.chunks[n].read < wanted.count {
                    break; // a segment that was truncated goes on elsewhere than was planned
                }
            }
        }
        self.pass = Some(current);
        Step { visited: current.visited - before, finished: None }
    }

    fn begin_pass(&mut self, books: &mut Books) -> Pass {
        self.ahead.tables = books.scannable().into();
        self.ahead.page = 0;
        let forgive = self.report.number % FORGIVENESS == FORGIVENESS - 1;
        let mut pass = Pass::default();
        for &id in &self.ahead.tables {
            let table = books.tables.table_mut(id);
            if forgive {
                table.forgive();
            }
            if table.tracked {
                let (volatile, fresh) = table.sift();
                pass.volatile += volatile as u64;
                pass.fresh += fresh as u64;
            }
        }
        pass
    }

    fn finish_pass(&mut self, books: &mut Books, done: Pass) -> PassReport {
        let waiting = books.tables.count(State::Waiting) as u64;
        self.report = PassReport {
            number: self.report.number + 1,
            visited: done.visited,
            proposed: done.proposed,
            fresh: done.fresh,
            volatile: done.volatile,
            unshared: done.unshared + books.unstable.tracked() as u64,
            waiting,
            backlog: done.backlog + books.count_due() as u64,
            unplaced: done.unplaced,
        };
        self.unshared = done.unshared;
        self.chunks.truncate(1); // those of other threads are a quarter of a megabyte each
        if done.visited >= LARGE_PASS {
            give_back_heap(); // what the trees were before they grew
        }
        self.scanned += done.visited;
        self.skipped += waiting;
        books.unstable.forget_untracked(&mut books.tables);
        books.advance_clock();
        self.report
    }

    /// Says what the next chunks are. Returns how many: none at the end of the pass, one if a thread is enough.
    fn plan(&mut self, books: &mut Books, left: u64, threads: usize) -> usize {
        while self.ahead.tables.front().is_some_and(|id| !books.can_be_scanned(*id)) {
            self.next_table(books);
        }
        let useful = left.div_ceil(self.effort.max(1)) as usize;
        let most = if threads > 1 && useful >= WORTH * threads { useful.min(AHEAD * threads) } else { 1 };
        let (mut planned, mut page) = (0, self.ahead.page);
        for &id in &self.ahead.tables {
            if !books.can_be_scanned(id) {
                continue;
            }
            let segment = books.tables.segment(id);
            while planned < most {
                let next = chunk::next(segment, page);
                if planned == self.chunks.len() {
                    self.chunks.push(Chunk::new());
                }
                self.chunks[planned].plan(id, next);
                planned += 1;
                match next {
                    Next::Read { pages, .. } => page = pages.end(),
                    Next::Skip { page: found, .. } => page = found,
                    Next::End { .. } => break,
                }
            }
            if planned == most {
                break;
            }
            page = 0;
        }
        planned
    }

    /// Reads and digests what was planned, with as many threads as can be had.
    fn fill(&mut self, books: &mut Books, planned: usize, threads: usize) {
        let (tables, digester) = (&books.tables, &self.digester);
        if planned == 1 {
            self.chunks[0].fill(tables, digester);
            return;
        }
        let left = Mutex::new(self.chunks[..planned].iter_mut());
        let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || {
            while let Some(chunk) = next() {
                chunk.fill(tables, digester);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads.min(planned) {
                let _ = Builder::new().name("pagefold-scan".into()).spawn_scoped(scope, work);
            }
            work();
        });
    }

    /// Goes on with a chunk that was planned and read. Returns the effort, in pages.
    fn scan_chunk(&mut self, books: &mut Books, current: &mut Pass, n: usize) -> u64 {
        let (id, next, read) = (self.chunks[n].id, self.chunks[n].next, self.chunks[n].read);
        while self.ahead.tables.front() != Some(&id) {
            self.next_table(books); // its client has departed
        }
        let table = books.tables.table_mut(id);
        match next {
            Next::End { holes } => {
                table.forget_readings(holes);
                self.next_table(books);
                1
            }
            Next::Skip { holes, page } => {
                table.forget_readings(holes);
                if table.tracked {
                    table.clear_flag(holes, READING);
                    books.unstable.remove(&mut books.tables, id, holes);
                }
                self.ahead.page = page;
                1
            }
            Next::Read { holes, pages } => {
                table.forget_readings(holes);
                if read == 0 {
                    self.next_table(books);
                    return 1;
                }
                self.ahead.page = pages.first + read;
                let proposed = current.proposed;
                self.look_at_chunk(books, current, n, pages);
                self.conclude(books, current, n);
                read as u64 + PROPOSAL_COST * current.proposed.saturating_sub(proposed)
            }
        }
    }

    fn next_table(&mut self, books: &mut Books) {
        self.ahead.page = 0;
        let Some(id) = self.ahead.tables.pop_front() else { return };
        if books.tables.get(id).is_some_and(|segment| segment.table.tracked) {
            let table = books.tables.table_mut(id);
            let whole: Run = table.whole();
            table.clear_flag(whole, READING);
        }
    }
}
