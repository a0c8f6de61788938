//! The engine: the books of a domain, and the scan that goes through its segments in passes.

mod chunk;
mod founding;
mod matching;
pub mod pass;

use crate::engine::books::Books;
use crate::engine::books::Columns;
use crate::engine::books::queues::Instructions;
use crate::engine::digest::Digester;
use crate::engine::error::{Error, Result};
use crate::engine::frames::Frames;
use crate::engine::frames::store::Store;
use crate::engine::ids::TableId;
use crate::engine::report::{Left, Options, PassReport, SegmentCounts, Step};
use crate::engine::scan::chunk::{Chunk, Next};
use crate::engine::scan::founding::{Founded, Proposal};
use crate::engine::scan::pass::{Ahead, Pass};
use crate::engine::tables::state::{READING, State};
use crate::page::{Run, page_size};
use crate::sys::zeroed::{give_back_heap, keep_large_apart};
use std::io;
use std::os::fd::OwnedFd;
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
/// The same after a client whose columns took so many bytes.
const LARGE_CLIENT: usize = 1 << 20;
/// Fewer chunks than this for each thread are not worth starting one.
const WORTH: usize = 4;
/// A chunk is a quarter of a megabyte: this bounds what a caller can ask for.
const MOST_THREADS: usize = 32;

/// One domain's engine; see `engine.py` for what each method promises.
pub struct Engine {
    pub(super) books: Books,
    pub(super) digester: Digester,
    pub(super) ahead: Ahead,
    pub(super) pass: Option<Pass>,
    pub(super) report: PassReport, // of the last pass
    pub(super) unshared: u64,      // found by the last pass, tracked pages not included
    pub(super) scanned: u64,
    pub(super) skipped: u64,
    pub(super) refusal: Option<io::Error>,
    pub(super) chunks: Vec<Chunk>,
    pub(super) spare: Vec<u8>, // for one page
    pub(super) founded: Vec<Founded>,
    pub(super) proposals: Vec<Proposal>,
    effort: u64, // what a chunk took lately, for reading no more ahead than will be used
}

impl Engine {
    /// Takes over the pool's descriptor, open for reading and writing, of an empty object or of one to `inherit`.
    pub fn new(pool: OwnedFd, options: Options, seed: u64, limit: u32, number: u16) -> Engine {
        keep_large_apart();
        let digester = Digester::new(seed);
        Engine {
            books: Books::new(Frames::new(Store::new(pool, limit)), options, digester.zero, number),
            digester,
            ahead: Ahead::default(),
            pass: None,
            report: PassReport::default(),
            unshared: 0,
            scanned: 0,
            skipped: 0,
            refusal: None,
            chunks: vec![Chunk::new()],
            spare: vec![0; page_size()],
            founded: Vec::new(),
            proposals: Vec::new(),
            effort: chunk::CHUNK as u64,
        }
    }

    /// Goes on with other options. Frames that serve more pages than a new `max_page_sharing` go on doing so.
    pub fn configure(&mut self, options: Options) {
        let before = std::mem::replace(&mut self.books.options, options);
        self.books.frames.forget_fullness();
        let more_room = options.max_page_sharing > before.max_page_sharing;
        if more_room || options.use_zero_pages && !before.use_zero_pages {
            // What was like no other page may have an equal under these options.
            self.books.unstable.read_tracked_again(&mut self.books.tables);
        }
    }

    /// Takes over the frames that the pool holds from before, for `bury` to let go of. How many there are.
    pub fn inherit(&mut self) -> Result<usize> {
        let digester = self.digester;
        self.books
            .frames
            .inherit(|page| digester.digest(page))
            .map_err(|error| Error::System("reading the pool", error))
    }

    /// See `Books::bury`.
    pub fn bury(&mut self) {
        self.books.bury();
    }

    /// Makes a client known.
    pub fn add_client(&mut self, client: i64) -> Result<()> {
        self.books.members.add(client)
    }

