//! The engine: one domain's page tables, digests, two trees and frames. The port of `pagefold_server.engine.reference.engine`.
//!
//! It makes the decisions that the reference makes, in the same order; a property test compares the two after every
//! step. What differs is how: pages are digested in chunks, on several threads if so wanted; frames that are founded
//! within a chunk are written together at its end; and equal digests are taken for equal pages where the reference
//! compares bytes, for the client compares them anyhow, with writes held (M4).
//!
//! ```text
//!   ids, error, report, digest   what everything below speaks of
//!   tables/                      pages of segments: states, flags, digests, and how they are read
//!   frames/                      the pool, its two trees, and who uses what
//!   books/                       members, what they hold and what they are asked; what events do to all that
//!   scan/                        the passes: what is read, matched, founded and proposed
//!   engine                       books and scan together
//!   tell/                        what is told of them; looked at and counted again
//! ```
//!
//! Each knows only what stands above it (`tools/check_modules.py`).
//! Nothing here knows of Python. An engine is used by one thread at a time; `py` holds a lock around it.

mod books;
mod digest;
#[expect(clippy::module_inception, reason = "the folder is named after it")]
mod engine;
mod error;
mod frames;
mod ids;
mod report;
mod scan;
mod tables;
mod tell;

#[cfg(test)]
mod tests;

pub use books::events::Columns;
pub use books::queues::Instructions;
pub use engine::Engine;
pub use error::{Error, Result, Violation};
pub use frames::{Fault, Miscount};
pub use report::{Counters, Left, Options, PassReport, SegmentCounts, Step};
pub use tell::Held;
