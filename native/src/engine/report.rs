//! What goes in and comes out in numbers. The meanings are those of `pagefold_server.engine.interface`.

/// What an operator may change while the engine runs. Names are KSM's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Merge pages of zeros with the kernel's zero page.
    pub use_zero_pages: bool,
    /// Most pages that one frame serves.
    pub max_page_sharing: u32,
    /// Leave pages alone for a while that were written after they were merged.
    pub smart_scan: bool,
    /// Most pages proposed to one client and not yet answered.
    pub max_outstanding: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { use_zero_pages: true, max_page_sharing: 256, smart_scan: true, max_outstanding: 16384 }
    }
}

/// What one full pass found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassReport {
    /// Passes finished so far, this one included.
    pub number: u64,
    /// Pages read.
    pub visited: u64,
    /// Pages proposed for merging.
    pub proposed: u64,
    /// Pages that had changed since the previous pass, but not between the two before it.
    pub fresh: u64,
    /// All pages that had changed since the previous pass.
    pub volatile: u64,
    /// Settled, and like no other page.
    pub unshared: u64,
    /// Left alone because they keep breaking.
    pub waiting: u64,
    /// Not done in this pass, and worth another one.
    pub backlog: u64,
    /// They have an equal, and there was no room for a frame.
    pub unplaced: u64,
}

/// What one slice of scanning did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Pages read.
    pub visited: u64,
    /// The pass that ended with this slice, if one did.
    pub finished: Option<PassReport>,
}

/// The books in KSM's terms, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each has its meaning in admin.proto")]
pub struct Counters {
    pub pages_shared: u64,
    pub pages_sharing: u64,
    pub pages_unshared: u64,
    pub pages_volatile: u64,
    pub pages_skipped: u64,
    pub pages_scanned: u64,
    pub full_scans: u64,
    pub zero_pages: u64,
    pub stable_node_dups: u64,
    pub pages_merged: u64,
    pub pages_broken: u64,
    pub pages_declined: u64,
    pub pages_over_budget: u64,
    pub pages_refused: u64,
    pub pages_waiting: u64,
    pub pages_unplaced: u64,
    pub pages_proposed: u64,
    pub bookkeeping_bytes: u64,
}

/// One client's pages that were to be merged and are not, by what keeps them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the states are explained in `state`")]
pub struct Left {
    pub over_budget: usize,
    pub refused: usize,
    pub pinned: usize,
    pub failed: usize,
    pub forked: usize,
    pub copied: usize,
    pub waiting: usize,
}

/// One segment's pages by state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the states are explained in `table`")]
pub struct SegmentCounts {
    pub merged: usize,
    pub zero: usize,
    pub copied: usize,
    pub proposed: usize,
}
