//! What is told of an engine: who holds which frame, whether the books are right, and how much there is of everything.

mod audit;
mod check;
mod counting;

pub use audit::Held;
