//! The frames of a domain: who uses them, and the stable tree by which they are found.
//!
//! A frame has references (pages that map it, or are copies of it) and reservations (proposals that name it). It leaves
//! tree and store with the last of both (I1, I3). Frames of a pool that was taken over have a reservation more, for all
//! who may map them and have not said so yet, until all have resumed or are gone.

pub mod allocator;
pub mod stable;
pub mod store;
pub mod tree;
pub mod unstable;

use crate::engine::frames::allocator::reserve;
use crate::engine::frames::stable::Stable;
use crate::engine::frames::store::Store;
use std::collections::HashMap;
use std::io;

/// What can be wrong with a frame. The numbers are those of `FrameFault` in `pagefold_server.engine.interface`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    /// Its bytes have another digest than in the stable tree (I1).
    Changed = 1,
    /// It is in use, and there is no memory behind it.
    Hole = 2,
    /// It is free, and there is memory behind it.
    Left = 3,
    /// It is in use, and the stable tree does not have it.
    Unlisted = 4,
}

/// A frame whose users are other than the books have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miscount {
    /// Which one.
    pub frame: u32,
    /// References and reservations by the books.
    pub booked: (u32, u32),
    /// The same by the page tables.
    pub counted: (u32, u32),
}

/// See the head of this file. Columns by frame number, 16 bytes a frame; the 17th, `use`, is the allocator's.
pub struct Frames {
    pub store: Store,
    stable: Stable,
    digests: Vec<u64>,
    references: Vec<u32>,
    reservations: Vec<u32>,
    awaiting_resume: Vec<u32>,
    /// Frames with a reference.
    pub shared: usize,
}

impl Frames {
    pub fn new(store: Store) -> Frames {
        Frames {
            store,
            stable: Stable::default(),
            digests: Vec::new(),
            references: Vec::new(),
            reservations: Vec::new(),
            awaiting_resume: Vec::new(),
            shared: 0,
        }
    }

    /// Makes a frame that nobody uses yet, and whose bytes are still to be written: reserve it, and write it before
    /// anybody hears of it.
    pub fn create(&mut self, digest: u64, near: Option<u32>) -> io::Result<u32> {
        let frame = self.store.allocate(near)?;
        self.enter(digest, frame);
        Ok(frame)
    }

    fn enter(&mut self, digest: u64, frame: u32) {
        let number = frame as usize;
        if number >= self.digests.len() {
            let more = number + 1 - self.digests.len();
            reserve(&mut self.digests, more);
            reserve(&mut self.references, more);
            reserve(&mut self.reservations, more);
            self.digests.resize(number + 1, 0);
            self.references.resize(number + 1, 0);
            self.reservations.resize(number + 1, 0);
        }
        self.digests[number] = digest;
        self.stable.insert(digest, frame, &self.digests);
    }

    /// Takes over what the pool holds from before. How many frames.
    pub fn recover(&mut self, digest: impl Fn(&[u8]) -> u64) -> io::Result<usize> {
        let mut found = Vec::new();
        self.store.recover(|frame, page| found.push((frame, digest(page))))?;
        for (frame, digest) in found {
            self.enter(digest, frame);
            self.reserve(frame);
            self.awaiting_resume.push(frame);
        }
        Ok(self.awaiting_resume.len())
    }

