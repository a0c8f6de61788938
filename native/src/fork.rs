//! Forks: every space of the process is held and frozen before one, and let go of after it.
//!
//! ```text
//!   before      signals held back, the registry's lock, then for each space: its lock, a lease for the child, frozen
//!   in parent   each space goes on; its memory stays shared until the children are gone
//!   in child    each space is a copy of which only the bytes can be used
//! ```
//!
//! The C library calls these handlers for every fork() of the process, Python's and that of C code alike,
//! so nothing in here calls into Python or needs the GIL: the thread that forks may hold it, or not, or
//! have nothing to do with Python.
//!
//! **Lock order: registry, then spaces in the order in which they were made.** Every other thread holds the
//! registry while it takes no further lock, or one space and nothing else, for a window at most; and while
//! it does it needs neither the GIL nor any other lock. So the handler always gets them. A thread that
//! holds one of them takes no signals, hence no signal handler can fork there. Two ways to come in again
//! are left, and lead nowhere: a handler of somebody else's that forks in the middle of a fork finds
//! everything frozen already (`depth`), and a handler of a crash inside of pagefold itself finds that its
//! own thread holds a space, and leaves that one as it is: its child must exec.

use crate::error::{Error, Result};
use crate::space::Inner;
use crate::sys::atfork;
use crate::sys::forklock::{ForkLock, Recover};
use crate::sys::signals::HeldBack;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};

struct Registry {
    spaces: Vec<Weak<ForkLock<Inner>>>,
    hooked: bool,
    // The fork under way
    held: Vec<Arc<ForkLock<Inner>>>,
    parent: u32,
    depth: usize,
    signals: Option<HeldBack>,
}

impl Recover for Registry {
    /// A thread that forked is gone: whoever wants the spaces that it held takes them over one by one.
    fn recover(&mut self) {
        self.held.clear();
        self.depth = 0;
        std::mem::forget(self.signals.take()); // of that thread
    }
}

static REGISTRY: ForkLock<Registry> =
    ForkLock::new(Registry { spaces: Vec::new(), hooked: false, held: Vec::new(), parent: 0, depth: 0, signals: None });

/// Has a space take part in forks, as long as it lives.
pub fn take_part(space: &Arc<ForkLock<Inner>>) -> Result<()> {
    let mut registry = REGISTRY.lock();
    if !registry.hooked {
        // C libraries that hold a lock of their own while they call handlers do not call ours yet.
        atfork::register(before, after, after).map_err(|e| Error::System("registering what a fork needs", e))?;
        registry.hooked = true;
    }
    registry.spaces.retain(|space| space.strong_count() > 0);
    registry.spaces.push(Arc::downgrade(space));
    Ok(())
}

extern "C" fn before() {
    if REGISTRY.is_held_here() {
        REGISTRY.with_kept(|registry| registry.depth += 1);
        return;
    }
    let signals = HeldBack::all();
    REGISTRY.hold(|registry| {
        registry.signals = Some(signals);
        registry.parent = atfork::process();
        registry.depth = 1;
        for space in registry.spaces.iter().filter_map(Weak::upgrade) {
            if !space.is_held_here() {
                // Held and put right, whatever went wrong; to unwind into the C library would end the process.
                let _ = catch_unwind(AssertUnwindSafe(|| space.hold(Inner::before_fork)));
                registry.held.push(space);
            }
        }
    });
}

/// In the parent, or in the child. Which of them it is, the process's number says: a child that was forked
/// in the middle of a fork goes on with what its parent began, and is called as the parent.
extern "C" fn after() {
    let state = REGISTRY.with_kept(|registry| {
        registry.depth -= 1;
        (registry.depth == 0, registry.parent != atfork::process())
    });
    let Some((true, is_child)) = state else { return };
    let signals = REGISTRY.release(|registry| {
        for space in std::mem::take(&mut registry.held) {
            let go_on = if is_child { Inner::after_fork_in_child } else { Inner::after_fork_in_parent };
            let _ = catch_unwind(AssertUnwindSafe(|| space.release(go_on)));
        }
        registry.signals.take()
    });
    drop(signals); // with every lock free
}
