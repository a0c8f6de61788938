//! The warden: a thread that ends a window whose own thread is gone.
//!
//! A window ends when it is dropped, panics included. But a seccomp filter can kill a single thread (libseccomp's
//! SCMP_ACT_KILL does), and then nobody drops anything: writers would sleep for ever, and the lock stay taken. The
//! warden notices, takes the lock over and has the space put right.
//!
//! It costs a wake-up a second while windows are opened, and none while there are none: then it sleeps until the next.

use crate::sys::forklock::{ForkLock, Recover, wait, wake};
use crate::sys::thread;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Between two looks: a window lasts a fraction of a millisecond.
const PAUSE: Duration = Duration::from_secs(1);

/// As good as for ever.
const LONG: Duration = Duration::from_secs(1 << 20);

/// What the warden sees of windows.
#[derive(Default)]
pub struct WindowActivity {
    windows: AtomicU32,
    asleep: AtomicU32,
    ended: AtomicBool,
}

impl WindowActivity {
    /// No window will be opened any more.
    pub fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.stir();
    }

    /// A window is about to be opened.
    pub fn stir(&self) {
        self.windows.fetch_add(1, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) != 0 && self.asleep.swap(0, Ordering::SeqCst) != 0 {
            wake(&self.asleep, 1);
        }
    }
}

/// Starts the warden of a space. It ends with the space, and is not there in a forked child, which opens no windows.
pub fn start<T: Recover + Send + 'static>(space: Weak<ForkLock<T>>, activity: Arc<WindowActivity>) -> io::Result<()> {
    thread::start("pagefold-warden", 128 << 10, move || guard(&space, &activity))
}

fn guard<T: Recover + Send + 'static>(space: &Weak<ForkLock<T>>, activity: &WindowActivity) {
    let mut seen = activity.windows.load(Ordering::SeqCst);
    loop {
        std::thread::sleep(PAUSE);
        let Some(lock) = space.upgrade() else { return };
        drop(lock.take_over());
        let quiet = lock.is_free();
        drop(lock);
        if quiet && activity.ended.load(Ordering::SeqCst) {
            return; // blocks may live on in the space, and keep it
        }
        let windows = activity.windows.load(Ordering::SeqCst);
        if quiet && windows == seen {
            activity.asleep.store(1, Ordering::SeqCst);
            // Looked at again: a window that was opened since does not know that we sleep.
            while activity.windows.load(Ordering::SeqCst) == windows && activity.asleep.load(Ordering::SeqCst) != 0 {
                wait(&activity.asleep, 1, LONG);
            }
            activity.asleep.store(0, Ordering::SeqCst);
        }
        seen = windows;
    }
}
