//! The engine: one domain's page tables, digests, two trees and frames. The port of `pagefold_server.reference`.
//!
//! It makes the decisions that the reference makes, in the same order; a property test compares the two after every
//! step. What differs is how: pages are digested in chunks, on several threads if so wanted; frames that are founded
//! within a chunk are written together at its end; and equal digests are taken for equal pages where the reference
//! compares bytes, for the client compares them anyhow, with writes held (M4).
//!
//! ```text
//!   column, values, state, table, queues, calendar, allocator, tree, places pure books
//!   segment, store                                                   a table, an allocator, and their descriptors
//!   tables, stable, frames, unstable, clients                        all of a kind
//!   books (events, adopts)                                           what events do to them
//!   engine (pass, matching, founding), chunk, digest                 the scan
//!   counting, audit, check                                           what is told of it; looked at and counted again
//! ```
//!
//! Nothing here knows of Python. An engine is used by one thread at a time; `py` holds a lock around it.

mod books;
mod digest;
mod error;
mod frames;
mod ids;
mod report;
mod scan;
mod tables;
mod tell;

#[cfg(test)]
mod tests;

pub use books::Columns;
pub use books::queues::Instructions;
pub use error::{Error, Result, Violation};
pub use frames::{Fault, Miscount};
pub use report::{Counters, Left, Options, PassReport, SegmentCounts, Step};
pub use scan::Engine;
pub use tell::Held;
