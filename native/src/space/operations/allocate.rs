//! Memory: segments are made, their pages handed out, and taken back when they were freed.
//!
//! Everything here is one call that has happened when it returns: nobody has to undo anything after it. What a call hands
//! out is a `Claim`, and gives itself back.

use crate::arena::books::{Books, Place, Segment};
use crate::arena::extents::Extent;
use crate::arena::room::{self, Room};
use crate::arena::{Announced, Backing, Claim, Made, Refused};
use crate::error::{Error, Result};
use crate::faults;
use crate::page::{Run, bytes, page_size};
use crate::space::Space;
use crate::space::inner::Inner;
use crate::sys::forklock::Recover;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// Most pages of one piece.
const MAX_PAGES: usize = u32::MAX as usize;

/// How long a look at free memory holds when small pieces are handed out: the kernel takes half a millisecond for one.
const ROOM_HOLDS: Duration = Duration::from_millis(20);

impl Inner {
    /// Makes a segment with room for so many pages.
    fn grow(&mut self, place: Place, pages: usize) -> Result<(), Refused> {
        let (pages, dedicated) = self.arena.books.growth(place, pages);
        let made = Made::new(place, bytes(pages)).map_err(Refused::NoSegment)?;
        let number = self.arena.books.number();
        faults::check("arena.map").map_err(Refused::NoSegment)?;
        let address = self.add_view(number, made.object.clone(), pages)?;
        self.arena.books.add_segment(number, Segment { place, pages, dedicated, inherited: false });
        self.arena.objects.insert(number, made);
        self.arena.announced.clear();
        let told = self.arena.describe(number, address);
        self.arena.added.extend(told);
        Ok(())
    }

    /// Discards the next freed extent. None: there was none. What went wrong, and with how many pages, if anything did.
    fn discard_next(&mut self) -> Option<Option<(usize, Error)>> {
        let extent = *self.arena.books.pending.front()?;
        let done = catch_unwind(AssertUnwindSafe(|| self.discard(extent.segment, extent.run)));
        let done = done.unwrap_or_else(|_| {
            self.recover();
            Err(Error::Range("the native code has failed"))
        });
        self.arena.books.pending.pop_front();
        Some(match done {
            Ok(()) => {
                self.arena.books.give(extent);
                None
            }
            Err(error) => {
                self.arena.books.quarantine.push(extent);
                (!matches!(error, Error::Shared)).then_some((extent.run.count, error)) // a child looks at it, no trouble
            }
        })
    }

    /// Drops segments that nobody needs; `all`: the spare ones as well.
    fn drop_unneeded(&mut self, all: bool) {
        for number in self.arena.books.unneeded(all) {
            let address = self.views.get(&number).map(|view| view.address(0));
            // A forked child may share it, or a block is just dying: the next sweep tries again.
            if let (Some(address), Ok(true)) = (address, self.drop_view(number)) {
                let told = self.arena.describe(number, address);
                self.arena.dropped.extend(told);
                self.arena.books.remove_segment(number);
            }
        }
    }
}

impl Space {
    /// Says where memory comes from, and how large segments are: pages of the first, and most that one grows to by doubling.
    pub fn found_arena(&self, backing: Backing, first: usize, last: usize) -> Result<()> {
        let mut inner = self.open()?;
        inner.arena.books = Books::new(first.max(1), last.max(1));
        (inner.arena.backing, inner.arena.closed) = (backing, false);
        Ok(())
    }

    /// Hands out memory that reads as zeros. What is to be reserved of it, the caller reserves before anybody sees it.
    pub fn allocate(&self, nbytes: usize) -> Result<Claim, Refused> {
        let pages = nbytes.div_ceil(page_size());
        if pages > MAX_PAGES {
            return Err(Refused::TooLarge);
        }
        let backing = {
            let inner = self.open()?;
            if inner.arena.closed {
                return Err(Refused::Closed);
            }
            inner.arena.backing
        };
        self.sweep(false)?;
        let claim = match backing {
            Backing::Only(place) => self.hand_out(place, pages, false),
            Backing::Auto => match self.hand_out(Place::Shm, pages, true) {
                Ok(Some(claim)) => Ok(Some(claim)),
                _ => self.hand_out(Place::Memfd, pages, false),
            },
        };
        self.ring_if_news();
        Ok(claim?.expect("scarce room is good enough"))
    }

