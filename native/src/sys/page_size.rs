//! The kernel's base page. Below everything else: what counts in pages needs it, the rest of `sys` too.

/// Its size in bytes.
pub fn page_size() -> usize {
    // SAFETY: sysconf takes a number and touches no memory of ours.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).expect("the kernel has a page size")
}
