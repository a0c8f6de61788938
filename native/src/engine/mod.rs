//! The engine: one domain's page tables, digests, two trees and frames. The port of `pagefold_server.engine.reference.engine`.
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

mod adopts;
mod allocator;
mod audit;
mod books;
mod calendar;
mod check;
mod chunk;
mod clients;
mod column;
mod counting;
mod digest;
mod error;
mod events;
mod founding;
mod frames;
mod matching;
mod pass;
mod places;
mod queues;
mod report;
mod scan;
mod segment;
mod stable;
mod state;
mod store;
mod table;
mod tables;
mod tree;
mod unstable;
mod values;

#[cfg(test)]
mod tests;

pub use audit::Held;
pub use error::{Error, Result, Violation};
pub use events::Columns;
pub use frames::{Fault, Miscount};
pub use queues::Instructions;
pub use report::{Counters, Left, Options, PassReport, SegmentCounts, Step};
pub use scan::Engine;
