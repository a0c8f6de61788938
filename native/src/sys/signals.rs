//! Signals that wait for a moment.
//!
//! A signal handler may fork, or store into a buffer. If it came to a thread that holds the lock of a
//! space, or has a window open, it would wait for its own thread, for ever. So the thread that holds such a
//! lock takes no signals, for as long as it holds it. What a thread brings on itself (SIGSEGV and its like)
//! is not held back: a crash handler is to be called.

use std::mem::MaybeUninit;

const OF_THE_THREADS_OWN: [libc::c_int; 7] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGABRT, libc::SIGSYS];

/// The calling thread takes no signals until this is dropped, on the same thread. It nests. A child of fork
/// inherits the state, and its copy of this ends it there.
pub struct HeldBack {
    before: libc::sigset_t,
}

impl HeldBack {
    /// Begins.
    pub fn all() -> HeldBack {
        let (mut set, mut before) = (MaybeUninit::<libc::sigset_t>::uninit(), MaybeUninit::<libc::sigset_t>::uninit());
        // SAFETY: sigfillset makes the set a value; the others change it, and read and fill sets of ours. With a valid
        // `how` and valid pointers pthread_sigmask cannot fail, so `before` is a value afterwards.
        unsafe {
            libc::sigfillset(set.as_mut_ptr());
            for signal in OF_THE_THREADS_OWN {
                libc::sigdelset(set.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr());
            HeldBack { before: before.assume_init() }
        }
    }
}

impl Drop for HeldBack {
    fn drop(&mut self) {
        // SAFETY: the set was filled by the kernel.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    static CAME: AtomicUsize = AtomicUsize::new(0);

    extern "C" fn note(_: libc::c_int) {
        CAME.fetch_add(1, Ordering::SeqCst);
    }

    #[test]
    fn a_signal_waits_until_the_outermost_ends() {
        let handler: extern "C" fn(libc::c_int) = note;
        // SAFETY: the handler does nothing but count; SIGURG is ignored where nobody handles it.
        unsafe { libc::signal(libc::SIGURG, handler as libc::sighandler_t) };
        let outer = HeldBack::all();
        let inner = HeldBack::all();
        // SAFETY: a signal to this very thread.
        unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGURG) };
        drop(inner);
        assert_eq!(CAME.load(Ordering::SeqCst), 0);
        drop(outer);
        assert_eq!(CAME.load(Ordering::SeqCst), 1);
    }
}
