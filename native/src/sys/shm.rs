//! Shared-memory objects, seen through their descriptors: size, holes, room.

use super::{check, retry};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The object's size in bytes.
pub fn size(object: BorrowedFd<'_>) -> io::Result<usize> {
    // SAFETY: stat is plain data, for which all zeros is a value; fstat fills it or fails.
    let stat = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        check(libc::fstat(object.as_raw_fd(), &mut stat))?;
        stat
    };
    Ok(stat.st_size.max(0) as usize)
}

/// Gives the memory of a range back; it reads as zeros from then on. The size stays.
pub fn punch(object: BorrowedFd<'_>, offset: usize, bytes: usize) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no memory of ours is passed. That nobody maps or needs the pages is the caller's business (I4).
    retry(|| check(unsafe { libc::fallocate(object.as_raw_fd(), mode, offset as _, bytes as _) }).map(drop))
}

/// Whether the page at `offset` has memory, and is no hole.
pub fn is_data(object: BorrowedFd<'_>, offset: usize) -> io::Result<bool> {
    // SAFETY: no memory of ours is passed. The file offset that this moves is used by nobody: reads and writes name theirs.
    let found = unsafe { libc::lseek(object.as_raw_fd(), offset as libc::off_t, libc::SEEK_DATA) };
    if found >= 0 {
        return Ok(found as usize == offset);
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENXIO) => Ok(false), // nothing but a hole up to the end
        error => Err(error),
    }
}
