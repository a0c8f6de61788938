//! What limits of the program's own leave to merging.
//!
//! A merged page is private to the process, where its segment's page was shared. So it counts against RLIMIT_DATA, with
//! which the kernel refuses the program's own memory and not the mappings of frames: half of what the program leaves of the
//! limit is taken, and `LEAST` is left. And where all memory is locked ahead (mlockall with MCL_FUTURE) the kernel makes a copy of
//! every frame when it is mapped: nothing is merged then, for it would be copied, taken back and merged again for ever.

use crate::page::page_size;
use crate::sys::limits;
use crate::sys::mmap::populates;
use crate::sys::pagemap::Pagemap;

/// Bytes that are left in any case: gRPC starts threads when it likes, each with a stack of 8 MiB, and ends a program in
/// which that fails.
const LEAST: usize = 64 << 20;

/// Pages that may become private at a fork, at which nobody can be asked: all but what threads need that gRPC starts again.
/// Where it is not known what is used, the kernel is left to refuse: what a child is not given it faults on.
pub fn at_fork() -> usize {
    let Some((limit, Some(used))) = limits::data() else { return usize::MAX };
    limit.saturating_sub(used).saturating_sub(LEAST / page_size())
}

/// Why pages are declined that could be merged otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hindrance {
    /// The program locks all its memory ahead.
    Locked,
    /// RLIMIT_DATA: the limit, and what is used of it, in pages.
    Data {
        /// The limit.
        limit: usize,
        /// What the process uses of it.
        used: usize,
    },
}

/// What there is, as of the beginning of a batch.
#[derive(Debug, Default)]
pub struct Headroom {
    /// Pages that may become private.
    pub pages: usize,
    /// Mappings that the view of this span may have.
    pub mappings: usize,
    /// The limit, if there is one, or that memory is locked ahead.
    bound: Option<Hindrance>,
    /// Something was declined for that.
    met: bool,
}

impl Headroom {
    /// Measures, for a space of which `ours` pages are private now.
    pub fn measure(pagemap: Option<&Pagemap>, ours: usize) -> Headroom {
        if pagemap.is_some_and(populates) {
            return Headroom { bound: Some(Hindrance::Locked), ..Headroom::default() };
        }
        let Some((limit, used)) = limits::data() else { return Headroom { pages: usize::MAX, ..Headroom::default() } };
        let used = used.unwrap_or(limit); // then nothing is merged, and nobody misses anything
        let left = limit.saturating_sub(used.saturating_sub(ours)); // by the program
        let share = (left / 2).min(left.saturating_sub(LEAST / page_size()));
        let bound = Some(Hindrance::Data { limit, used });
        Headroom { pages: share.saturating_sub(ours), bound, ..Headroom::default() }
    }

    /// Whether nothing may be merged, whatever room there is.
    pub fn is_locked(&self) -> bool {
        self.bound == Some(Hindrance::Locked)
    }

    /// Pages are declined for it.
    pub fn declined(&mut self) {
        self.met = true;
    }

    /// Whether pages were declined for it.
    pub fn met(&self) -> bool {
        self.met
    }

    /// What leaves no room at all.
    pub fn used_up(&self) -> Option<Hindrance> {
        self.bound.filter(|_| self.pages == 0)
    }
}
