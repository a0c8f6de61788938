//! The stable tree: frames by the digest of their bytes, which never change.
//!
//! A digest has one frame as a rule; those beyond `max_page_sharing` pages have several: then the oldest stands in the
//! tree, and all of them in a list, in the order in which they were made. Whole digests are in the column of `frames`.

use crate::engine::frames::tree::Tree;
use std::collections::{BTreeMap, HashMap};

/// When a frame was made: the youngest has the highest.
type Age = u64;

/// Frames of one digest, oldest first. There may be as many as a pool has, so none is looked for by going through them.
#[derive(Debug, Default)]
struct Twins {
    frames: BTreeMap<Age, u32>,
    /// Those that were made before this one have no room.
    full: Age,
}

impl Twins {
    fn oldest(&self) -> Option<u32> {
        self.frames.first_key_value().map(|(_, frame)| *frame)
    }
}

/// See the head of this file.
#[derive(Default)]
pub struct Stable {
    tree: Tree,                 // the oldest of each digest
    twins: HashMap<u64, Twins>, // of digests with more than one frame
    ages: HashMap<u32, Age>,    // of the frames that stand in one of those
    made: Age,
}

impl Stable {
    /// Frames beyond the first of each digest.
    pub fn duplicates(&self) -> usize {
        self.ages.len() - self.twins.len()
    }

    /// The oldest frame with this digest that has room.
    pub fn find(&mut self, digest: u64, digests: &[u64], has_room: impl Fn(u32) -> bool) -> Option<u32> {
        if !self.twins.is_empty()
            && let Some(twins) = self.twins.get_mut(&digest)
        {
            let found = twins.frames.range(twins.full..).find(|(_, frame)| has_room(**frame));
            twins.full = found.map_or(self.made + 1, |(age, _)| *age);
            return found.map(|(_, frame)| *frame);
        }
        self.oldest(digest, digests).filter(|&frame| has_room(frame))
    }

    /// A user of a frame with this digest is gone.
    pub fn has_room_again(&mut self, digest: u64, frame: u32) {
        if let Some(twins) = self.twins.get_mut(&digest) {
            twins.full = twins.full.min(self.ages[&frame]);
        }
    }

    /// What counts as room has changed.
    pub fn forget_fullness(&mut self) {
        self.twins.values_mut().for_each(|twins| twins.full = 0);
    }

    /// Adds the youngest frame of a digest, which stands in `digests` already.
    pub fn insert(&mut self, digest: u64, frame: u32, digests: &[u64]) {
        if let Some(older) = self.oldest(digest, digests) {
            if !self.twins.contains_key(&digest) {
                self.add_twin(digest, older);
            }
            self.add_twin(digest, frame);
        } else {
            self.tree.insert(digest, frame);
        }
    }

    fn add_twin(&mut self, digest: u64, frame: u32) {
        self.made += 1;
        self.ages.insert(frame, self.made);
        self.twins.entry(digest).or_default().frames.insert(self.made, frame);
    }

    pub fn remove(&mut self, digest: u64, frame: u32) {
        let Some(twins) = self.twins.get_mut(&digest) else {
            self.tree.remove(digest, frame);
            return;
        };
        let before = twins.oldest();
        if let Some(age) = self.ages.remove(&frame) {
            twins.frames.remove(&age);
        }
        let Some(oldest) = twins.oldest() else { return };
        if twins.frames.len() == 1 {
            self.ages.remove(&oldest);
            self.twins.remove(&digest);
        }
        if before == Some(frame) {
            self.tree.remove(digest, frame);
            self.tree.insert(digest, oldest);
        }
    }

    pub fn bookkeeping_bytes(&self) -> usize {
        let twins = self.twins.capacity() * (size_of::<(u64, Twins)>() + 1);
        // A map's node has room for 11, and is two thirds full as a rule.
        let lists = self.ages.len() * size_of::<(Age, u32)>() * 3 / 2;
        self.tree.bookkeeping_bytes() + twins + lists + self.ages.capacity() * (size_of::<(u32, Age)>() + 1)
    }

    /// All frames of the tree, in no order.
    pub fn frames(&self) -> Vec<u32> {
        let younger = self.twins.values().flat_map(|twins| twins.frames.values().skip(1)).copied();
        self.tree.numbers().chain(younger).collect()
    }

    /// Whether it has this frame under this digest.
    pub fn has(&self, digest: u64, frame: u32, digests: &[u64]) -> bool {
        match self.twins.get(&digest) {
            Some(twins) => self.ages.get(&frame).is_some_and(|age| twins.frames.get(age) == Some(&frame)),
            None => self.oldest(digest, digests) == Some(frame),
        }
    }

    /// Looks whether each frame is where it belongs.
    pub fn check(&self, digests: &[u64]) -> Result<(), String> {
        self.tree.check(|frame| digests[frame as usize])?;
        for (digest, twins) in &self.twins {
            let of_digest = |frame: &u32| digests[*frame as usize] == *digest;
            if twins.frames.len() < 2 || !twins.frames.values().all(of_digest) {
                return Err("a list of twins that are none".into());
            }
            if !twins.frames.iter().all(|(age, frame)| self.ages.get(frame) == Some(age)) {
                return Err("a twin of another age".into());
            }
            if self.oldest(*digest, digests) != twins.oldest() {
                return Err("the oldest of twins is not in the tree".into());
            }
        }
        if self.ages.len() != self.twins.values().map(|twins| twins.frames.len()).sum::<usize>() {
            return Err("ages of frames that are no twins".into());
        }
        Ok(())
    }

    /// The oldest frame of a digest.
    fn oldest(&self, digest: u64, digests: &[u64]) -> Option<u32> {
        self.tree.get(digest, |frame| digests[frame as usize])
    }
}
