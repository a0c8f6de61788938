//! Extents of blocks that died, until the arena takes them back.
//!
//! A block may die in any thread, at any moment, with the GIL held. So its lock is taken by nobody who could wait for
//! anything meanwhile, and is never held across a system call.

use crate::page::Run;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Extents of blocks that died.
#[derive(Default)]
pub struct Freed {
    extents: Mutex<Vec<(u32, usize, usize)>>,
    // Read without the lock, so that a waiting thread never holds it while another thread forks.
    waiting: AtomicUsize,
}

impl Freed {
    /// Adds one.
    pub fn push(&self, segment: u32, run: Run) {
        let mut extents = self.extents.lock().unwrap_or_else(PoisonError::into_inner);
        extents.push((segment, run.first, run.count));
        self.waiting.store(extents.len(), Ordering::Release);
    }

    /// Takes all.
    pub fn take_extents(&self) -> Vec<(u32, usize, usize)> {
        let mut extents = self.extents.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.store(0, Ordering::Release);
        std::mem::take(&mut extents)
    }

    /// Whether there is none. Takes no lock.
    pub fn is_empty(&self) -> bool {
        self.waiting.load(Ordering::Acquire) == 0
    }
}
