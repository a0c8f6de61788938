//! The native half of pagefold: everything that touches the address space of a client, and the server's engine.
//!
//! The ladder, each step knowing only those before it:
//! `page` (sizes and runs) -> `sys` (every system call) -> `bits`, `counts`, `flags`, `freed`, `gate`, `histogram`, `journal`,
//! `states` (pure books) -> `ending`, `generation`, `pool`, `room`, `view`, `window`, `tracker` -> `merge`, `adopt`, `discard`,
//! `thaw`, `harvest`, `redo`, `resume`, `inherit`, `fork` -> `space` -> `arena`, `warden`, `py`. `faults` is for tests, and may be
//! called from everywhere.
//! `engine` stands beside it, on `page`, `sys` and `faults` alone, and has a ladder of its own.
//!
//! What this crate keeps true: a page is switched to a frame only while writes to it are held and the bytes are
//! equal (I2), a window ends on every path (I8), and no number that a caller passes can change what a page reads.
//! Which pages to merge is decided in `engine`; when, in neither.

#![deny(unsafe_code)]

pub mod arena;
pub mod engine;
pub mod error;
pub mod faults;
#[cfg_attr(not(feature = "python"), allow(dead_code, reason = "turns and hooks are an interpreter's"))]
mod fork;
pub mod page;
pub mod space;
#[allow(unsafe_code, reason = "the system calls: see its head")]
pub mod sys;
pub mod wire;

#[cfg(feature = "python")]
mod py;
