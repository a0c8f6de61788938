//! What an engine refuses, as meanings.

use std::fmt;
use std::io;

/// A client reported something that its own proposals and pages rule out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// The columns of events are not of equal length.
    Columns,
    /// A client that has departed reports events.
    Departed,
    /// There is no such segment.
    Segment(i64),
    /// The pages (segment, first, count) do not exist.
    Outside(i64, i64, i64),
    /// There is no such kind of event.
    Kind(i64),
    /// The pages (segment, first, count) are in no state in which that can happen.
    State(i64, i64, i64),
    /// The pages (first, count) were proposed for other frames.
    Frames(i64, i64),
    /// The pages (first, count) cannot map frames from this one on.
    Resumed(i64, i64, i64),
    /// Written pages are reported by a client that does not track them.
    Untracked,
    /// The books take so many bytes, of so many that they may.
    Claims(usize, usize),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::Columns => f.write_str("the columns of events are not of equal length"),
            Violation::Departed => f.write_str("a client that has departed reports events"),
            Violation::Segment(segment) => write!(f, "segment {segment} is not known"),
            Violation::Outside(segment, first, count) => {
                write!(f, "pages {first}+{count} are outside of segment {segment}")
            }
            Violation::Kind(kind) => write!(f, "events of kind {kind} do not exist"),
            Violation::State(segment, first, count) => {
                write!(f, "pages {first}+{count} of segment {segment} are in no state in which that can happen")
            }
            Violation::Frames(first, count) => write!(f, "pages {first}+{count} were proposed for other frames"),
            Violation::Resumed(first, count, frame) => {
                write!(f, "pages {first}+{count} cannot map frames from {frame} on")
            }
            Violation::Claims(claims, most) => write!(
                f,
                "what is said of single pages takes {} KiB of the server's memory, and may take {}: as much as the memory that it is about",
                claims >> 10,
                most >> 10
            ),
            Violation::Untracked => f.write_str("written pages are reported by a client that does not track them"),
        }
    }
}

/// A failure of the engine, or a mistake of its caller.
#[derive(Debug)]
pub enum Error {
    /// The caller knows no client of this number.
    NoClient(i64),
    /// The client has no segment of this number.
    NoSegment(i64),
    /// The client is there already.
    ClientTaken(i64),
    /// A segment (client, segment) cannot be added: its number is taken, its client departed, or it has no pages.
    SegmentRefused(i64, i64),
    /// All segments of a domain together may have 2**32 pages, and this one is too many.
    NoPlace,
    /// There is no memory for a page table.
    NoMemory,
    /// The client is at fault. Its earlier events are booked.
    Violation(Violation),
    /// A system call failed; the text says which.
    System(&'static str, io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NoClient(client) => write!(f, "there is no client {client}"),
            Error::NoSegment(segment) => write!(f, "there is no segment {segment}"),
            Error::ClientTaken(client) => write!(f, "client {client} is there already"),
            Error::SegmentRefused(client, segment) => {
                write!(f, "segment {segment} cannot be added to client {client}")
            }
            Error::NoPlace => f.write_str("the segments of a domain have 2**32 pages together at most"),
            Error::NoMemory => f.write_str("there is no memory for the page table of a segment"),
            Error::Violation(violation) => violation.fmt(f),
            Error::System(what, source) => write!(f, "{what}: {source}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::System(_, source) => Some(source),
            _ => None,
        }
    }
}

impl From<Violation> for Error {
    fn from(violation: Violation) -> Error {
        Error::Violation(violation)
    }
}

/// The engine's result.
pub type Result<T> = std::result::Result<T, Error>;
