//! The members of a domain (clients, as its engine sees them): their segments, and what they are to be told or have not answered.

use crate::engine::books::queues::{AdoptQueue, MergeQueue};
use crate::engine::error::{Error, Result};
use crate::engine::ids::{MemberKey, TableId};
use crate::page::Run;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What there is to know of one member.
pub struct Member {
    /// The caller's number.
    pub number: i64,
    /// It may answer; a departed client does not, and keeps what it has.
    pub listening: bool,
    segments: HashMap<i64, TableId>,
    pub tables: BTreeSet<TableId>, // in the order in which they came
    pub merges: MergeQueue,
    pub adopts: AdoptQueue,
    /// Pages proposed, sent or not, and not answered.
    pub proposed: usize,
    /// Pages to adopt, not yet taken.
    pub asking: usize,
    /// Pages to adopt, not yet answered; those not taken included.
    pub adopting: usize,
    /// What was declined for want of mappings, first page and count: all pages that rest for that are among them, so
    /// that nobody has to look for these in whole tables.
    over_budget: BTreeMap<(TableId, usize), usize>,
}

impl Member {
    fn new(number: i64) -> Member {
        Member {
            number,
            listening: true,
            segments: HashMap::new(),
            tables: BTreeSet::new(),
            merges: MergeQueue::default(),
            adopts: AdoptQueue::default(),
            proposed: 0,
            asking: 0,
            adopting: 0,
            over_budget: BTreeMap::new(),
        }
    }

    /// The table of the caller's segment.
    pub fn segment(&self, number: i64) -> Option<TableId> {
        self.segments.get(&number).copied()
    }

    pub fn add_segment(&mut self, number: i64, id: TableId) {
        self.segments.insert(number, id);
        self.tables.insert(id);
    }

    pub fn remove_segment(&mut self, number: i64) {
        if let Some(id) = self.segments.remove(&number) {
            self.tables.remove(&id);
            self.over_budget.retain(|(table, _), _| *table != id);
        }
    }

    /// These pages rest until there is room for mappings.
    pub fn add_over_budget(&mut self, id: TableId, run: Run) {
        let count = self.over_budget.entry((id, run.first)).or_default();
        *count = run.count.max(*count);
    }

    /// What it takes to know them, about.
    pub fn claims(&self) -> usize {
        self.over_budget.len() * 2 * size_of::<((TableId, usize), usize)>()
    }

    /// Takes out where pages may be that rest until there is room for mappings.
    pub fn take_over_budget(&mut self) -> impl Iterator<Item = (TableId, Run)> + use<> {
        let taken = std::mem::take(&mut self.over_budget);
        taken.into_iter().map(|((id, first), count)| (id, Run { first, count }))
    }

    /// Whether there is something to tell it.
    pub fn is_queued(&self) -> bool {
        !self.merges.is_empty() || self.asking > 0
    }
}

/// All members, by the caller's number and in the order in which they came.
#[derive(Default)]
pub struct Members {
    members: BTreeMap<MemberKey, Member>,
    keys: HashMap<i64, MemberKey>,
    made: u64,
}

impl Members {
    pub fn add(&mut self, number: i64) -> Result<()> {
        if self.keys.contains_key(&number) {
            return Err(Error::ClientTaken(number));
        }
        self.made += 1;
        let key = MemberKey(self.made);
        self.keys.insert(number, key);
        self.members.insert(key, Member::new(number));
        Ok(())
    }

    pub fn remove(&mut self, key: MemberKey) -> Member {
        let member = self.members.remove(&key).expect("the member is there");
        self.keys.remove(&member.number);
        member
    }

    /// The client that the caller calls so.
    pub fn key(&self, number: i64) -> Result<MemberKey> {
        self.keys.get(&number).copied().ok_or(Error::NoClient(number))
    }

    pub fn find(&self, key: MemberKey) -> Option<&Member> {
        self.members.get(&key)
    }

    /// A member that is there.
    pub fn get(&self, key: MemberKey) -> &Member {
        &self.members[&key]
    }

    /// A member that is there.
    pub fn get_mut(&mut self, key: MemberKey) -> &mut Member {
        self.members.get_mut(&key).expect("the member is there")
    }

    pub fn iter(&self) -> impl Iterator<Item = (MemberKey, &Member)> {
        self.members.iter().map(|(key, member)| (*key, member))
    }
}
