//! How large a filesystem and the machine are.

use std::ffi::CStr;
use std::io;

/// Bytes of a filesystem, and how many of them are free for anybody. (0, 0): it has no limit.
pub fn filesystem(path: &CStr) -> io::Result<(u64, u64)> {
    let found = rustix::fs::statvfs(path)?;
    Ok((found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize))
}

/// Bytes of memory that the machine has.
pub fn physical() -> u64 {
    // SAFETY: sysconf takes a number and touches no memory of ours.
    let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
    pages.max(0) as u64 * crate::page::page_size() as u64
}
