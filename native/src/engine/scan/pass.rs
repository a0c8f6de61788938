//! A pass under way: what it has found so far, where it goes on, and what a chunk of it has decided.

use crate::engine::ids::{MemberKey, TableId};
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

/// A frame whose bytes are still to be written.
pub struct Founded {
    pub frame: u32,
    pub digest: u64,
    /// The page that was seen before with this digest.
    pub twin: (TableId, usize),
    /// Which page of the chunk has the bytes.
    pub at: usize,
}

/// A page that was proposed, and is still to be queued.
pub struct Proposal {
    pub key: MemberKey,
    pub id: TableId,
    pub page: usize,
    pub frame: Option<u32>,
}
