//! flock: a lock that belongs to an open file description, so that a forked child holds it too, by its
//! descriptors and by its mappings. Whether a shared one is held by anybody is found out by trying to take
//! it exclusively, through an open of one's own.

use rustix::fs::{FlockOperation, MemfdFlags, flock, memfd_create};
use rustix::io::retry_on_intr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// An object without a name to hold a lock on, one page long.
pub fn object() -> io::Result<OwnedFd> {
    let object = memfd_create(c"pagefold-fork", MemfdFlags::CLOEXEC)?; // the name is for people who look into /proc
    super::shm::resize(object.as_fd(), crate::page::page_size())?;
    Ok(object)
}

/// Opens an object again: another open file description, with locks of its own.
pub fn reopen(object: &impl AsFd) -> io::Result<OwnedFd> {
    let file = std::fs::File::open(format!("/proc/self/fd/{}", object.as_fd().as_raw_fd()))?; // read-only, close-on-exec
    Ok(file.into())
}

/// Takes the shared lock.
pub fn share(object: &impl AsFd) -> io::Result<()> {
    lock(object, FlockOperation::NonBlockingLockShared)
}

/// Whether nobody holds the lock. Through a descriptor that holds it itself, this would give it away.
pub fn is_free(object: &impl AsFd) -> bool {
    let free = lock(object, FlockOperation::NonBlockingLockExclusive).is_ok();
    if free {
        let _ = lock(object, FlockOperation::NonBlockingUnlock); // cannot fail for a lock that is held
    }
    free
}

/// What cannot be had now is an error, and not waited for.
fn lock(object: &impl AsFd, how: FlockOperation) -> io::Result<()> {
    Ok(retry_on_intr(|| flock(object, how))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_as_long_as_the_description_lives() {
        let held = object().unwrap();
        let probe = reopen(&held).unwrap();
        assert!(is_free(&probe));
        share(&held).unwrap();
        assert!(!is_free(&probe) && !is_free(&probe));
        let lease = crate::sys::mmap::Lease::hold(held).unwrap();
        assert!(!is_free(&probe));
        drop(lease);
        assert!(is_free(&probe) && is_free(&probe));
    }
}
