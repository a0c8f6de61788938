//! What can go wrong, as meanings. The errno is kept as the source.

use std::fmt;
use std::io;

/// A failure of the native half.
#[derive(Debug)]
pub enum Error {
    /// A system call failed; the text says which and on what.
    System(&'static str, io::Error),
    /// No view has this number.
    NoView(u32),
    /// The number is taken.
    Taken(u32),
    /// A range lies outside of its view, or a size makes no sense.
    Range(&'static str),
    /// A forked child may still share the view; wait for it to end.
    Shared,
    /// This thread is in the middle of a fork and holds the space.
    Forking,
    /// The space was closed, or belongs to the parent of this process.
    Closed,
}

impl Error {
    /// The errno behind a failed system call, 0 where there is none.
    pub fn errno(&self) -> i32 {
        match self {
            Error::System(_, source) => source.raw_os_error().unwrap_or(0),
            _ => 0,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::System(what, source) => write!(f, "{what}: {source}"),
            Error::NoView(number) => write!(f, "no view has number {number}"),
            Error::Taken(number) => write!(f, "number {number} is taken"),
            Error::Range(what) => f.write_str(what),
            Error::Shared => f.write_str("a forked child may still share this memory"),
            Error::Forking => f.write_str("this thread is in the middle of a fork: do not use pagefold in fork hooks"),
            Error::Closed => f.write_str("the space is closed"),
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

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;
