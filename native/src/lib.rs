//! The native half of pagefold: everything that touches the address space of a client, and the server's engine.
//!
//! ```text
//!   page, error, wire     sizes and runs; what can go wrong; the numbers of the protocol
//!   sys/                  every system call
//!   faults                points at which tests have something go wrong
//!
//!   fork/                 who takes part in a fork, and who waits for one      engine/   what a server knows of a domain,
//!   arena/                memory: segments, what is handed out, what is left             and which pages it proposes
//!   space/books/          what a space knows, without a system call
//!   space/                views and pools, the window, the redo log, the lock
//!   space/operations/     merge, adopt, discard, harvest, allocate, ...
//!   space/forks/          freeze, thaw, attach
//!
//!   py/                   what Python sees of both
//! ```
//!
//! Each line knows only lines above it, and neither column the other. `tools/check_modules.py` holds that.
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
