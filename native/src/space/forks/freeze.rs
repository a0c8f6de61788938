//! Freeze: what a fork does to owned pages.
//!
//! A shared mapping would let parent and child write into each other's memory. So before a fork owned pages are mapped
//! privately, onto the same segment pages: both processes copy on write from there, and nothing changes underneath
//! them, because a shared view is neither written, punched nor adopted until the last child is gone.

use crate::arena::memory::Memory;
use crate::error::{Error, Result};
use crate::faults;
use crate::fork::ForkParticipant;
use crate::page::{Run, bytes, page_size, pieces};
use crate::space::books::view_table::PageState;
use crate::space::headroom;
use crate::space::inner::Inner;
use crate::space::redo::{Change, Mapped};
use crate::sys::forklock::{ForkLock, Recover};
use crate::sys::object::Lent;
use crate::sys::shm;
use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

impl Inner {
    /// Freezes every view, whatever happens: nothing can stop the fork any more, and what is not frozen the child would write
    /// to in its parent. So after a panic it is tried once more (what was done is done), and then withheld.
    fn prepare_fork(&mut self) -> Result<()> {
        let mut freeze = || {
            let frozen = catch_unwind(AssertUnwindSafe(|| self.freeze()));
            frozen.inspect_err(|_| self.recover())
        };
        freeze().or_else(|_| freeze()).unwrap_or_else(|_| {
            self.withhold();
            Err(Error::Range("freezing memory before a fork failed: the child does not get all of it"))
        })
    }

    /// A fork begins, and this thread has the lock until it is over. What goes wrong is told afterwards: `trouble`.
    ///
    /// In a child nothing is left to do: all that it inherited is private to it, or a view of another space by now.
    pub fn before_fork(&mut self) {
        if self.flags.is_forked() || self.views.is_empty() {
            return;
        }
        let mut trouble = None;
        if self.asks_for_children {
            match self.generations.begin() {
                Ok(lease) => self.given = Some(lease),
                Err(error) => trouble = Some(error),
            }
        }
        self.trouble = self.prepare_fork().err().or(trouble);
        self.flags.set_shared(true);
    }

    /// The fork is over, and this is still the parent.
    pub fn after_fork_in_parent(&mut self) {
        self.given = None; // unmapped and closed: only the child holds it now
        self.give_back();
        if self.flags.is_shared()
            && let Some(bell) = &self.bell
        {
            bell.ring(); // somebody has to look when the children are gone
        }
    }

    /// This process is the child: its copy of the space is one whose bytes can be used, and nothing else.
    pub fn after_fork_in_child(&mut self) {
        if self.flags.is_forked() {
            return; // a child's child: it holds what its parent inherited, by descriptors and mappings alike
        }
        self.flags.set_forked();
        if let Err(error) = self.take_copies() {
            self.trouble = Some(error);
        }
        self.shut();
        // Memory is held by its blocks alone from here on, and by it the leases: whatever else of the parent's program is
        // never released here (the frames of threads that do not exist, say), it waits for no more than it has to.
        let lease = self.given.take().map(Arc::new);
        for view in std::mem::take(&mut self.views).into_values() {
            if let Some(lease) = &lease {
                view.memory.hold_generation(lease.clone());
            }
            let mut table = view.table;
            table.become_snapshot();
            self.inherited.push((Arc::downgrade(&view.memory), table));
        }
        self.lease = None;
        self.arena.forget();
        std::mem::take(&mut self.lent).into_values().for_each(Lent::close);
    }

