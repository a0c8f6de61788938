//! Waiting for something to do: for the doorbell of the server, or for news of our own.

use crate::error::{Error, Result};
use crate::space::Space;
use crate::sys::doorbell::Doorbell;
use std::time::{Duration, Instant};

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The doorbell.
    Rung,
    /// There are events or freed extents.
    News,
    /// Nothing of the kind.
    Idle,
}

impl Space {
    /// Waits for the doorbell, or for news of our own.
    pub fn wait(&self, doorbell: &Doorbell, poll: Duration, timeout: Duration) -> Result<Woken> {
        let end = Instant::now() + timeout;
        self.inner.lock().poll = poll;
        loop {
            if !self.freed.is_empty() || self.pending() > 0 {
                return Ok(Woken::News);
            }
            let left = end.saturating_duration_since(Instant::now());
            let pause = self.inner.lock().pause().min(left);
            if doorbell.wait(pause).map_err(|e| Error::System("waiting for the doorbell", e))? {
                return Ok(Woken::Rung);
            }
            if self.harvest(false, true)? == 0 && Instant::now() >= end && self.freed.is_empty() {
                return Ok(Woken::Idle);
            }
        }
    }
}
