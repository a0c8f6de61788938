//! The stable tree: frames by the digest of their bytes, which never change.
//!
//! A digest has one frame as a rule; those beyond `max_page_sharing` pages have several: then the oldest stands in the
//! tree, and all of them in a list, in the order in which they were made. Whole digests are in the column of `frames`.

use super::tree::Tree;
use std::collections::HashMap;

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
    tree: Tree,                 // the oldest of each digest
    twins: HashMap<u64, Twins>, // of digests with more than one frame
}

impl Stable {
    /// Frames beyond the first of each digest.
    pub fn duplicates(&self) -> usize {
        self.twins.values().map(|twins| twins.frames.len() - 1).sum()
    }

    /// The oldest frame with this digest that has room.
    pub fn find(&mut self, digest: u64, digests: &[u64], has_room: impl Fn(u32) -> bool) -> Option<u32> {
        if !self.twins.is_empty()
            && let Some(twins) = self.twins.get_mut(&digest)
        {
            let behind = twins.frames[twins.full..].iter().position(|&frame| has_room(frame));
            twins.full = behind.map_or(twins.frames.len(), |n| twins.full + n);
            return twins.frames.get(twins.full).copied();
        }
        self.oldest(digest, digests).filter(|&frame| has_room(frame))
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
        } else if let Some(older) = self.oldest(digest, digests) {
            self.twins.insert(digest, Twins { frames: vec![older, frame], full: 0 });
        } else {
            self.tree.insert(digest, frame);
        }
    }

    pub fn remove(&mut self, digest: u64, frame: u32) {
        let Some(twins) = self.twins.get_mut(&digest) else {
            self.tree.remove(digest, frame);
            return;
        };
        let oldest = twins.frames[0];
        twins.frames.retain(|&other| other != frame);
        twins.full = 0;
        if twins.frames[0] != oldest {
            self.tree.remove(digest, oldest);
            self.tree.insert(digest, twins.frames[0]);
        }
        if twins.frames.len() == 1 {
            self.twins.remove(&digest);
        }
    }

    pub fn bookkeeping_bytes(&self) -> usize {
        let twins = self.twins.capacity() * (size_of::<(u64, Twins)>() + 1);
        let lists: usize = self.twins.values().map(|twins| 4 * twins.frames.capacity()).sum();
        self.tree.bookkeeping_bytes() + twins + lists
    }

    /// All frames of the tree, in no order.
    pub fn frames(&self) -> Vec<u32> {
        let younger = self.twins.values().flat_map(|twins| &twins.frames[1..]).copied();
        self.tree.numbers().chain(younger).collect()
    }

    /// Whether it has this frame under this digest.
    pub fn has(&self, digest: u64, frame: u32, digests: &[u64]) -> bool {
        match self.twins.get(&digest) {
            Some(twins) => twins.frames.contains(&frame),
            None => self.oldest(digest, digests) == Some(frame),
        }
    }

    /// Looks whether each frame is where it belongs.
    pub fn check(&self, digests: &[u64]) -> Result<(), String> {
        self.tree.check(|frame| digests[frame as usize])?;
        for (digest, twins) in &self.twins {
            let of_digest = |frame: &u32| digests[*frame as usize] == *digest;
            if twins.frames.len() < 2 || !twins.frames.iter().all(of_digest) {
                return Err("a list of twins that are none".into());
            }
            if self.oldest(*digest, digests) != Some(twins.frames[0]) {
                return Err("the oldest of twins is not in the tree".into());
            }
        }
        Ok(())
    }

    /// The oldest frame of a digest.
    fn oldest(&self, digest: u64, digests: &[u64]) -> Option<u32> {
        self.tree.get(digest, |frame| digests[frame as usize])
    }
}