    /// Makes a segment part of the scan; takes over a descriptor that is open for reading.
    pub fn add_segment(&mut self, client: i64, segment: i64, fd: OwnedFd, pages: usize, tracked: bool) -> Result<()> {
        self.books.add_segment(client, segment, fd, pages, tracked)
    }

    /// Forgets a segment, unless it is in use: then false.
    pub fn drop_segment(&mut self, client: i64, segment: i64) -> Result<bool> {
        self.books.drop_segment(client, segment)
    }

    /// The client will not answer again.
    pub fn depart_client(&mut self, client: i64) -> Result<()> {
        self.books.depart_client(client)
    }

    /// The client's whole process family is dead.
    pub fn remove_client(&mut self, client: i64) -> Result<()> {
        let before = self.books.tables.claims();
        self.books.remove_client(client)?;
        if before.saturating_sub(self.books.tables.claims()) > LARGE_CLIENT {
            give_back_heap();
        }
        Ok(())
    }

    /// Books what a client reported.
    pub fn apply(&mut self, client: i64, events: &Columns) -> Result<()> {
        self.books.apply(client, events)
    }

    /// Takes out what is queued for a client.
    pub fn take(&mut self, client: i64, pages: usize) -> Result<Instructions> {
        self.books.take(client, pages)
    }

    /// Clients for which something is queued.
    pub fn queued(&self) -> Vec<i64> {
        self.books.queued()
    }

    /// Pages proposed or to be adopted, of which the answer is not in.
    pub fn outstanding(&self) -> usize {
        self.books.outstanding()
    }

    /// Gives every page back, or goes back to work.
    pub fn unmerge(&mut self, on: bool) {
        self.books.unmerge(on);
    }

    /// One segment's pages by state.
    pub fn segment_counts(&self, client: i64, segment: i64) -> Result<SegmentCounts> {
        self.books.segment_counts(client, segment)
    }

    /// Pages of the client that map frames, and pages proposed to it.
    pub fn merged_pages(&self, client: i64) -> Result<(usize, usize)> {
        self.books.merged_pages(client)
    }

    /// Pages of the client that were to be merged and are not.
    pub fn left(&self, client: i64) -> Result<Left> {
        self.books.left(client)
    }

    /// Pages of the client that are known and like no other, or not wanted.
    pub fn apart(&self, client: i64) -> Result<usize> {
        self.books.apart(client)
    }

    /// Why there was no room for a frame, if so, since this was asked last.
    pub fn refusal(&mut self) -> Option<io::Error> {
        self.refusal.take()
    }

    /// Gives the memory of released frames back to the kernel.
    pub fn flush(&mut self) -> Result<()> {
        self.books.frames.store.flush().map_err(|error| Error::System("punching released frames", error))
    }

    /// Numbers of frames in use, in order. For tests and audits.
    pub fn frames(&self) -> Vec<u32> {
        self.books.frames.store.used()
    }

