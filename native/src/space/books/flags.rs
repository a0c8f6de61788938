//! What can be asked of a space without its lock.

use std::sync::atomic::{AtomicBool, Ordering};

/// What can be asked without the lock.
#[derive(Default)]
pub struct Flags {
    shared: AtomicBool,
    forked: AtomicBool,
}

impl Flags {
    /// Whether a forked child may share memory, or some is not thawed yet.
    pub fn is_shared(&self) -> bool {
        self.shared.load(Ordering::Acquire)
    }

    /// Whether this process is a child of the space's.
    pub fn is_forked(&self) -> bool {
        self.forked.load(Ordering::Acquire)
    }

    pub(crate) fn set_shared(&self, shared: bool) {
        self.shared.store(shared, Ordering::Release);
    }

    pub(crate) fn set_forked(&self) {
        self.forked.store(true, Ordering::Release);
    }
}
