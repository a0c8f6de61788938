//! Which segments there are, which of their pages are handed out, and whether there is room for more. Pure books.
//!
//! ```text
//!   segment 1  64 MiB   |##aaaa####bb#####..........|    ## handed out   .. free, never touched since it was made
//!   segment 2  128 MiB  |#######aaa.................|    aa free again: discarded, so it is a hole and reads as zeros
//!   segment 3  3 GiB    |###########################|    a request larger than the next size has one of its own
//!
//!   free --take--> handed out --block dies--> pending --discarded--> free
//!                                                '-- a forked child may look at it --> quarantine --> pending
//! ```
//!
//! What holds: a page is in one of these places. Of the segments that are wholly free one is kept in each place, so that a
//! loop of allocating and freeing makes no system calls.

use super::extents::{Extent, Extents};
use crate::arena::room::Room;
use crate::page::bytes;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Where a segment's pages are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A POSIX shared-memory object, in /dev/shm. Bounded by that filesystem, which containers make 64 MiB.
    Shm = 0,
    /// A memfd: the same memory without a name and without that bound. Others get at it through this process's /proc only.
    Memfd = 1,
}

/// Both.
pub const PLACES: [Place; 2] = [Place::Shm, Place::Memfd];

/// A segment, in the books.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Where it is.
    pub place: Place,
    /// How many pages it has.
    pub pages: usize,
    /// It was made for one large request.
    pub dedicated: bool,
    /// It is behind memory of a parent's, which nothing is ever handed out of.
    pub inherited: bool,
}

/// There is not so much room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// Where.
    pub place: Place,
    /// What there is.
    pub room: Room,
    /// Bytes of it that are promised to memory which was handed out and is not touched yet.
    pub promised: u64,
}

/// See the head of this file.
pub struct Books {
    first: usize,
    last: usize,
    made: u32,
    extents: [Extents; 2],
    segments: BTreeMap<u32, Segment>,
    whole: BTreeSet<u32>,
    /// Extents of blocks that died, to be discarded.
    pub pending: VecDeque<Extent>,
    /// Extents that could not be discarded.
    pub quarantine: Vec<Extent>,
}

impl Books {
    /// Books without segments. `first`, `last`: pages in the first one, and most that a segment grows to by doubling.
    pub fn new(first: usize, last: usize) -> Books {
        Books {
            first,
            last,
            made: 0,
            extents: Default::default(),
            segments: BTreeMap::new(),
            whole: BTreeSet::new(),
            pending: VecDeque::new(),
            quarantine: Vec::new(),
        }
    }

    /// How large a new segment for `pages` pages is to be, and whether it is for that request alone.
    pub fn growth(&self, place: Place, pages: usize) -> (usize, bool) {
        let regular = self.of(place).filter(|segment| !segment.dedicated).count().min(32);
        let size = self.last.min(self.first.saturating_mul(1 << regular));
        (pages.max(size), pages > size)
    }

    /// The number of the next segment.
    pub fn number(&mut self) -> u32 {
        self.made += 1;
        self.made
    }

    /// A segment is there, all of it free.
    pub fn add_segment(&mut self, number: u32, segment: Segment) {
        self.segments.insert(number, segment);
        if !segment.inherited {
            self.extents[segment.place as usize].add_segment(number, segment.pages);
            self.whole.insert(number);
        }
    }

    /// A segment is gone.
    pub fn remove_segment(&mut self, number: u32) {
        if let Some(segment) = self.segments.remove(&number)
            && !segment.inherited
        {
            self.extents[segment.place as usize].remove_segment(number);
            self.whole.remove(&number);
        }
    }

    /// All segments.
    pub fn segments(&self) -> &BTreeMap<u32, Segment> {
        &self.segments
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Books { made: self.made, ..Books::new(self.first, self.last) };
    }

    /// Takes free pages.
    pub fn take_pages(&mut self, place: Place, pages: usize) -> Option<Extent> {
        let taken = self.extents[place as usize].take_pages(pages)?;
        self.whole.remove(&taken.segment);
        Some(taken)
    }