    fn hand_out(&self, place: Place, pages: usize, plenty: bool) -> Result<Option<Claim>, Refused> {
        let room = self.room(place);
        let mut inner = self.open()?;
        if inner.arena.closed {
            return Err(Refused::Closed);
        }
        let counts = inner.counts();
        let merged = (counts.merged + counts.zero).saturating_sub(counts.inherited);
        let scarce = room.map(|room| {
            let backed = inner.arena.backed(place);
            inner.arena.books.is_scarce(place, pages, room, backed, merged).map_err(Refused::NoRoom)
        });
        let scarce = scarce.transpose()?.unwrap_or(false);
        if scarce && plenty {
            return Ok(None);
        }
        let taken = match inner.arena.books.take_pages(place, pages) {
            Some(taken) => taken,
            None => {
                inner.grow(place, pages)?;
                inner.arena.books.take_pages(place, pages).expect("the new segment is large enough")
            }
        };
        let memory = inner.views[&taken.segment].memory.clone();
        let unreserved = (scarce && place == Place::Shm).then(|| (memory.segment(), taken.run));
        drop(inner);
        Ok(Some(Claim::new(memory, self.keeper(), self.freed().clone(), taken, unreserved)))
    }

    /// Takes back what was freed, and drops segments that are not needed. What could not be given back, and why.
    ///
    /// `retry`: try again to discard what is in quarantine.
    pub fn sweep(&self, retry: bool) -> Result<Option<(usize, Error)>> {
        let shared = self.flags().is_shared();
        {
            let mut inner = self.open()?;
            if inner.arena.closed {
                return Ok(None);
            }
            // With the lock held, which a fork holds as well: no child finds that list half emptied.
            let freed = self.freed().take_extents().into_iter().filter(|(.., count)| *count > 0);
            let freed = freed.map(|(segment, first, count)| Extent { segment, run: Run { first, count } });
            inner.arena.books.pending.extend(freed);
            if retry && !shared {
                inner.arena.books.retry();
            }
        }
        let mut trouble = None;
        loop {
            let next = self.open()?.discard_next(); // others may have the lock in between
            let Some(failed) = next else { break };
            trouble = trouble.or(failed);
        }
        if !shared {
            self.open()?.drop_unneeded(false);
        }
        self.ring_if_news();
        Ok(trouble)
    }

    /// Drops all segments in which no block lives, and hands out no more. The caller discards the objects of the others.
    pub fn close_arena(&self) -> Result<Vec<Announced>> {
        self.sweep(true)?;
        let mut inner = self.open()?;
        if inner.arena.closed {
            return Ok(Vec::new());
        }
        inner.drop_unneeded(true);
        inner.arena.closed = true;
        let Inner { arena, views, .. } = &*inner;
        let left = views.iter().filter_map(|(number, view)| arena.describe(*number, view.address(0)));
        Ok(left.collect())
    }

    /// The pages that a range of memory touches: segment and run. None: they are not this space's.
    pub fn locate(&self, address: usize, nbytes: usize) -> Option<(u32, Run)> {
        let inner = self.inner.lock();
        let (number, view) = inner.views.iter().find(|(_, view)| view.memory.range.covers(address, nbytes))?;
        let at = address - view.address(0);
        let (first, last) = (at / page_size(), (at + nbytes.checked_sub(1)?) / page_size());
        Some((*number, Run { first, count: last - first + 1 }))
    }

    /// Pages handed out, or freed and not free yet; and how many of them are in memfds.
    pub fn in_use(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        let memfd = inner.arena.books.in_use(Place::Memfd);
        (inner.arena.books.in_use(Place::Shm) + memfd, memfd)
    }

    /// Whether any memory is in use, as far as this thread may look.
    pub fn is_used(&self) -> bool {
        self.inner.is_held_here() || self.in_use().0 > 0
    }

    /// Whether freed memory waits for forked children.
    pub fn is_quarantined(&self) -> bool {
        !self.inner.lock().arena.books.quarantine.is_empty()
    }

    /// Counts the books again.
    pub fn check_arena(&self) -> Result<(), String> {
        let inner = self.inner.lock();
        let Inner { arena, views, .. } = &*inner;
        arena.books.check()?;
        if !arena.closed && !arena.books.segments().keys().eq(views.keys()) {
            return Err("the segments are not the views".into());
        }
        match arena.books.segments().keys().find(|number| !arena.objects.contains_key(number)) {
            Some(number) if !arena.closed => Err(format!("segment {number} has no object")),
            _ => Ok(()),
        }
    }

    pub(crate) fn room(&self, place: Place) -> Option<Room> {
        #[cfg(feature = "faults")]
        if let Some(pretended) = room::pretended(place as usize) {
            return pretended;
        }
        if place == Place::Shm {
            return room::of_shm();
        }
        let mut looked = self.memory_room.lock().unwrap_or_else(PoisonError::into_inner);
        match *looked {
            Some((at, room)) if at.elapsed() < ROOM_HOLDS => room,
            _ => {
                let room = room::of_memory();
                *looked = Some((Instant::now(), room));
                room
            }
        }
    }
}
