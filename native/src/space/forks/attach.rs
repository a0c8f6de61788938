//! In a child: a client of its own takes over what was merged of the memory that it inherited.
//!
//! ```text
//!   parent's segment, merged pages, copies of them ...      the parent's view, and its references
//!     fork
//!   the same, privately                                     memory of blocks; the parent's references stand for it
//!     taken over
//!   merged: Resumed, and references of the child's own      a view of the child's, over a segment of its own, which is
//!   copied: adopted into that segment, and merged again     empty: what was not merged stays a snapshot (`Inherited`)
//! ```
//!
//! The addresses stay, and no page is mapped anew or copied for it. The parent's segment is never written.

use crate::arena::books::{Place, Segment};
use crate::arena::memory::Memory;
use crate::arena::{Announced, Made};
use crate::error::{Error, Result};
use crate::page::{bytes, page_size};
use crate::space::Space;
use crate::space::inner::Inner;
use crate::space::operations::resume::write_down;
use crate::space::view::View;
use crate::sys::object::Object;
use crate::sys::shm;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};

impl Space {
    /// In a child: takes over what is merged of the memory that the parent's space has left, as far as possible. That an
    /// object cannot be made is no failure: then that memory stays a snapshot.
    pub fn attach_inherited(&self, parent: &Space) -> Result<Vec<Announced>> {
        let mut taken = Vec::new();
        for (address, pages) in parent.heritage() {
            let Ok(made) = Made::new(Place::Shm, bytes(pages)) else { break };
            let number = self.open()?.arena.books.number();
            if !self.attach(parent, address, number, made.object.clone())? {
                continue;
            }
            let mut inner = self.open()?;
            let segment = Segment { place: Place::Shm, pages, dedicated: true, inherited: true };
            inner.arena.books.add_segment(number, segment);
            inner.arena.objects.insert(number, made);
            inner.arena.announced.clear();
            taken.extend(inner.arena.describe(number, address));
        }
        Ok(taken)
    }

    /// In a child: memory of the parent's that blocks live in, and of which something is merged: address and pages.
    pub fn heritage(&self) -> Vec<(usize, usize)> {
        let mut inner = self.inner.lock();
        inner.inherited.retain(|(memory, _)| memory.strong_count() > 0);
        let merged = inner.inherited.iter().filter(|(_, table)| table.switched() > 0);
        merged.filter_map(|(memory, table)| Some((memory.upgrade()?.range.at(0), table.pages()))).collect()
    }

    /// Takes over memory that a space of the parent's has left, and writes down what it maps. False if it is gone.
    pub fn attach(&self, from: &Space, address: usize, number: u32, segment: Arc<Object>) -> Result<bool> {
        let size = shm::size(segment.as_fd()).map_err(|e| Error::System("size of the segment", e))?;
        // One lock at a time: a fork takes them all. What may be refused is asked before anything is taken out of the
        // books of the parent's space: memory that is in none is never merged again.
        let lease = {
            let inner = self.open()?;
            if inner.views.contains_key(&number) {
                return Err(Error::Taken(number));
            }
            inner.lease.clone().ok_or(Error::Closed)?
        };
        let (memory, table) = {
            let mut old = from.inner.lock();
            let is_it = |memory: &Weak<Memory>| memory.upgrade().filter(|memory| memory.range.at(0) == address);
            let found = old.inherited.iter().enumerate().find_map(|(at, (memory, _))| Some((at, is_it(memory)?)));
            let Some((at, memory)) = found else { return Ok(false) };
            if old.inherited[at].1.pages() > size / page_size() {
                return Err(Error::Range("a view has no more pages than its segment"));
            }
            if !old.successors.iter().any(|next| Arc::ptr_eq(next, &self.inner)) {
                old.successors.push(self.inner.clone());
            }
            (memory, old.inherited.swap_remove(at).1)
        };
        let mut inner = self.inner.lock();
        memory.attach(segment, lease);
        let mut view = View::over(memory, table, inner.generations.next());
        view.inherited = true;
        if inner.tracker.is_some() {
            view.table.begin_to_watch();
        }
        let Inner { views, journal, .. } = &mut *inner;
        write_down(journal, number, &view);
        views.insert(number, view);
        Ok(true)
    }

    /// The server has booked what was written down: for this memory, the parents' references need not stay.
    pub fn let_parents_go(&self, number: u32) -> Result<()> {
        let inner = self.open()?;
        if let Some(view) = inner.views.get(&number) {
            view.memory.let_parents_go();
        }
        Ok(())
    }
}