    /// Freezes every view. The mapping is replaced in one step, so writers need not be held: what they wrote before is in
    /// the segment, what they write after is copied.
    ///
    /// Pinned pages stay as they are, since a device goes on writing to the segment; the child gets a copy of them, and
    /// of what the kernel refuses to freeze. Without memory for the copy, or where RLIMIT_DATA has no room for either, the
    /// child gets nothing there, and faults. A fork cannot be stopped, so all views are seen to before the first error is told.
    fn freeze(&mut self) -> Result<()> {
        let mut failed = Ok(());
        let mut room = headroom::at_fork();
        let Inner { views, journal, redo, .. } = self;
        for (&segment, view) in views {
            let whole = Run { first: 0, count: view.table.pages() };
            view.shared = true;
            view.thawed = 0;
            let mut owned = Vec::new();
            pieces(
                whole,
                |page| (view.table.state(page) == PageState::Owned, view.table.is_pinned(page)),
                |run, (is, pinned)| owned.extend(is.then_some((run, pinned))),
            );
            for (run, pinned) in owned {
                let memory = view.memory.clone();
                let fits = run.count <= room;
                if !fits {
                    let error = io::Error::from_raw_os_error(libc::ENOMEM);
                    failed = failed.and(Err(Error::System("freezing memory before a fork, within RLIMIT_DATA", error)));
                } else if !pinned {
                    let frozen = faults::check("freeze.map").and_then(|()| {
                        memory.range.map_frozen(bytes(run.first), bytes(run.count), memory.segment().as_fd())
                    });
                    let Err(error) = frozen else {
                        redo.change = Some(Change { segment, run, mapped: Mapped::Frozen });
                        room -= run.count;
                        faults::hit("freeze.mapped");
                        redo.follow(view, journal);
                        continue;
                    };
                    if view.ensure_mapped(run) {
                        view.table.set_unwatched(run);
                    }
                    failed = failed.and(Err(Error::System("freezing memory before a fork", error)));
                }
                match fits.then(|| copies(&memory, run)).flatten() {
                    Some(mut found) => view.copies.append(&mut found),
                    None => {
                        memory.range.set_inheritable(bytes(run.first), bytes(run.count), false);
                        view.withheld.push(run);
                    }
                }
            }
        }
        failed
    }

    /// Freezing failed twice, for no reason that the kernel gave: the child gets nothing of what is still shared with it, and
    /// faults there. It must not write into the memory of its parent.
    fn withhold(&mut self) {
        for view in self.views.values_mut() {
            view.shared = true;
            let whole = Run { first: 0, count: view.table.pages() };
            let mut owned = Vec::new();
            pieces(whole, |page| view.table.state(page) == PageState::Owned, |run, is| owned.extend(is.then_some(run)));
            for run in owned {
                view.memory.range.set_inheritable(bytes(run.first), bytes(run.count), false);
                view.withheld.push(run);
            }
            view.copies.clear();
        }
    }

    /// After a fork, in the child: makes memory of its own from what was not frozen.
    fn take_copies(&mut self) -> Result<()> {
        for view in self.views.values_mut() {
            view.withheld.clear();
            for (run, copy) in std::mem::take(&mut view.copies) {
                let range = &view.memory.range;
                range.map_zero(bytes(run.first), bytes(run.count)).map_err(|e| Error::System("mapping a copy", e))?;
                range.copy_in(bytes(run.first), &copy);
            }
        }
        Ok(())
    }

    /// After a fork, in the parent: what was withheld from the child is withheld from no further one.
    fn give_back(&mut self) {
        for view in self.views.values_mut() {
            view.copies.clear();
            for run in std::mem::take(&mut view.withheld) {
                view.memory.range.set_inheritable(bytes(run.first), bytes(run.count), true);
            }
        }
    }
}

impl ForkParticipant for ForkLock<Inner> {
    fn is_held_here(&self) -> bool {
        ForkLock::is_held_here(self)
    }

    fn before_fork(&self) {
        self.hold(Inner::before_fork);
    }

    fn after_fork(&self, in_child: bool) {
        self.release(if in_child { Inner::after_fork_in_child } else { Inner::after_fork_in_parent });
    }

    fn take_trouble(&self) -> Option<Error> {
        self.lock().trouble.take()
    }

    fn has_inherited(&self, address: usize, bytes: usize) -> bool {
        let inner = self.lock();
        inner.flags.is_forked() && inner.owns(address, bytes)
    }
}

/// The bytes of owned pages, for a child; None if there is no memory for them.
///
/// They are read from the segment, where holes cost nothing. A segment that cannot be read is copied through its mapping.
fn copies(memory: &Memory, run: Run) -> Option<Vec<(Run, Vec<u8>)>> {
    let (offset, length) = (bytes(run.first), bytes(run.count));
    let found = faults::check("freeze.read").and_then(|()| shm::pieces(memory.segment().as_fd(), offset, length));
    let Ok(found) = found else {
        return memory.range.copy_out(offset, length).map(|copy| vec![(run, copy)]);
    };
    let run_of = |at: usize, length: usize| Run { first: at / page_size(), count: length / page_size() };
    Some(found.into_iter().map(|(at, length, copy)| (run_of(at, length), copy)).collect())
}
