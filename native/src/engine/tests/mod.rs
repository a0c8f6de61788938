//! The engine's structures against naive models, by random operations. How many is for PROPTEST_CASES to say.

mod allocator;
mod engine;
mod queues;
mod table;
mod trees;
