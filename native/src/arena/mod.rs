//! The arena: which segments there are, which of their pages are handed out, and what memory there is for more.
//! `space/operations/allocate.rs` is what is done with it.
//!
//! What holds, whenever the lock of the space is free:
//!
//! * Free pages read as zeros and take no memory: freed extents are discarded before they are free.
//! * Memory is handed out only if its backing has room for it now, together with what was handed out before: a store to a
//!   full tmpfs is SIGBUS. Where room is scarce it is reserved, or comes from a memfd; elsewhere that is a check and no
//!   reservation, and other processes fill /dev/shm too.
//! * An object's name goes with the object, whatever becomes of its maker. (Of a process that is killed, the server
//!   sweeps the names.)

pub mod books;
mod claim;
pub mod extents;
pub mod freed;
pub mod memory;
pub mod room;
#[cfg(test)]
mod tests;

pub use books::{NoRoom, Place};
pub use claim::Claim;

use crate::error::Error;
use crate::faults;
use crate::sys::atfork;
use crate::sys::event::Event;
use crate::sys::made;
use crate::sys::object::Object;
use crate::sys::shm;
use books::Books;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

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
            Error::Closed => Refused::Closed,
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
pub(crate) struct Made {
    name: String,
    place: Place,
    pub object: Arc<Object>,
    process: u32,
}

impl Made {
    pub fn new(place: Place, size: usize) -> io::Result<Made> {
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
    pub books: Books,
    pub backing: Backing,
    pub closed: bool,
    /// Of segments that there are, and of those that the server has not let go of yet.
    pub objects: BTreeMap<u32, Made>,
    /// Segments that are to be announced.
    pub added: Vec<Announced>,
    /// Segments whose end is to be told.
    pub dropped: Vec<Announced>,
    /// The server knows of all segments.
    pub announced: Arc<Event>,
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
    pub fn backed(&self, place: Place) -> u64 {
        let of_it = self.books.segments().iter().filter(|(_, s)| s.place == place && !s.inherited);
        let objects = of_it.filter_map(|(number, _)| self.objects.get(number));
        objects.filter_map(|made| shm::extent(made.object.as_fd()).ok()).map(|(_, backed)| backed as u64).sum()
    }

    pub fn describe(&self, number: u32, address: usize) -> Option<Announced> {
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
