//! A pool as a client sees it: frames that it may compare with and map, and never write.

use crate::error::{Error, Result};
use crate::page::{Run, bytes, page_size};
use crate::space::books::bits::words;
use crate::sys::mmap::ReadMapping;
use crate::sys::object::Object;
use crate::sys::shm;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Least bytes of the pool that are mapped to compare with. Addresses cost nothing; a mapping that has to grow costs all
/// entries that its page tables have by then.
const LEAST_MAPPED: usize = 1 << 28;

/// An open pool.
pub struct Pool {
    fd: Object,
    mapping: Option<ReadMapping>,
    size: usize,                // when it was last looked at
    known: HashMap<usize, u64>, // which of 64 neighbouring frames are there
}

impl Pool {
    /// Takes over a descriptor that is open for reading.
    pub fn new(fd: OwnedFd) -> Pool {
        Pool { fd: Object::keep(fd), mapping: None, size: 0, known: HashMap::new() }
    }

    /// The descriptor to map frames of.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A mapping to compare with that covers `frames`; None if the pool does not reach that far.
    ///
    /// Pools only grow, so a frame that was there once stays there.
    pub fn mapping_of(&mut self, frames: Run) -> Result<Option<&ReadMapping>> {
        let needed = frames.end().checked_mul(page_size()).ok_or(Error::Range("a frame beyond any pool"))?;
        if needed > self.size {
            let size = shm::size(self.fd()).map_err(|e| Error::System("size of the pool", e))?;
            self.size = bytes(size / page_size());
            if needed > self.size {
                return Ok(None);
            }
        }
        if self.mapping.as_ref().is_none_or(|mapping| mapping.bytes() < needed) {
            self.mapping = None;
            let ahead = needed.max(LEAST_MAPPED).checked_next_power_of_two().unwrap_or(self.size);
            let mapping =
                ReadMapping::map(self.fd.as_fd(), ahead).or_else(|_| ReadMapping::map(self.fd.as_fd(), self.size));
            self.mapping = Some(mapping.map_err(|e| Error::System("mapping the pool", e))?);
        }
        Ok(self.mapping.as_ref())
    }

    /// Forgets which frames are there. To be called before each batch: while its proposals are under way their frames stay,
    /// and others may come and go.
    pub fn forget_presence(&mut self) {
        self.known.clear();
    }

    /// Unmaps what frames were compared through. To be called after each batch: what stayed in the page table would count
    /// as the program's memory (RSS) once more, and its page tables would grow with every frame that was ever there.
    pub fn unmap(&mut self) {
        self.mapping = None;
    }

    /// Has the kernel make frames ready for being compared, before writes are held for that. False if they are not there.
    pub fn prepare(&mut self, frames: Run) -> bool {
        if !matches!(self.mapping_of(frames), Ok(Some(_))) {
            return false;
        }
        let Some(mapping) = &self.mapping else { return false };
        // One call for 64 frames costs about as much as one for each of two.
        let there = words(frames).all(|(at, mask)| {
            let known = self.known.entry(at).or_insert_with(|| {
                let offset = bytes(at * 64);
                let present = mapping.resident(offset, bytes(64).min(mapping.bytes() - offset), self.fd.as_fd());
                present.into_iter().enumerate().fold(0, |word, (n, is)| word | u64::from(is) << n)
            });
            *known & mask == mask
        });
        if there {
            mapping.touch(bytes(frames.first), bytes(frames.count));
        }
        there
    }
}
