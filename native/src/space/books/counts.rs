//! What a space tells of itself in numbers.

use std::time::Duration;

/// Pages by state, and mappings.
#[derive(Default, Clone, Copy)]
pub struct Counts {
    /// Pages owned; holes included.
    pub owned: usize,
    /// Pages on frames.
    pub merged: usize,
    /// Pages on the zero page.
    pub zero: usize,
    /// Pages that were either, and were written.
    pub copied: usize,
    /// Pages frozen by a fork.
    pub frozen: usize,
    /// Pages of views that a forked child may share.
    pub shared: usize,
    /// Of memory that was a parent's: pages that are this client's by now.
    pub inherited: usize,
    /// Mappings that the views take.
    pub mappings: usize,
    /// Most that they may take.
    pub budget: usize,
}

/// How long windows lasted.
#[derive(Default, Clone, Copy)]
pub struct WindowStats {
    /// How many there were.
    pub windows: u64,
    /// Half of them were no longer.
    pub p50: Duration,
    /// 99 % of them were no longer.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
    /// The longest, without the time for which its thread was off the processor.
    pub max_running: Duration,
    /// How many outlasted their bound.
    pub over_bound: u64,
}
