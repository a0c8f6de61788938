//! Limits of this process that private mappings count against.

use crate::page::page_size;

/// Pages of private, writable memory that RLIMIT_DATA allows, and that are used of it, if the kernel says that: it takes a
/// descriptor, and /proc. None: there is no limit.
pub fn data() -> Option<(usize, Option<usize>)> {
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the kernel fills the structure, or fails and leaves it as it is.
    unsafe { libc::getrlimit(libc::RLIMIT_DATA, &raw mut limit) };
    if limit.rlim_cur == libc::RLIM_INFINITY {
        return None;
    }
    let pages = usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX) / page_size();
    // Data and stacks together, in pages.
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    Some((pages, text.split_whitespace().nth(5).and_then(|word| word.parse().ok())))
}
