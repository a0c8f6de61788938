//! The arena: makes segments, hands out their pages, takes back what was freed.
//!
//! What holds, whenever the lock of the space is free:
//!
//! * Free pages read as zeros and take no memory: freed extents are discarded before they are free.
//! * Memory is handed out only if its backing has room for it now, together with what was handed out before: a store to a
//!   full tmpfs is SIGBUS. Where room is scarce it is reserved, or comes from a memfd; elsewhere that is a check and no
//!   reservation, and other processes fill /dev/shm too.
//! * An object's name goes with the object, whatever becomes of whoever made it. (Of a process that is killed, the server
//!   sweeps the names.)
//!
//! Everything here is one call that has happened when it returns: nobody has to undo anything after it. What a call hands
//! out is a `Claim`, and gives itself back.

pub mod books;
mod claim;
pub mod extents;
pub mod freed;
pub mod room;
#[cfg(test)]
mod tests;

pub use books::{NoRoom, Place};
pub use claim::Claim;

use crate::arena::room::Room;
use crate::error::{Error, Result};
use crate::faults;
use crate::page::{Run, bytes, page_size};
use crate::space::{Inner, Space};
use crate::sys::atfork;
use crate::sys::event::Event;
use crate::sys::forklock::Recover;
use crate::sys::made;
use crate::sys::object::Object;
use crate::sys::sched;
use crate::sys::shm;
use books::{Books, Segment};
use extents::Extent;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Most pages of one piece.
pub const MAX_PAGES: usize = u32::MAX as usize;

/// How long a look at free memory holds when small pieces are handed out: the kernel takes half a millisecond for one.
const ROOM_HOLDS: Duration = Duration::from_millis(20);

/// Where segments are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// In /dev/shm where that has room to spare, else as memfds; for each allocation anew.
    Auto,
    /// Here.
    Only(Place),
}

/// Why memory is not handed out.
#[derive(Debug)]
pub enum Refused {
    /// The arena is closed.
    Closed,
    /// It is more than one piece may have.
    TooLarge,
    /// There is no room.
    NoRoom(NoRoom),
    /// No object can be made for it, or mapped.
    NoSegment(io::Error),
    /// The space cannot be used.
    Space(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Refused {
        match error {
            Error::System(_, source) => Refused::NoSegment(source),
            other => Refused::Space(other),
        }
    }
}

/// What others are told of a segment.
#[derive(Clone, Debug)]
pub struct Announced {
    /// Its number.
    pub number: u32,
    /// Its name. One in a memfd has a name too, but nobody finds it by that.
    pub name: String,
    /// Its descriptor here: others open a memfd by that, through /proc.
    pub fd: i32,
    /// How many pages it has.
    pub pages: usize,
    /// Where it is mapped.
    pub address: usize,
    /// Where it is.
    pub place: Place,
    /// It is behind memory of a parent's.
    pub inherited: bool,
}

/// An object of this process's own, and its name, which goes when this does.
struct Made {
    name: String,
    place: Place,
    object: Arc<Object>,
    process: u32,
}

impl Made {
    fn new(place: Place, size: usize) -> io::Result<Made> {
        faults::check("arena.make")?;
        let (name, fd) = match place {
            Place::Shm => made::named(size)?,
            Place::Memfd => made::unnamed(size)?,
        };
        Ok(Made { name, place, object: Arc::new(Object::keep(fd)), process: atfork::process() })
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.place == Place::Shm && self.process == atfork::process() {
            made::unlink(&self.name); // in a child it is the parent's
        }
    }
}

/// The arena of a space, under the lock of that.
pub(crate) struct Arena {
    books: Books,
    backing: Backing,
    closed: bool,
    /// Of segments that there are, and of those that the server has not let go of yet.
    objects: BTreeMap<u32, Made>,
    added: Vec<Announced>,
    dropped: Vec<Announced>,
    /// The server knows of all segments.
    announced: Arc<Event>,
}

impl Arena {
    pub fn new() -> Arena {
        let announced = Arc::new(Event::default());
        announced.set();
        Arena {
            books: Books::new(1, 1),
            backing: Backing::Auto,
            closed: true,
            objects: BTreeMap::new(),
            added: Vec::new(),
            dropped: Vec::new(),
            announced,
        }
    }