    /// Goes on with the pass for about `pages` pages; starts the next pass if the last one ended.
    ///
    /// With no segments, a call is a whole pass. While unmerging nothing is read and no pass ends, but each call counts
    /// as one for the pages whose adoption failed. Decisions do not depend on `threads`.
    pub fn scan(&mut self, pages: u64, threads: usize) -> Step {
        if self.books.unmerging {
            self.books.advance_clock();
            return Step { visited: 0, finished: None };
        }
        let mut current = self.pass.take().unwrap_or_else(|| self.begin_pass());
        let threads = threads.clamp(1, MOST_THREADS);
        let before = current.visited;
        let mut effort = 0; // in pages; proposing is work too, and so is passing over holes
        while effort < pages {
            let planned = self.plan(pages - effort, threads);
            if planned == 0 {
                let visited = current.visited - before;
                return Step { visited, finished: Some(self.finish_pass(current)) };
            }
            self.fill(planned, threads);
            for n in 0..planned {
                let spent = self.scan_chunk(&mut current, n);
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

    fn begin_pass(&mut self) -> Pass {
        self.ahead.tables = self.scannable().into();
        self.ahead.page = 0;
        let forgive = self.report.number % FORGIVENESS == FORGIVENESS - 1;
        let mut pass = Pass::default();
        for &id in &self.ahead.tables {
            let table = self.books.tables.table_mut(id);
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

    fn finish_pass(&mut self, done: Pass) -> PassReport {
        let waiting = self.books.tables.count(State::Waiting) as u64;
        self.report = PassReport {
            number: self.report.number + 1,
            visited: done.visited,
            proposed: done.proposed,
            fresh: done.fresh,
            volatile: done.volatile,
            unshared: done.unshared + self.books.unstable.tracked() as u64,
            waiting,
            backlog: done.backlog + self.count_pending() as u64,
            unplaced: done.unplaced,
        };
        self.unshared = done.unshared;
        self.chunks.truncate(1); // those of other threads are a quarter of a megabyte each
        if done.visited >= LARGE_PASS {
            give_back_heap(); // what the trees were before they grew
        }
        self.scanned += done.visited;
        self.skipped += waiting;
        self.books.unstable.forget_untracked(&mut self.books.tables);
        self.books.advance_clock();
        self.report
    }

    /// Segments of clients that may answer, in the order in which they came.
    pub(super) fn scannable(&self) -> Vec<TableId> {
        let listening = self.books.members.iter().filter(|(_, member)| member.listening);
        listening.flat_map(|(_, member)| member.tables.iter().copied()).collect()
    }

    pub(super) fn can_be_scanned(&self, id: TableId) -> bool {
        self.books.tables.get(id).is_some_and(|segment| self.books.members.get(segment.member).listening)
    }

    /// Says what the next chunks are. Returns how many: none at the end of the pass, one if a thread is enough.
    fn plan(&mut self, left: u64, threads: usize) -> usize {
        while self.ahead.tables.front().is_some_and(|id| !self.can_be_scanned(*id)) {
            self.next_table();
        }
        let useful = left.div_ceil(self.effort.max(1)) as usize;
        let most = if threads > 1 && useful >= WORTH * threads { useful.min(AHEAD * threads) } else { 1 };
        let (mut planned, mut page) = (0, self.ahead.page);
        for &id in &self.ahead.tables {
            if !self.can_be_scanned(id) {
                continue;
            }
            let segment = self.books.tables.segment(id);
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
    fn fill(&mut self, planned: usize, threads: usize) {
        let (tables, digester) = (&self.books.tables, &self.digester);
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
    fn scan_chunk(&mut self, current: &mut Pass, n: usize) -> u64 {
        let (id, next, read) = (self.chunks[n].id, self.chunks[n].next, self.chunks[n].read);
        while self.ahead.tables.front() != Some(&id) {
            self.next_table(); // its client has departed
        }
        let table = self.books.tables.table_mut(id);
        match next {
            Next::End { holes } => {
                table.forget_readings(holes);
                self.next_table();
                1
            }
            Next::Skip { holes, page } => {
                table.forget_readings(holes);
                if table.tracked {
                    table.clear_flag(holes, READING);
                    self.books.unstable.remove(&mut self.books.tables, id, holes);
                }
                self.ahead.page = page;
                1
            }
            Next::Read { holes, pages } => {
                table.forget_readings(holes);
                if read == 0 {
                    self.next_table();
                    return 1;
                }
                self.ahead.page = pages.first + read;
                let proposed = current.proposed;
                self.look(current, n, pages);
                self.conclude(current, n);
                read as u64 + PROPOSAL_COST * current.proposed.saturating_sub(proposed)
            }
        }
    }

    fn next_table(&mut self) {
        self.ahead.page = 0;
        let Some(id) = self.ahead.tables.pop_front() else { return };
        if self.books.tables.get(id).is_some_and(|segment| segment.table.tracked) {
            let table = self.books.tables.table_mut(id);
            let whole: Run = table.whole();
            table.clear_flag(whole, READING);
        }
    }
}