    /// Pages are free that were discarded before.
    ///
    /// # Panics
    /// If they are free already: to hand them out twice would be worse.
    pub fn give(&mut self, extent: Extent) {
        let Some(segment) = self.segments.get(&extent.segment) else { return };
        let extents = &mut self.extents[segment.place as usize];
        assert!(extents.give(extent), "{extent:?} is not in use");
        if extents.is_whole(extent.segment) {
            self.whole.insert(extent.segment);
        }
    }

    /// What waits in quarantine is to be discarded once more.
    pub fn retry(&mut self) {
        self.pending.extend(self.quarantine.drain(..));
    }

    /// Segments that are not needed, should no block live there: all that are wholly free (`all`), or all but a spare one.
    pub fn unneeded(&self, all: bool) -> Vec<u32> {
        let spares = PLACES.map(|place| self.spare(place));
        let whole = self.whole.iter().copied().filter(|number| all || !spares.contains(&Some(*number)));
        let inherited = self.segments.iter().filter(|(_, segment)| segment.inherited).map(|(number, _)| *number);
        whole.chain(inherited).collect()
    }

    fn spare(&self, place: Place) -> Option<u32> {
        let free = self.whole.iter().filter(|number| {
            let segment = &self.segments[number];
            segment.place == place && !segment.dedicated
        });
        free.max_by_key(|number| (self.segments[number].pages, Reverse(**number))).copied()
    }

    fn of(&self, place: Place) -> impl Iterator<Item = &Segment> {
        self.segments.values().filter(move |segment| segment.place == place && !segment.inherited)
    }

    /// Pages of a place that are not free: handed out, or on their way back.
    pub fn in_use(&self, place: Place) -> usize {
        self.of(place).map(|segment| segment.pages).sum::<usize>() - self.extents[place as usize].free()
    }

    /// Whether room is scarce for so many pages more, given what there is, how many bytes back the segments there, and how
    /// many of all pages handed out are merged. A place is scarce if nobody should count on it, or if less than half of it
    /// would be left.
    pub fn is_scarce(
        &self,
        place: Place,
        pages: usize,
        room: Room,
        backed: u64,
        merged: usize,
    ) -> Result<bool, NoRoom> {
        let (handed, others) = match place {
            Place::Shm => (self.in_use(Place::Shm), self.in_use(Place::Memfd)),
            Place::Memfd => (self.in_use(Place::Memfd), self.in_use(Place::Shm)),
        };
        // Merged pages need no room. Which place they are of is not known here: those that must be of this one count.
        let merged = merged.saturating_sub(others);
        let promised = (bytes(handed.saturating_sub(merged)) as u64).saturating_sub(backed);
        let left = room.free.saturating_sub(promised).checked_sub(bytes(pages) as u64);
        let Some(left) = left else {
            return Err(NoRoom { place, room, promised: promised.min(room.free) });
        };
        Ok(room.small || left < room.size / 2)
    }

    /// Free extents, in order of place.
    pub fn free(&self) -> Vec<Extent> {
        let mut free: Vec<Extent> = self.extents.iter().flat_map(Extents::iter).collect();
        free.sort_unstable();
        free
    }

    /// Counts again.
    pub fn check(&self) -> Result<(), String> {
        for place in PLACES {
            let extents = &self.extents[place as usize];
            extents.check()?;
            if extents.iter().any(|extent| self.segments.get(&extent.segment).is_none_or(|s| s.place != place)) {
                return Err("free pages are in the books of another place".into());
            }
        }
        let whole = |(number, segment): (&u32, &Segment)| {
            let is = !segment.inherited && self.extents[segment.place as usize].is_whole(*number);
            is.then_some(*number)
        };
        if !self.segments.iter().filter_map(whole).eq(self.whole.iter().copied()) {
            return Err("a segment is taken for wholly free, or for one in use".into());
        }
        let mut all: Vec<Extent> = self.free();
        all.extend(self.pending.iter().chain(&self.quarantine));
        all.sort_unstable();
        if all.windows(2).any(|two| two[0].segment == two[1].segment && two[0].run.end() > two[1].run.first) {
            return Err("a page is free twice".into());
        }
        Ok(())
    }
}
