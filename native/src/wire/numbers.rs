//! Numbers of memory.proto. Made from it by `make proto`: change them there.

/// `EventKind` in memory.proto.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EventKind {
    /// The pages map the frames now (pool 0: the zero page). It answers a proposal.
    Merged = 1,
    /// The client declined the proposal for these pages; `detail` is a DeclineReason. It answers a proposal.
    Declined = 2,
    /// The pages were merged, and a write has made them private copies.
    Copied = 3,
    /// The pages map no frame any more: the client adopted or discarded them; `detail` is a ReleasedDetail.
    Released = 4,
    /// The client could not adopt the pages; `detail` is an errno. They keep their bytes and their frame references.
    NotAdopted = 5,
    /// From now on the pages must not be merged (advise), or may be merged again.
    Excluded = 6,
    /// From now on the pages must not be merged (advise), or may be merged again.
    Included = 7,
    /// What the server knows of the pages is out of date; `detail` is a WrittenDetail. Of a client with the tracker
    /// "pagemap" the server reads only pages that it reported.
    Written = 8,
    /// The pages have mapped these frames since before this session: a returning client tells it a restarted server.
    /// Right after it the client reports which of them are copies.
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
    /// The page is not owned, or the client does not have the segment.
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

/// `ReleasedDetail` in memory.proto.
#[allow(dead_code, reason = "native code does not say all of them")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ReleasedDetail {
    /// They are in their segment again.
    Adopted = 0,
    /// They are holes now.
    Discarded = 1,
}

/// `WrittenDetail` in memory.proto.
#[allow(dead_code, reason = "native code does not say all of them")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum WrittenDetail {
    /// Since the client's last look; with the tracker "pagemap" only.
    Written = 0,
    /// They may have been, for they were not tracked for a moment; with "pagemap" only.
    Possibly = 1,
    /// They are holes now.
    GivenBack = 2,
}
