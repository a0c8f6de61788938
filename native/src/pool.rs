//! A pool as a client sees it: frames that it may compare with and map, and never write.

use crate::error::{Error, Result};
use crate::page::{Run, bytes, page_size};
use crate::sys::mmap::Look;
use crate::sys::shm;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Least bytes of the pool that are mapped to compare with. Addresses cost nothing; a mapping that has to grow costs all
/// entries that its page tables have by then.
const LEAST_LOOK: usize = 1 << 28;

/// So many frames are looked for one by one.
const FEW: usize = 4;

/// An open pool.
pub struct Pool {
    fd: OwnedFd,
    look: Option<Look>,
    size: usize, // when it was last looked at
}

impl Pool {
    /// Takes over a descriptor that is open for reading.
    pub fn new(fd: OwnedFd) -> Pool {
        Pool { fd, look: None, size: 0 }
    }

    /// The descriptor to map frames of.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A mapping to compare with that covers `frames`; None if the pool does not reach that far.
    ///
    /// Pools only grow, so a frame that was there once stays there.
    pub fn look(&mut self, frames: Run) -> Result<Option<&Look>> {
        let needed = frames.end().checked_mul(page_size()).ok_or(Error::Range("a frame beyond any pool"))?;
        if needed > self.size {
            let size = shm::size(self.fd()).map_err(|e| Error::System("size of the pool", e))?;
            self.size = bytes(size / page_size());
            if needed > self.size {
                return Ok(None);
            }
        }
        if self.look.as_ref().is_none_or(|look| look.bytes() < needed) {
            self.look = None;
            let ahead = needed.max(LEAST_LOOK).checked_next_power_of_two().unwrap_or(self.size);
            let look = Look::map(self.fd.as_fd(), ahead).or_else(|_| Look::map(self.fd.as_fd(), self.size));
            self.look = Some(look.map_err(|e| Error::System("mapping the pool", e))?);
        }
        Ok(self.look.as_ref())
    }

    /// Has the kernel make frames ready for being compared, before writes are held for that. False if they are not there.
    pub fn prepare(&mut self, frames: Run) -> bool {
        if !matches!(self.look(frames), Ok(Some(_))) {
            return false;
        }
        let (offset, length) = (bytes(frames.first), bytes(frames.count));
        // To ask for a page or two by itself takes a sixth of what mincore does.
        let there = match frames.count {
            0..=FEW => (0..frames.count).all(|n| shm::is_data(self.fd(), offset + bytes(n)).unwrap_or(false)),
            _ => self.look.as_ref().is_some_and(|look| look.is_resident(offset, length)),
        };
        if there && let Some(look) = &self.look {
            look.touch(offset, length);
        }
        there
    }
}