    /// Takes out the frames that have a reservation for those who may resume: cancel each.
    pub fn take_unclaimed(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.awaiting_resume)
    }

    /// Whether a page may map the frame: somebody has it, and its bytes stay.
    pub fn is_used(&self, frame: u32) -> bool {
        self.users(frame) > 0
    }

    /// A page maps the frame since before these books began.
    pub fn resume(&mut self, frame: u32) {
        self.reserve(frame);
        self.commit(frame);
    }

    /// The oldest frame with this digest that serves fewer than `most` pages.
    pub fn find(&mut self, digest: u64, most: u32) -> Option<u32> {
        let (references, reservations) = (&self.references, &self.reservations);
        let users = |frame: u32| references[frame as usize] + reservations[frame as usize];
        self.stable.find(digest, &self.digests, |frame| users(frame) < most)
    }

    /// The digest of a frame, or what it was before the frame was released.
    pub fn digest(&self, frame: u32) -> u64 {
        self.digests[frame as usize]
    }

    /// References and reservations together.
    pub fn users(&self, frame: u32) -> u32 {
        let number = frame as usize;
        if number < self.digests.len() { self.references[number] + self.reservations[number] } else { 0 }
    }

    /// A proposal names the frame (M1).
    pub fn reserve(&mut self, frame: u32) {
        self.reservations[frame as usize] += 1;
    }

    /// A proposal came to nothing.
    pub fn cancel(&mut self, frame: u32) {
        self.reservations[frame as usize] -= 1;
        self.release_unused(frame);
    }

    /// A proposal was carried out: its reservation becomes a reference (M8).
    pub fn commit(&mut self, frame: u32) {
        let number = frame as usize;
        self.reservations[number] -= 1;
        self.shared += usize::from(self.references[number] == 0);
        self.references[number] += 1;
    }

    /// A mapping of the frame is proven gone.
    pub fn drop_reference(&mut self, frame: u32) {
        let number = frame as usize;
        self.references[number] -= 1;
        self.shared -= usize::from(self.references[number] == 0);
        self.release_unused(frame);
    }

    fn release_unused(&mut self, frame: u32) {
        let digest = self.digest(frame);
        if self.users(frame) == 0 {
            self.stable.remove(digest, frame);
            self.store.release(frame);
        } else {
            self.stable.has_room_again(digest, frame);
        }
    }

    /// What counts as room has changed.
    pub fn forget_fullness(&mut self) {
        self.stable.forget_fullness();
    }

    /// Frames beyond the first of each digest.
    pub fn duplicates(&self) -> usize {
        self.stable.duplicates()
    }

    pub fn bookkeeping_bytes(&self) -> usize {
        let columns = 8 * self.digests.capacity() + 4 * (self.references.capacity() + self.reservations.capacity());
        columns + self.stable.bookkeeping_bytes() + self.store.bookkeeping_bytes()
    }

    /// How many frame numbers there are, used or not.
    pub fn numbers(&self) -> usize {
        self.digests.len()
    }

    /// What is wrong with the frames of a range; `buffer` has room for one page.
    pub fn audit(&self, first: u32, count: u32, buffer: &mut [u8], digest: impl Fn(&[u8]) -> u64) -> Vec<(u32, Fault)> {
        let mut faults = Vec::new();
        let mut data = None; // the first frame with memory, looked for when it is passed
        for frame in first..first.saturating_add(count).min(self.store.numbers().numbers()) {
            if data.is_none_or(|found| found < frame) {
                data = Some(self.store.next_data(frame).unwrap_or(u32::MAX));
            }
            let has_data = data == Some(frame);
            if self.store.numbers().is_free(frame) {
                faults.extend(has_data.then_some((frame, Fault::Left)));
            } else if self.store.numbers().is_used(frame) {
                let expected = self.digests.get(frame as usize).copied();
                if !has_data {
                    faults.push((frame, Fault::Hole));
                } else if !self.store.read(frame, buffer) || Some(digest(buffer)) != expected {
                    faults.push((frame, Fault::Changed));
                }
                if !expected.is_some_and(|digest| self.stable.has(digest, frame, &self.digests)) {
                    faults.push((frame, Fault::Unlisted));
                }
            }
        }
        faults
    }

    /// Compares the users of frames with what was counted: references and reservations by frame.
    pub fn recount(&self, mut counted: Vec<(u32, u32)>) -> Vec<Miscount> {
        counted.resize(counted.len().max(self.numbers()), (0, 0));
        self.awaiting_resume.iter().for_each(|frame| counted[*frame as usize].1 += 1);
        let booked = |frame: usize| match frame < self.numbers() {
            true => (self.references[frame], self.reservations[frame]),
            false => (0, 0),
        };
        let differs = |(frame, &counted): (usize, &(u32, u32))| {
            (booked(frame) != counted).then(|| Miscount { frame: frame as u32, booked: booked(frame), counted })
        };
        counted.iter().enumerate().filter_map(differs).collect()
    }

    /// Compares the books with what the page tables say, by frame: references and reservations.
    pub fn check(&self, mut users: HashMap<u32, (u32, u32)>) -> Result<(), String> {
        for frame in &self.awaiting_resume {
            users.entry(*frame).or_default().1 += 1;
        }
        self.store.check()?;
        self.stable.check(&self.digests)?;
        let mut in_tree = self.stable.frames();
        in_tree.sort_unstable();
        let mut in_use: Vec<u32> = users.keys().copied().collect();
        in_use.sort_unstable();
        if in_tree != in_use {
            return Err("frames of the tree are not those in use".into());
        }
        if self.store.used() != in_use {
            return Err("frames of the pool are not those in use".into());
        }
        for frame in 0..self.digests.len() {
            let counted = users.get(&(frame as u32)).copied().unwrap_or_default();
            if (self.references[frame], self.reservations[frame]) != counted {
                return Err(format!("references or reservations of frame {frame}"));
            }
        }
        if self.shared != users.values().filter(|(references, _)| *references > 0).count() {
            return Err("frames in use miscounted".into());
        }
        Ok(())
    }

    /// Takes a frame out of the tree alone, which makes the books wrong.
    #[cfg(test)]
    pub fn forget_listing(&mut self, frame: u32) {
        self.stable.remove(self.digests[frame as usize], frame);
    }
}
