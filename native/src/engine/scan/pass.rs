//! A pass under way: what it has found so far, and where it goes on.

use crate::engine::ids::TableId;
use std::collections::VecDeque;

/// What a pass has found so far; `PassReport` has the meanings.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pass {
    pub visited: u64,
    pub proposed: u64,
    pub fresh: u64,
    pub volatile: u64,
    /// Pages entered into the unstable tree, tracked ones not included.
    pub unshared: u64,
    pub backlog: u64,
    pub unplaced: u64,
}

/// Where a pass is: tables that it has still to finish, and the page in the first of them.
#[derive(Debug, Default)]
pub struct Ahead {
    pub tables: VecDeque<TableId>,
    pub page: usize,
}
