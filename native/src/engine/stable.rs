//! The stable tree: frames by the digest of their bytes, which never change.
//!
//! An entry is eight bytes: the upper half of the digest, and the frame, whose whole digest stands in the column of
//! `frames`. A digest has one frame as a rule; those beyond `max_page_sharing` pages have several, and these are kept
//! aside as well, in the order in which they were made.

use std::collections::{BTreeSet, HashMap};

/// What an entry of a `BTreeSet<u64>` takes, filled in no order: measured (`tests::an_entry_takes_so_much`).
pub const ENTRY_BYTES: usize = 17;

/// Upper half of a digest: the part by which trees are ordered.
pub const UPPER: u64 = 0xFFFF_FFFF_0000_0000;

/// Frames of one digest, oldest first.
#[derive(Debug, Default)]
struct Twins {
    frames: Vec<u32>,
    /// So many of the first have no room. Looking for room among thousands of full frames would take long.
    full: usize,
}

/// See the head of this file.
#[derive(Default)]
pub struct Stable {
    entries: BTreeSet<u64>,
    twins: HashMap<u64, Twins>, // of digests with more than one frame
}

impl Stable {
    /// Frames beyond the first of each digest.
    pub fn duplicates(&self) -> usize {
        self.twins.values().map(|twins| twins.frames.len() - 1).sum()
    }

    /// The oldest frame with this digest that has room.
    pub fn find(&mut self, digest: u64, digests: &[u64], has_room: impl Fn(u32) -> bool) -> Option<u32> {
        if let Some(twins) = self.twins.get_mut(&digest) {
            let behind = twins.frames[twins.full..].iter().position(|&frame| has_room(frame));
            twins.full = behind.map_or(twins.frames.len(), |n| twins.full + n);
            return twins.frames.get(twins.full).copied();
        }
        self.only(digest, digests).filter(|&frame| has_room(frame))
    }

    /// A user of a frame with this digest is gone.
    pub fn has_room_again(&mut self, digest: u64) {
        if let Some(twins) = self.twins.get_mut(&digest) {
            twins.full = 0;
        }
    }

    /// What counts as room has changed.
    pub fn forget_fullness(&mut self) {
        self.twins.values_mut().for_each(|twins| twins.full = 0);
    }

    /// Adds the youngest frame of a digest, which stands in `digests` already.
    pub fn insert(&mut self, digest: u64, frame: u32, digests: &[u64]) {
        if let Some(twins) = self.twins.get_mut(&digest) {
            twins.frames.push(frame);
        } else if let Some(older) = self.only(digest, digests) {
            self.twins.insert(digest, Twins { frames: vec![older, frame], full: 0 });
        }
        self.entries.insert(digest & UPPER | u64::from(frame));
    }

    pub fn remove(&mut self, digest: u64, frame: u32) {
        self.entries.remove(&(digest & UPPER | u64::from(frame)));
        if let Some(twins) = self.twins.get_mut(&digest) {
            twins.frames.retain(|&other| other != frame);
            twins.full = 0;
            if twins.frames.len() == 1 {
                self.twins.remove(&digest);
            }
        }
    }

    pub fn bookkeeping_bytes(&self) -> usize {
        let twins = self.twins.capacity() * (size_of::<(u64, Twins)>() + 1);
        let lists: usize = self.twins.values().map(|twins| 4 * twins.frames.capacity()).sum();
        ENTRY_BYTES * self.entries.len() + twins + lists
    }

    /// Frames in the tree, with the upper half of their digest.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u32)> {
        self.entries.iter().map(|entry| (entry & UPPER, *entry as u32))
    }

    /// Compares the lists of twins with the entries.
    pub fn check(&self, digests: &[u64]) -> Result<(), String> {
        let mut frames: HashMap<u64, Vec<u32>> = HashMap::new();
        for (upper, frame) in self.iter() {
            let digest = digests[frame as usize];
            if digest & UPPER != upper {
                return Err(format!("frame {frame} stands under another digest"));
            }
            frames.entry(digest).or_default().push(frame);
        }
        frames.retain(|_, list| list.len() > 1);
        let sorted = |list: &Vec<u32>| {
            let mut list = list.clone();
            list.sort_unstable();
            list
        };
        let same = |(digest, twins): (&u64, &Twins)| frames.get(digest).is_some_and(|l| *l == sorted(&twins.frames));
        if frames.len() == self.twins.len() && self.twins.iter().all(same) {
            Ok(())
        } else {
            Err("frames of equal digest, and the lists of them, differ".into())
        }
    }

    /// The frame of a digest that has one only.
    fn only(&self, digest: u64, digests: &[u64]) -> Option<u32> {
        let alike = self.entries.range(digest & UPPER..).take_while(|&entry| entry & UPPER == digest & UPPER);
        alike.map(|entry| *entry as u32).find(|&frame| digests[frame as usize] == digest)
    }
}
