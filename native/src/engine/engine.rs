//! The engine: the books of a domain, the scan that goes through its segments, and one way to get at both.

use crate::engine::books::Books;
use crate::engine::books::events::Columns;
use crate::engine::books::queues::Instructions;
use crate::engine::digest::Digester;
use crate::engine::error::{Error, Result};
use crate::engine::frames::Frames;
use crate::engine::frames::store::Store;
use crate::engine::report::{Left, Options, SegmentCounts, Step};
use crate::engine::scan::Scan;
use crate::sys::zeroed::{give_back_heap, keep_large_apart};
use std::io;
use std::os::fd::OwnedFd;

/// The heap is looked through for what nobody uses after a client whose columns took so many bytes.
const LARGE_CLIENT: usize = 1 << 20;

/// One domain's engine; see `pagefold_server.engine.interface` for what each method promises.
pub struct Engine {
    pub(super) books: Books,
    pub(super) scan: Scan,
}

impl Engine {
    /// Takes over the pool's descriptor, open for reading and writing, of an empty object or of one to `recover_frames` of.
    pub fn new(pool: OwnedFd, options: Options, seed: u64, limit: u32, number: u16) -> Engine {
        keep_large_apart();
        let digester = Digester::new(seed);
        let books = Books::new(Frames::new(Store::new(pool, limit)), options, digester.zero, number);
        Engine { books, scan: Scan::new(digester) }
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

    /// Takes over the frames that the pool holds from before. How many there are; `release_unclaimed` lets go of those that
    /// nobody maps.
    pub fn recover_frames(&mut self) -> Result<usize> {
        let digester = self.scan.digester;
        self.books
            .frames
            .recover(|page| digester.digest(page))
            .map_err(|error| Error::System("reading the pool", error))
    }

    /// See `Books::release_unclaimed`.
    pub fn release_unclaimed(&mut self) {
        self.books.release_unclaimed();
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
    pub fn take_instructions(&mut self, client: i64, pages: usize) -> Result<Instructions> {
        self.books.take_instructions(client, pages)
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
        self.scan.refusal.take()
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
        self.scan.go_on(&mut self.books, pages, threads)
    }
}
