//! What pages are doing: the states of a page table, sets of them, and flags. The table has a picture of them.

/// What a page is doing. Owned is 0: columns begin as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    Owned = 0,
    /// Proposed, not yet taken.
    Queued = 1,
    /// Taken, not yet answered.
    Proposed = 2,
    Merged = 3,
    Zero = 4,
    /// Keeps the reference of what it was a copy of.
    Copied = 5,
    /// Keeps breaking.
    Waiting = 6,
    OverBudget = 7,
    /// Its client could not, for a reason that the books have no name for.
    Refused = 8,
    Excluded = 9,
    /// Refused: the program has pinned it.
    Pinned = 10,
    /// Refused: the kernel did not do it.
    Failed = 11,
    /// Refused: a forked child shares it.
    Forked = 12,
}

pub const STATES: usize = 13;

impl State {
    pub const ALL: [State; STATES] = [
        State::Owned,
        State::Queued,
        State::Proposed,
        State::Merged,
        State::Zero,
        State::Copied,
        State::Waiting,
        State::OverBudget,
        State::Refused,
        State::Excluded,
        State::Pinned,
        State::Failed,
        State::Forked,
    ];

    /// The set of just this state.
    pub const fn bit(self) -> u16 {
        1 << self as u8
    }
}

// Sets of states.
pub const MAPPED: u16 = State::Merged.bit() | State::Zero.bit() | State::Copied.bit();
pub const HELD: u16 = State::Queued.bit() | State::Proposed.bit() | MAPPED;
pub const UNHELD: u16 = !HELD & ((1 << STATES) - 1);

/// Declined by the client, but not for want of mappings.
pub const REFUSED: u16 = State::Refused.bit() | State::Pinned.bit() | State::Failed.bit() | State::Forked.bit();

/// Frames that a run may go on from: those of pages that will stay.
pub const IN_RUN: u16 = State::Queued.bit() | State::Proposed.bit() | State::Merged.bit();

// Flags.
/// Excluded as soon as nothing else is going on with the page.
pub const UNWANTED: u8 = 1;
pub const ADOPT_QUEUED: u8 = 2;
pub const ADOPT_SENT: u8 = 4;
// Of tracked pages. A page passes from the first to the third, a step a pass, unless it is written again.
/// Written since the pass began.
pub const WRITTEN: u8 = 8;
/// Written before that, or of unknown content: if it stays quiet, the next pass reads it.
pub const PENDING: u8 = 16;
/// This pass reads it.
pub const READING: u8 = 32;
/// In the unstable tree.
pub const LISTED: u8 = 64;
