//! A tree from digests to 32-bit numbers, in eight bytes an entry: both trees of the engine are made of it.
//!
//! An entry is the upper half of the digest and the number; the whole digest stands where the number points to, and tells
//! entries with the same upper half apart (a million entries have a hundred such pairs).
//!
//! Digests are spread evenly, so where one belongs in a sorted array can be computed. The array has gaps, and an entry
//! stands in its place or shortly behind it:
//!
//! ```text
//!   place      0    1    2    3    4    5    6    7          place = digest * places / 2^32
//!   entries  [ 0 ][ 0'][ 2 ][ 2'][ 2"][   ][ 6 ][   ]        kept true: sorted, no gap between an entry and its place
//! ```
//!
//! That is one cache miss to find an entry or to find none, where a BTreeMap of a million has several: 75 ns against 280,
//! for each page that is read. There are 256 such arrays, by the first bits, so that none takes long to grow.

/// Nothing stands here. No number is so large.
const EMPTY: u64 = u64::MAX;
const SHARD_BITS: u32 = 8;
/// Places of a shard that has just begun.
const FEWEST: usize = 8;

/// See the head of this file.
pub struct Tree {
    shards: Vec<Shard>,
    len: usize,
}

/// A sorted array with gaps: so many places, and behind them room for what was pushed out of the last ones. It ends with
/// a gap.
#[derive(Clone, Default)]
struct Shard {
    entries: Vec<u64>,
    places: usize,
    len: usize,
}

impl Default for Tree {
    fn default() -> Tree {
        Tree { shards: vec![Shard::default(); 1 << SHARD_BITS], len: 0 }
    }
}

fn entry(digest: u64, number: u32) -> u64 {
    (digest & !u64::from(u32::MAX)) | u64::from(number)
}

fn shard_of(digest: u64) -> usize {
    (digest >> (64 - SHARD_BITS)) as usize
}

impl Tree {
    pub fn len(&self) -> usize {
        self.len
    }

    /// The number under a digest; `digest_of` knows those of all numbers in the tree.
    pub fn get(&self, digest: u64, digest_of: impl Fn(u32) -> u64) -> Option<u32> {
        self.shards[shard_of(digest)].with_upper(digest).find(|number| digest_of(*number) == digest)
    }

    /// Enters a number under a digest, under which there is none.
    pub fn insert(&mut self, digest: u64, number: u32) {
        self.shards[shard_of(digest)].insert(entry(digest, number));
        self.len += 1;
    }

    /// Removes the number that is under a digest.
    pub fn remove(&mut self, digest: u64, number: u32) {
        self.len -= usize::from(self.shards[shard_of(digest)].remove(entry(digest, number)));
    }

    /// Keeps those numbers only.
    pub fn retain(&mut self, keep: impl Fn(u32) -> bool) {
        for shard in &mut self.shards {
            let kept: Vec<u64> = shard.sorted().filter(|entry| keep(*entry as u32)).collect();
            self.len -= shard.len - kept.len();
            *shard = Shard::of(&kept, kept.len());
        }
    }

    pub fn clear(&mut self) {
        *self = Tree::default();
    }

    pub fn numbers(&self) -> impl Iterator<Item = u32> {
        self.shards.iter().flat_map(Shard::sorted).map(|entry| entry as u32)
    }

    pub fn bookkeeping_bytes(&self) -> usize {
        let entries: usize = self.shards.iter().map(|shard| shard.entries.capacity()).sum();
        entries * size_of::<u64>() + size_of_val(self.shards.as_slice())
    }

    /// Whether every number is found under its digest, and every shard is what it is to be.
    pub fn check(&self, digest_of: impl Fn(u32) -> u64) -> Result<(), String> {
        let found = |number: u32| self.get(digest_of(number), &digest_of) == Some(number);
        if !self.numbers().all(found) {
            return Err("an entry of a tree stands under another digest, or two under one".into());
        }
        if self.len != self.shards.iter().map(|shard| shard.len).sum::<usize>() {
            return Err("entries of a tree miscounted".into());
        }
        self.shards.iter().try_for_each(Shard::check)
    }
}

