//! What is done with the pages of a space. Each file adds the methods of one operation to `Space` and `Inner`.

mod adopt;
mod attach;
mod discard;
mod freeze;
pub(super) mod harvest;
mod merge;
pub(super) mod resume;
