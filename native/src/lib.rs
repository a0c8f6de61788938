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
pub mod bits;
pub mod counts;
pub mod ending;
pub mod engine;
pub mod error;
pub mod faults;
pub mod freed;
pub mod gate;
pub mod histogram;
pub mod journal;
pub mod page;
mod proposal;
pub mod room;
pub mod states;
#[allow(unsafe_code, reason = "the system calls: see its head")]
pub mod sys;

mod adopt;
mod discard;
mod flags;
#[cfg_attr(not(feature = "python"), allow(dead_code, reason = "turns and hooks are an interpreter's"))]
mod fork;
mod generation;
mod harvest;
mod headroom;
mod inherit;
mod merge;
mod pool;
mod redo;
mod resume;
pub mod space;
mod thaw;
mod tracker;
mod view;
mod warden;
mod window;

#[cfg(feature = "python")]
mod py;
