//! Numbers of memory.proto. Made from it by `make proto`: change them there.

/// `EventKind` in memory.proto.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EventKind {
    /// The pages map the frames now (pool 0: the zero page). Answers a proposal.
    Merged = 1,
    /// The proposal for these pages was not carried out. Answers a proposal; `detail` is a DeclineReason.
    Declined = 2,
    /// The pages were merged and have been written since: they are private copies now.
    Copied = 3,
    /// The pages map no frame any more: adopted (detail 0) or discarded (detail 1).
    Released = 4,
    /// The pages could not be adopted; `detail` is an errno. They keep their bytes and their frame reference.
    NotAdopted = 5,
    /// The pages are not to be merged from now on (advise), or may be again.
    Excluded = 6,
    /// The pages are not to be merged from now on (advise), or may be again.
    Included = 7,
    /// What was known of the pages is not so any more: they were written since the client looked last (detail 0), or
    /// may have been, for they were not tracked for a moment (detail 1), or were given back and are holes (detail 2).
    /// Only clients with the tracker "pagemap" report details 0 and 1, and of their pages only those that they have
    /// reported are ever read.
    Written = 8,
    /// The pages map these frames since before this session began: what a client that comes back tells a server that
    /// was started anew. Copies of frames are reported as copied right after.
    Resumed = 9,
}

impl EventKind {
    /// The one of this number. None: there is none, or it is UNSPECIFIED.
    pub fn numbered(number: i64) -> Option<EventKind> {
        match number {
            1 => Some(EventKind::Merged),
            2 => Some(EventKind::Declined),
            3 => Some(EventKind::Copied),
            4 => Some(EventKind::Released),
            5 => Some(EventKind::NotAdopted),
            6 => Some(EventKind::Excluded),
            7 => Some(EventKind::Included),
            8 => Some(EventKind::Written),
            9 => Some(EventKind::Resumed),
            _ => None,
        }
    }
}

/// `DeclineReason` in memory.proto.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DeclineReason {
    /// Bytes of page and frame differ, or the page is a hole.
    Changed = 1,
    /// The mapping budget is used up.
    Budget = 2,
    /// Inside pinned(), or excluded by advise().
    Pinned = 3,
    /// The page is not owned, or its segment is not there (any more).
    State = 4,
    /// A system call failed.
    Failed = 5,
    /// A forked child still shares the segment.
    Forked = 6,
}

impl DeclineReason {
    /// The one of this number. None: there is none, or it is UNSPECIFIED.
    pub fn numbered(number: i64) -> Option<DeclineReason> {
        match number {
            1 => Some(DeclineReason::Changed),
            2 => Some(DeclineReason::Budget),
            3 => Some(DeclineReason::Pinned),
            4 => Some(DeclineReason::State),
            5 => Some(DeclineReason::Failed),
            6 => Some(DeclineReason::Forked),
            _ => None,
        }
    }
}
