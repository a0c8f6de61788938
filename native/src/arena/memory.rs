//! The memory behind a view and the blocks in it: addresses, and what has to be there for as long as anybody uses them.

use crate::sys::mmap::{Lease, ViewRange};
use crate::sys::object::Object;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The range itself. Shared by the view and by every block in it: the memory lives as long as anybody looks at it.
pub struct Memory {
    /// The addresses.
    pub range: ViewRange,
    // Looked at and changed under the lock of the space that it belongs to, so no fork finds it taken.
    behind: Mutex<Behind>,
}

/// What is behind memory. In a child, and in a child's child, there is more of it: what the parents wait for is held as long
/// as the memory is.
struct Behind {
    // The last is this process's. The lock of each says that somebody of the family may map it.
    segments: Vec<Arc<Object>>,
    // As long as pages may map frames, the server must not take the client for dead that has the references.
    leases: Vec<Arc<Lease>>,
    // Of forks.
    generations: Vec<Arc<Lease>>,
}

impl Memory {
    /// Memory over a segment; the lease is that of the client.
    pub fn new(range: ViewRange, segment: Arc<Object>, lease: Arc<Lease>) -> Memory {
        let behind = Behind { segments: vec![segment], leases: vec![lease], generations: Vec::new() };
        Memory { range, behind: Mutex::new(behind) }
    }

    /// The segment that this process keeps pages in.
    pub fn segment(&self) -> Arc<Object> {
        self.behind().segments.last().expect("there is one from the beginning").clone()
    }

    /// In a child, right after the fork: the parent waits for this.
    pub fn hold_generation(&self, lease: Arc<Lease>) {
        self.behind().generations.push(lease);
    }

    /// In a child that is a client of its own by now: the segment and the lease of that.
    pub fn attach(&self, segment: Arc<Object>, lease: Arc<Lease>) {
        let mut behind = self.behind();
        behind.segments.push(segment);
        behind.leases.push(lease);
    }

    /// The server has this process's references: those of its parents are not needed for it any more.
    pub fn let_parents_go(&self) {
        let mut behind = self.behind();
        let parents = behind.leases.len() - 1;
        behind.leases.drain(..parents);
    }

    /// Does something while that lock is taken.
    #[cfg(test)]
    pub fn while_looked_at<R>(&self, act: impl FnOnce() -> R) -> R {
        let _behind = self.behind();
        act()
    }

    fn behind(&self) -> MutexGuard<'_, Behind> {
        self.behind.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