    pub fn announced(&self) -> &Arc<Event> {
        &self.announced
    }

    /// In a child: nothing of it is this process's.
    pub fn forget(&mut self) {
        self.closed = true;
        self.books.clear();
        self.objects.clear();
        self.added.clear();
        self.dropped.clear();
        self.announced.set();
    }

    /// Bytes that the kernel has given to segments.
    fn backed(&self, place: Place) -> u64 {
        let of_it = self.books.segments().iter().filter(|(_, s)| s.place == place && !s.inherited);
        let objects = of_it.filter_map(|(number, _)| self.objects.get(number));
        objects.filter_map(|made| shm::extent(made.object.as_fd()).ok()).map(|(_, backed)| backed as u64).sum()
    }

    fn describe(&self, number: u32, address: usize) -> Option<Announced> {
        let (segment, made) = (self.books.segments().get(&number)?, self.objects.get(&number)?);
        Some(Announced {
            number,
            name: made.name.clone(),
            fd: made.object.number(),
            pages: segment.pages,
            address,
            place: segment.place,
            inherited: segment.inherited,
        })
    }
}

impl Inner {
    /// Makes a segment with room for so many pages.
    fn grow(&mut self, place: Place, pages: usize) -> Result<(), Refused> {
        let (pages, dedicated) = self.arena.books.growth(place, pages);
        let made = Made::new(place, bytes(pages)).map_err(Refused::NoSegment)?;
        let number = self.arena.books.number();
        faults::check("arena.map").map_err(Refused::NoSegment)?;
        let address = self.add_view(number, made.object.clone(), pages)?;
        self.arena.books.add(number, Segment { place, pages, dedicated, inherited: false });
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
                self.arena.books.remove(number);
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
            Backing::Only(place) => self.take(place, pages, false),
            Backing::Auto => match self.take(Place::Shm, pages, true) {
                Ok(Some(claim)) => Ok(Some(claim)),
                _ => self.take(Place::Memfd, pages, false),
            },
        };
        self.ring();
        Ok(claim?.expect("scarce room is good enough"))
    }

    fn take(&self, place: Place, pages: usize, plenty: bool) -> Result<Option<Claim>, Refused> {
        let room = self.room(place);
        let mut inner = self.open()?;
        if inner.arena.closed {
            return Err(Refused::Closed);
        }
        let counts = inner.counts();
        let scarce = room.map(|room| {
            let backed = inner.arena.backed(place);
            inner.arena.books.is_scarce(place, pages, room, backed, &counts).map_err(Refused::NoRoom)
        });
        let scarce = scarce.transpose()?.unwrap_or(false);
        if scarce && plenty {
            return Ok(None);
        }
        let taken = match inner.arena.books.take(place, pages) {
            Some(taken) => taken,
            None => {
                inner.grow(place, pages)?;
                inner.arena.books.take(place, pages).expect("the new segment is large enough")
            }
        };
        let memory = inner.views[&taken.segment].memory.clone();
        drop(inner);
        let unreserved = if scarce && place == Place::Shm { taken.run } else { Run { first: 0, count: 0 } };
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
            let freed = self.freed().take().into_iter().filter(|(.., count)| *count > 0);
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
        self.ring();
        Ok(trouble)
    }

    /// Drops all segments in which no block lives, and hands out no more. The others: whoever asked discards their objects.
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

