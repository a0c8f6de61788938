//! What is done with the pages of a space. Each file adds the methods of one operation to `Space` and `Inner`.

mod adopt;
mod allocate;
mod announce;
mod discard;
mod figures;
mod harvest;
mod merge;
pub(super) mod resume;
mod views;
pub(crate) mod wait;
mod wishes;
