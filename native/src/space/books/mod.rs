//! What a space knows without asking the kernel. Pure: nothing in here makes a system call.

pub mod agenda;
pub mod bits;
pub mod counts;
pub mod flags;
pub mod histogram;
pub mod journal;
pub mod proposal;
pub mod traces;
pub mod view_table;
