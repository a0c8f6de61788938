//! flock: a lock that belongs to an open file description, so that a forked child holds it too, by its
//! descriptors and by its mappings. Whether a shared one is held by anybody is found out by trying to take
//! it exclusively, through an open of one's own.

use super::check;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// An object without a name to hold a lock on, one page long.
pub fn object() -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string; it is for people who look into /proc.
    let fd = check(unsafe { libc::memfd_create(c"pagefold-fork".as_ptr(), libc::MFD_CLOEXEC) })?;
    // SAFETY: the kernel made the descriptor just now, and nobody else knows it.
    let object = unsafe { OwnedFd::from_raw_fd(fd) };
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
    lock(object, libc::LOCK_SH).map(drop)
}

/// Whether nobody holds the lock. Through a descriptor that holds it itself, this would give it away.
pub fn is_free(object: &impl AsFd) -> bool {
    let free = lock(object, libc::LOCK_EX).is_ok();
    if free {
        let _ = lock(object, libc::LOCK_UN); // cannot fail for a lock that is held
    }
    free
}

fn lock(object: &impl AsFd, how: libc::c_int) -> io::Result<()> {
    // SAFETY: no memory of ours is passed. NB: what cannot be had now is an error, and not waited for.
    super::retry(|| check(unsafe { libc::flock(object.as_fd().as_raw_fd(), how | libc::LOCK_NB) }).map(drop))
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
