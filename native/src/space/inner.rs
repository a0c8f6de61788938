//! What the lock of a space guards: its views, the pools they map, and the means to hold writes.

use crate::arena::Arena;
use crate::arena::memory::Memory;
use crate::error::Error;
use crate::fork::generation::Generations;
use crate::page::Run;
use crate::space::books::counts::Counts;
use crate::space::books::flags::Flags;
use crate::space::books::journal::Journal;
use crate::space::books::view_table::{PageState, ViewTable};
use crate::space::headroom::Headroom;
use crate::space::pool::Pool;
use crate::space::redo::Redo;
use crate::space::tracker::Tracker;
use crate::space::view::View;
use crate::space::window::Barrier;
use crate::sys::doorbell::Doorbell;
use crate::sys::forklock::{ForkLock, Recover};
use crate::sys::mmap::{Lease, ReadMapping};
use crate::sys::object::Lent;
use crate::sys::pagemap::Pagemap;
use crate::wire::{DeclineReason, EventKind};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// What the lock guards.
pub(crate) struct Inner {
    pub views: BTreeMap<u32, View>,
    pub pools: BTreeMap<u32, Pool>,
    pub journal: Journal,
    pub barrier: Option<Barrier>,
    pub pagemap: Option<Pagemap>,
    pub tracker: Option<Tracker>,
    /// How long between two looks at a view, as a rule.
    pub poll: Duration,
    pub zeros: ReadMapping,
    pub budget: usize,
    pub window_pages: usize,
    /// What the program's limits leave, as of the last batch.
    pub headroom: Headroom,
    pub redo: Redo,
    pub closed: bool,
    pub flags: Arc<Flags>,
    pub generations: Generations,
    /// Whether forks get a lease: somebody will ask whether the children are gone.
    pub asks_for_children: bool,
    /// During a fork: the lease for the child.
    pub given: Option<Lease>,
    /// For views that are made: held as long as they are. A child has none.
    pub lease: Option<Arc<Lease>>,
    /// In a child: memory of the parent's, as long as blocks live in it, and what it mapped when it was inherited.
    pub inherited: Vec<(Weak<Memory>, ViewTable)>,
    /// In a child: spaces that have taken over such memory. Blocks keep this one, and so those: forks freeze them.
    pub successors: Vec<Arc<ForkLock<Inner>>>,
    /// What went wrong at the last fork.
    pub trouble: Option<Error>,
    /// Segments, and what is handed out of them.
    pub arena: Arena,
    /// Of the session.
    pub bell: Option<Arc<Doorbell>>,
    /// Descriptors that Python keeps beside ours: a child closes its copies.
    pub lent: BTreeMap<i32, Lent>,
}

impl Inner {
    /// Pages by state.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts { mappings: self.mappings(), budget: self.budget, ..Counts::default() };
        for view in self.views.values() {
            counts.owned += view.table.count(PageState::Owned);
            counts.merged += view.table.count(PageState::Merged);
            counts.zero += view.table.count(PageState::Zero);
            counts.copied += view.table.count(PageState::Copied) + view.table.count(PageState::CopiedZero);
            counts.frozen += view.table.count(PageState::Frozen);
            if view.inherited {
                counts.inherited += view.table.pages() - view.table.count(PageState::Inherited);
            }
            counts.shared += if view.shared { view.table.pages() } else { 0 };
        }
        counts
    }

    /// Mappings that all views take.
    pub fn mappings(&self) -> usize {
        self.views.values().map(|view| view.table.mappings()).sum()
    }

    /// Pages of views that are private to this process.
    pub fn private(&self) -> usize {
        self.views.values().map(|view| view.table.pages() - view.table.count(PageState::Owned)).sum()
    }

    /// Ends everything but the views.
    pub fn shut(&mut self) {
        self.closed = true;
        self.asks_for_children = false;
        self.generations.forget();
        self.bell = None;
        // A child's copies of these belong to the parent's address space; closed, they cannot hold anything up there.
        self.barrier = None;
        self.pagemap = None;
        self.tracker = None;
        self.pools.clear();
        self.redo.queue.clear();
        // The views stay: blocks may live in them, and a fork must freeze those as well.
    }
}

impl Recover for Inner {
    fn recover(&mut self) {
        let Inner { views, journal, barrier, redo, .. } = self;
        if let Some(barrier) = barrier {
            barrier.abandon();
        }
        if let Some(view) = redo.change.and_then(|change| views.get_mut(&change.segment)) {
            redo.follow(view, journal);
        }
        for proposal in redo.taken.drain(..).chain(redo.queue.drain(..)) {
            journal.push(proposal.event(EventKind::Declined, proposal.run(), DeclineReason::Failed as u32));
        }
        while let Some((segment, run)) = redo.punch.pop() {
            if let Some(view) = views.get_mut(&segment) {
                view.punch(run);
            }
        }
        if let Some(view) = redo.saving.take().and_then(|segment| views.get_mut(&segment)) {
            view.stale = true;
        }
        if let Some(view) = redo.looking.take().and_then(|segment| views.get_mut(&segment)) {
            view.table.set_unwatched(Run { first: 0, count: view.table.pages() });
        }
    }
}
