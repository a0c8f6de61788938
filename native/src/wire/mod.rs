//! What the protocol says in numbers, for both sides: what a client writes down, and what the engine reads.

mod numbers;

use numbers::{ReleasedDetail, WrittenDetail};

pub use numbers::{DeclineReason, EventKind};

/// Most pages that the events of one call may be about, as memory.proto says: what a server does with a call is to be short.
pub const CALL_PAGES: u32 = 1 << 20;

/// `pool` of pages that map the zero page.
pub const ZERO_POOL: u32 = 0;

/// `detail` of a Released event: the pages were discarded, and not adopted.
pub const DISCARDED: u32 = ReleasedDetail::Discarded as u32;

/// `detail` of a Written event: written since the last look.
pub const WAS_WRITTEN: u32 = WrittenDetail::Written as u32;
/// `detail` of a Written event: perhaps written, for the pages were not watched for a while.
pub const MAY_BE_WRITTEN: u32 = WrittenDetail::Possibly as u32;
/// `detail` of a Written event: given back, and holes now.
pub const GIVEN_BACK: u32 = WrittenDetail::GivenBack as u32;