    /// In a child: takes over what is merged of the memory that the parent's space has left, as far as possible. That an
    /// object cannot be made is no failure: then that memory stays a snapshot.
    pub fn inherit(&self, parent: &Space) -> Result<Vec<Announced>> {
        let mut taken = Vec::new();
        for (address, pages) in parent.heritage() {
            let Ok(made) = Made::new(Place::Shm, bytes(pages)) else { break };
            let number = self.open()?.arena.books.number();
            if !self.take_over(parent, address, number, made.object.clone())? {
                continue;
            }
            let mut inner = self.open()?;
            let segment = Segment { place: Place::Shm, pages, dedicated: true, inherited: true };
            inner.arena.books.add(number, segment);
            inner.arena.objects.insert(number, made);
            inner.arena.announced.clear();
            taken.extend(inner.arena.describe(number, address));
        }
        Ok(taken)
    }

    /// Lets go of a segment's name and descriptor. Its memory goes with its last mapping.
    pub fn discard_object(&self, number: u32) {
        if !self.inner.is_held_here() {
            self.inner.lock().arena.objects.remove(&number);
        }
    }

    /// Takes out the segments that were added since the last call: they are to be announced.
    pub fn added(&self) -> Vec<Announced> {
        std::mem::take(&mut self.inner.lock().arena.added)
    }

    /// Takes out those that were dropped. The events about them are in the journal.
    pub fn dropped(&self) -> Vec<Announced> {
        std::mem::take(&mut self.inner.lock().arena.dropped)
    }

    /// Whether there are segments to take out: that were added, and that were dropped.
    pub fn news(&self) -> (bool, bool) {
        let inner = self.inner.lock();
        (!inner.arena.added.is_empty(), !inner.arena.dropped.is_empty())
    }

    /// All segments that were taken out are announced.
    pub fn announced(&self) {
        let inner = self.inner.lock();
        if inner.arena.added.is_empty() {
            inner.arena.announced.set();
        }
    }

    /// The pages that a range of memory touches: segment and run. None: they are not this space's.
    pub fn locate(&self, address: usize, nbytes: usize) -> Option<(u32, Run)> {
        let inner = self.inner.lock();
        let (number, view) = inner.views.iter().find(|(_, view)| view.memory.range.covers(address, nbytes))?;
        let at = address - view.address(0);
        let (first, last) = (at / page_size(), (at + nbytes.checked_sub(1)?) / page_size());
        Some((*number, Run { first, count: last - first + 1 }))
    }

    /// Has pages not be merged, and takes back at once what is. How many keep their frames, and the errno for which.
    pub fn take_back(&self, number: u32, run: Run) -> Result<Option<(usize, i32)>> {
        self.exclude(number, run, true)?;
        self.sweep(false)?; // what was freed before has room for what is taken back
        let mut room = room::spare_pages(self.room(Place::Memfd)).unwrap_or(usize::MAX);
        let (mut rest, mut refused) = (run, None);
        while rest.count > 0 {
            sched::begin_slice();
            let window = self.open()?.adopt_window(number, rest, &mut room)?;
            rest = window.rest_of(rest);
            // What is pinned, or shared with a forked child, is taken back when that is over.
            if let Some((pages, errno)) =
                window.refused.filter(|(_, errno)| ![libc::EBUSY, libc::EAGAIN].contains(errno))
            {
                let (before, first) = refused.unwrap_or((0, errno));
                refused = Some((before + pages, first));
            }
        }
        Ok(refused)
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

    /// Has the session look, if there is something to tell.
    fn ring(&self) {
        let inner = self.inner.lock();
        if let Some(bell) = &inner.bell
            && !(inner.arena.added.is_empty() && inner.arena.dropped.is_empty())
        {
            bell.ring();
        }
    }

    fn room(&self, place: Place) -> Option<Room> {
        #[cfg(feature = "faults")]
        if let Some(pretended) = room::pretended(place as usize) {
            return pretended;
        }
        if place == Place::Shm {
            return room::of_shm();
        }
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
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