impl Shard {
    /// An array of sorted entries, with room for `room` before it has to grow: it is filled to three quarters then.
    fn of(sorted: &[u64], room: usize) -> Shard {
        if room == 0 {
            return Shard::default();
        }
        let places = (room * 4 / 3).max(FEWEST);
        let mut shard = Shard { entries: vec![EMPTY; places + 1], places, len: sorted.len() };
        let mut free = 0;
        for &entry in sorted {
            let at = shard.place(entry).max(free);
            if at + 1 >= shard.entries.len() {
                shard.entries.resize(at + 2, EMPTY);
            }
            shard.entries[at] = entry;
            free = at + 1;
        }
        shard
    }

    /// Where an entry or a digest belongs. What tells them apart, their lower halves, must not count.
    fn place(&self, entry: u64) -> usize {
        let rest = (entry << SHARD_BITS) >> (32 + SHARD_BITS); // of the upper half, behind the shard's bits
        ((rest * self.places as u64) >> (32 - SHARD_BITS)) as usize
    }

    fn sorted(&self) -> impl Iterator<Item = u64> {
        self.entries.iter().copied().filter(|entry| *entry != EMPTY)
    }

    /// The numbers whose digests have the same upper half.
    fn with_upper(&self, digest: u64) -> impl Iterator<Item = u32> {
        let upper = digest >> 32;
        let start = if self.entries.is_empty() { 0 } else { self.place(digest) };
        let from = self.entries[start..].iter().copied().take_while(|entry| *entry != EMPTY);
        from.skip_while(move |entry| entry >> 32 < upper)
            .take_while(move |entry| entry >> 32 == upper)
            .map(|entry| entry as u32)
    }

    fn insert(&mut self, new: u64) {
        if self.len * 4 >= self.places * 3 {
            // Two fifths more: filled to between a half and three quarters.
            let kept: Vec<u64> = self.sorted().collect();
            *self = Shard::of(&kept, (self.len * 7 / 5).max(FEWEST / 2));
        }
        let mut at = self.place(new);
        while self.entries[at] < new {
            at += 1;
        }
        let gap = at + self.entries[at..].iter().position(|entry| *entry == EMPTY).expect("it ends with a gap");
        if gap + 1 == self.entries.len() {
            self.entries.push(EMPTY);
        }
        self.entries.copy_within(at..gap, at + 1);
        self.entries[at] = new;
        self.len += 1;
    }

    fn remove(&mut self, old: u64) -> bool {
        if self.entries.is_empty() {
            return false;
        }
        let mut at = self.place(old);
        while self.entries[at] < old {
            at += 1;
        }
        if self.entries[at] != old {
            return false;
        }
        // Those behind it that do not stand in their place move up.
        let mut end = at + 1;
        while self.entries[end] != EMPTY && self.place(self.entries[end]) < end {
            end += 1;
        }
        self.entries.copy_within(at + 1..end, at);
        self.entries[end - 1] = EMPTY;
        self.len -= 1;
        if self.len * 4 < self.places && self.places > 4 * FEWEST {
            let kept: Vec<u64> = self.sorted().collect();
            *self = Shard::of(&kept, kept.len() * 3 / 2);
        }
        true
    }

    fn check(&self) -> Result<(), String> {
        if self.entries.last().is_some_and(|last| *last != EMPTY) {
            return Err("a shard does not end with a gap".into());
        }
        let mut last = None;
        for (at, &entry) in self.entries.iter().enumerate().filter(|(_, entry)| **entry != EMPTY) {
            if last.is_some_and(|last| last >= entry) {
                return Err("a shard is not sorted".into());
            }
            let place = self.place(entry);
            if place > at || self.entries[place..at].contains(&EMPTY) {
                return Err("there is a gap between an entry and its place".into());
            }
            last = Some(entry);
        }
        if self.len == self.sorted().count() { Ok(()) } else { Err("entries of a shard miscounted".into()) }
    }
}
