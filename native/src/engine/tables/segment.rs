//! One segment: its page table, whose it is, and the descriptor by which it is read. Never through a mapping: a mapped
//! read of a hole allocates it, and a client that truncates its segment would kill who maps it.

use crate::engine::digest::Digester;
use crate::engine::ids::MemberKey;
use crate::engine::tables::table::PageTable;
use crate::page::{Run, bytes, page_size};
use crate::sys::shm;
use std::os::fd::{AsFd, OwnedFd};

/// Most pages that are asked about at once: what is there is counted page by page, 0.1 us each.
const STRIDE: usize = 1 << 14;
/// Most questions in a row. A hole may be larger than can be passed over at a time.
const LOOKS: usize = 64;

/// Where data is, from a page on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// The first of it.
    At(usize),
    /// Somewhere from here on, perhaps; this may be the end.
    NotBefore(usize),
}

/// See the head of this file.
pub struct Segment {
    pub member: MemberKey,
    /// The caller's number.
    pub number: i64,
    /// The first of its places.
    pub base: u32,
    pub table: PageTable,
    fd: OwnedFd,
}

impl Segment {
    /// Takes over a descriptor that is open for reading.
    pub fn new(member: MemberKey, number: i64, base: u32, fd: OwnedFd, table: PageTable) -> Segment {
        Segment { member, number, base, table, fd }
    }

    pub fn place(&self, page: usize) -> u32 {
        self.base + page as u32
    }

    /// Where the next page with data is. Nothing is touched, and nobody is waited for, where the kernel can tell so. A
    /// segment that cannot be read has none.
    pub fn next_data(&self, page: usize) -> Data {
        let pages = self.table.pages();
        let (mut at, mut stride) = (page, 1);
        for _ in 0..LOOKS {
            if at >= pages {
                return Data::NotBefore(pages);
            }
            let count = stride.min(pages - at);
            match self.is_present(Run { first: at, count }) {
                Some(true) => return Data::At(self.first_present(Run { first: at, count })),
                Some(false) => at += count,
                None => return self.seek_data(at),
            }
            stride = (2 * stride).min(STRIDE);
        }
        Data::NotBefore(at)
    }

    /// Whether a page is no hole.
    pub fn has_data(&self, page: usize) -> bool {
        let told = self.is_present(Run { first: page, count: 1 });
        told.unwrap_or_else(|| self.seek_data(page) == Data::At(page))
    }

    fn is_present(&self, run: Run) -> Option<bool> {
        shm::is_present(self.fd.as_fd(), bytes(run.first), bytes(run.count))
    }

    /// The first page that is present, of a run that has one; if it was punched meanwhile, some page of the run.
    fn first_present(&self, mut run: Run) -> usize {
        while run.count > 1 {
            let half = run.count / 2;
            if self.is_present(Run { first: run.first, count: half }) == Some(true) {
                run.count = half;
            } else {
                run = Run { first: run.first + half, count: run.count - half };
            }
        }
        run.first
    }

    fn seek_data(&self, page: usize) -> Data {
        let offset = shm::next_data(self.fd.as_fd(), bytes(page)).ok().flatten();
        let found = offset.map_or(usize::MAX, |offset| offset / page_size());
        if found < self.table.pages() { Data::At(found) } else { Data::NotBefore(self.table.pages()) }
    }

    /// What the client's object takes, in bytes.
    pub fn allocated(&self) -> usize {
        shm::extent(self.fd.as_fd()).map_or(0, |(_, allocated)| allocated)
    }

    /// Reads pages. Returns how many: fewer, or none, where a client truncates its segment.
    pub fn read(&self, first: usize, buffer: &mut [u8]) -> usize {
        shm::read(self.fd.as_fd(), buffer, bytes(first)).map_or(0, |read| read / page_size())
    }

    /// The digest of what a page has now, None if it is a hole or cannot be read.
    pub fn digest_now(&self, page: usize, digester: &Digester, buffer: &mut [u8]) -> Option<u64> {
        if self.read(page, buffer) != 1 {
            return None;
        }
        let digest = digester.digest(buffer);
        // Holes read as zeros; only then is it worth asking.
        let is_hole = digest == digester.zero && !self.has_data(page);
        (!is_hole).then_some(digest)
    }
}
