//! Threads of the library's own. No signal reaches them, from their first instruction on: a program's handlers expect its
//! own threads, and a thread of ours that takes a blocked SIGTERM would end a program that waits for it with sigtimedwait.
//! What they start (gRPC's threads, a server) inherits that.

use super::signals::HeldBack;
use std::cell::Cell;
use std::io;

thread_local! {
    static OURS: Cell<bool> = const { Cell::new(false) };
}

/// Starts one, with so many bytes of stack.
pub fn start(name: &str, stack: usize, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let _held = HeldBack::all(); // a thread begins with the mask of its starter
    let thread = std::thread::Builder::new().name(name.into()).stack_size(stack);
    thread.spawn(move || {
        OURS.set(true);
        work();
    })?;
    Ok(())
}

/// This thread, which was started otherwise, with all signals blocked, is one of them.
pub fn become_ours(name: &str) {
    OURS.set(true);
    let name = std::ffi::CString::new(name).unwrap_or_default();
    let _ = rustix::thread::set_name(&name); // the kernel takes 16 bytes of it at most
}

/// Whether this thread is one of them.
pub fn is_ours() -> bool {
    OURS.get()
}
