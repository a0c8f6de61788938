//! One segment: its page table, whose it is, and the descriptor by which it is read. Never through a mapping: a mapped
//! read of a hole allocates it, and a client that truncates its segment would kill who maps it.

use super::clients::ClientKey;
use super::digest::Digester;
use super::table::PageTable;
use crate::page::{bytes, page_size};
use crate::sys::shm;
use std::os::fd::{AsFd, OwnedFd};

/// See the head of this file.
pub struct Segment {
    pub client: ClientKey,
    /// The caller's number.
    pub number: i64,
    /// The first of its places.
    pub base: u32,
    pub table: PageTable,
    fd: OwnedFd,
}

impl Segment {
    /// Takes over a descriptor that is open for reading.
    pub fn new(client: ClientKey, number: i64, base: u32, fd: OwnedFd, table: PageTable) -> Segment {
        Segment { client, number, base, table, fd }
    }

    pub fn place(&self, page: usize) -> u32 {
        self.base + page as u32
    }

    /// The first page from here on that is not a hole; nothing is touched. A segment that cannot be read has none.
    pub fn next_data(&self, page: usize) -> Option<usize> {
        let offset = shm::next_data(self.fd.as_fd(), bytes(page)).ok()??;
        let found = offset / page_size();
        (found < self.table.pages()).then_some(found)
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
        let is_hole = digest == digester.zero && self.next_data(page) != Some(page);
        (!is_hole).then_some(digest)
    }
}
