//! How large a filesystem and the machine are.

use super::check;
use std::ffi::CStr;
use std::io;

/// Bytes of a filesystem, and how many of them are free for anybody. (0, 0): it has no limit.
pub fn filesystem(path: &CStr) -> io::Result<(u64, u64)> {
    // SAFETY: statvfs is plain data, for which all zeros is a value; the call fills it or fails. The path is a C string.
    let found = unsafe {
        let mut found: libc::statvfs = std::mem::zeroed();
        check(libc::statvfs(path.as_ptr(), &mut found))?;
        found
    };
    Ok((found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize))
}

/// Bytes of memory that the machine has.
pub fn physical() -> u64 {
    // SAFETY: sysconf takes a number and touches no memory of ours.
    let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
    pages.max(0) as u64 * super::page_size() as u64
}
