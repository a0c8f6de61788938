//! A tree from digests to 32-bit numbers, in eight bytes an entry: both trees of the engine are made of it.
//!
//! An entry is the upper half of the digest and the number; the whole digest stands where the number points to. Where
//! two digests agree in their upper half (a million entries have a hundred such pairs), the second one stands aside
//! under its whole digest, and moves in when the first leaves.
//!
//! Looking up a batch of digests in their order instead of one by one was measured, 64 (a chunk), 2048 (a slice) and
//! 16384 of them: it saves nothing, a tenth and a third. As pages are decided on in chunks, it is not done.

use std::collections::BTreeMap;

/// What an entry takes, filled in no order: measured (`tests::trees::an_entry_takes_so_much`).
const ENTRY_BYTES: usize = 17;
const ASIDE_BYTES: usize = 24;

/// See the head of this file.
#[derive(Default)]
pub struct Tree {
    entries: BTreeMap<u32, u32>,
    aside: BTreeMap<u64, u32>,
}

fn upper(digest: u64) -> u32 {
    (digest >> 32) as u32
}

impl Tree {
    pub fn len(&self) -> usize {
        self.entries.len() + self.aside.len()
    }

    /// The number under a digest; `digest_of` knows those of all numbers in the tree.
    pub fn get(&self, digest: u64, digest_of: impl Fn(u32) -> u64) -> Option<u32> {
        let number = *self.entries.get(&upper(digest))?;
        if digest_of(number) == digest { Some(number) } else { self.aside.get(&digest).copied() }
    }

    /// Enters a number under a digest, under which there is none.
    pub fn insert(&mut self, digest: u64, number: u32) {
        if let Some(first) = self.entries.insert(upper(digest), number) {
            self.entries.insert(upper(digest), first);
            self.aside.insert(digest, number);
        }
    }

    /// Removes the number that is under a digest.
    pub fn remove(&mut self, digest: u64, number: u32) {
        if self.aside.is_empty() {
            self.entries.remove(&upper(digest));
        } else if self.aside.remove(&digest).is_none() {
            let lower = u64::from(u32::MAX);
            match self.aside.range(digest & !lower..=digest | lower).next().map(|(other, _)| *other) {
                Some(other) => {
                    let moved = self.aside.remove(&other).expect("it was found");
                    self.entries.insert(upper(digest), moved);
                }
                None => {
                    let removed = self.entries.remove(&upper(digest));
                    debug_assert_eq!(removed, Some(number));
                }
            }
        }
    }

    /// Keeps those numbers only; `digest_of` as for `get`.
    pub fn retain(&mut self, keep: impl Fn(u32) -> bool) {
        self.entries.retain(|_, number| keep(*number));
        for (digest, number) in std::mem::take(&mut self.aside) {
            if keep(number) {
                self.insert(digest, number);
            }
        }
    }

    pub fn clear(&mut self) {
        self.entries.clear();
        self.aside.clear();
    }

    pub fn numbers(&self) -> impl Iterator<Item = u32> {
        self.entries.values().chain(self.aside.values()).copied()
    }

    pub fn bookkeeping_bytes(&self) -> usize {
        ENTRY_BYTES * self.entries.len() + ASIDE_BYTES * self.aside.len()
    }

    /// Whether every number is found under its digest.
    pub fn check(&self, digest_of: impl Fn(u32) -> u64) -> Result<(), String> {
        let found = |number: u32| self.get(digest_of(number), &digest_of) == Some(number);
        if !self.numbers().all(found) {
            return Err("an entry of a tree stands under another digest, or two under one".into());
        }
        if self.aside.iter().any(|(digest, number)| digest_of(*number) != *digest) {
            return Err("an entry stands aside under another digest".into());
        }
        Ok(())
    }
}
