//! A pool as a client sees it: frames that it may compare with and map, and never write.

use crate::error::{Error, Result};
use crate::page::{Run, bytes, page_size};
use crate::sys::mmap::Look;
use crate::sys::shm;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// An open pool.
pub struct Pool {
    fd: OwnedFd,
    look: Option<Look>,
}

impl Pool {
    /// Takes over a descriptor that is open for reading.
    pub fn new(fd: OwnedFd) -> Pool {
        Pool { fd, look: None }
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
        if self.look.as_ref().is_none_or(|look| look.bytes() < needed) {
            let size = shm::size(self.fd()).map_err(|e| Error::System("size of the pool", e))?;
            let whole = bytes(size / page_size());
            if whole < needed {
                return Ok(None);
            }
            self.look = Some(Look::map(self.fd.as_fd(), whole).map_err(|e| Error::System("mapping the pool", e))?);
        }
        Ok(self.look.as_ref())
    }
}
