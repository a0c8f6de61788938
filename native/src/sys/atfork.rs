//! pthread_atfork: what to call when a thread of this process forks, by whatever way leads through the C
//! library's fork().
//!
//! vfork, posix_spawn and clone(CLONE_VM) do not come by here: their children run in this very address
//! space. Neither do `_Fork` and the bare system call, which are for programs that do nothing but exec
//! afterwards.

use std::io;

/// Has the three called: before a fork, and after it in the parent and in the child, always by the thread
/// that forks. For good: handlers cannot be taken back.
pub fn register(before: extern "C" fn(), in_parent: extern "C" fn(), in_child: extern "C" fn()) -> io::Result<()> {
    // SAFETY: the functions are C functions without arguments, and live as long as the process: an extension module is
    // never unloaded. (The C library forgets handlers of a module that is.)
    match unsafe {
        libc::pthread_atfork(Some(as_unsafe(before)), Some(as_unsafe(in_parent)), Some(as_unsafe(in_child)))
    } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn as_unsafe(function: extern "C" fn()) -> unsafe extern "C" fn() {
    function
}

/// This process, as the kernel numbers it now: in a child of fork another than before.
pub fn process() -> u32 {
    std::process::id()
}
