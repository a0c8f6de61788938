//! Which frame numbers are free. Pure books; the decisions are those of `pagefold_server.engine.reference.pool`.
//!
//! ```text
//!   frame   0     1     2     3     4    ...                       numbers      limit
//!           [used][used][free][free][used]      free              |   not yet  |
//! ```
//!
//! A number costs a byte here, memory is only behind frames that are written. So numbers are spent to keep neighbours
//! together (a client maps a run of frames with one mapping): gaps too short for a run stay unused until the limit.
//! Kept true: a number is used again only after it was released and then given back.

use std::collections::{BTreeMap, BTreeSet};

/// A gap of fewer frames is used only when nothing else is left.
const RUN: u32 = 64;
/// Frames by which numbers grow.
const GROWTH: u32 = 4096;
/// Released frames that wait to be punched together.
const BATCH: usize = 256;

/// Roughly what a gap takes: two entries of a tree of pairs, and one of a set.
const GAP_BYTES: usize = 48;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Use {
    Free = 0,
    Used = 1,
    /// Not yet given back.
    Released = 2,
}

/// See the head of this file.
pub struct Allocator {
    limit: u32,
    uses: Vec<u8>,
    gaps: BTreeMap<u32, u32>, // free frames: end of a gap -> its first frame, for gaps are used from the front
    long: BTreeSet<u32>,      // ends of the gaps of at least RUN
    released: Vec<u32>,
}

impl Allocator {
    /// Nothing is there yet. `limit`: most numbers, used or not.
    pub fn new(limit: u32) -> Allocator {
        Allocator { limit, uses: Vec::new(), gaps: BTreeMap::new(), long: BTreeSet::new(), released: Vec::new() }
    }

    pub fn numbers(&self) -> u32 {
        self.uses.len() as u32
    }

    pub fn is_free(&self, frame: u32) -> bool {
        self.uses.get(frame as usize) == Some(&(Use::Free as u8))
    }

    pub fn is_used(&self, frame: u32) -> bool {
        self.uses.get(frame as usize) == Some(&(Use::Used as u8))
    }

    /// Whether there is a gap in which a run could begin.
    pub fn has_long_gap(&self) -> bool {
        !self.long.is_empty()
    }

    pub fn has_gap(&self) -> bool {
        !self.gaps.is_empty()
    }

    /// How many numbers there would be after growing; None at the limit.
    pub fn growth(&self) -> Option<u32> {
        let new = self.numbers().saturating_add(GROWTH).min(self.limit);
        (new > self.numbers()).then_some(new)
    }

    /// There are more numbers now, all new ones free.
    pub fn grow(&mut self, numbers: u32) {
        let old = self.numbers();
        reserve(&mut self.uses, (numbers - old) as usize);
        self.uses.resize(numbers as usize, Use::Free as u8);
        self.add_gap(old, numbers - old);
    }

    /// So many numbers are there from before, all free as far as is known. False if that is beyond the limit.
    pub fn recover(&mut self, numbers: u32) -> bool {
        if numbers > self.limit {
            return false;
        }
        if numbers > 0 {
            self.grow(numbers);
        }
        true
    }

    /// The start of the first gap that is long enough for a run, else of any.
    pub fn start_of_run(&self) -> Option<u32> {
        match self.long.first() {
            Some(end) => Some(self.gaps[end]),
            None => self.gaps.first_key_value().map(|(_, first)| *first),
        }
    }

    /// Takes a free number.
    pub fn take_frame(&mut self, frame: u32) {
        debug_assert!(self.is_free(frame));
        let (&end, &first) = self.gaps.range(frame + 1..).next().expect("free frames stand in gaps");
        self.set_gap(first, frame);
        self.set_gap(frame + 1, end);
        self.uses[frame as usize] = Use::Used as u8;
    }

    /// Gives a number up. Whether a batch is full: time to punch.
    pub fn release(&mut self, frame: u32) -> bool {
        debug_assert!(self.is_used(frame));
        self.uses[frame as usize] = Use::Released as u8;
        self.released.push(frame);
        self.released.len().is_multiple_of(BATCH)
    }

    /// Takes out the numbers that were released, highest first.
    pub fn take_released(&mut self) -> Vec<u32> {
        let mut released = std::mem::take(&mut self.released);
        released.sort_unstable_by(|a, b| b.cmp(a));
        released
    }

    /// Puts back those that could not be punched.
    pub fn put_back(&mut self, released: Vec<u32>) {
        self.released = released;
    }

    /// Released numbers are punched, and free again.
    pub fn give_back(&mut self, first: u32, count: u32) {
        self.uses[first as usize..(first + count) as usize].fill(Use::Free as u8);
        self.add_gap(first, count);
    }

    /// Numbers in use, in order.
    pub fn used(&self) -> impl Iterator<Item = u32> {
        (0..self.numbers()).filter(|&frame| self.is_used(frame))
    }

    pub fn bookkeeping_bytes(&self) -> usize {
        self.uses.capacity() + GAP_BYTES * self.gaps.len() + 4 * self.released.capacity()
    }

    /// Counts again.
    pub fn check(&self) -> Result<(), String> {
        let free: Vec<u32> = (0..self.numbers()).filter(|&frame| self.is_free(frame)).collect();
        let gaps: Vec<u32> = self.gaps.iter().flat_map(|(&end, &first)| first..end).collect();
        let mut released = self.released.clone();
        released.sort_unstable();
        let is_released = |&frame: &u32| self.uses[frame as usize] == Use::Released as u8;
        let long = self.gaps.iter().filter(|&(&end, &first)| end - first >= RUN).map(|(&end, _)| end);
        if gaps != free {
            Err("the gaps are not the free frames".into())
        } else if released != (0..self.numbers()).filter(is_released).collect::<Vec<_>>() {
            Err("the released frames are not those that wait".into())
        } else if !long.eq(self.long.iter().copied()) {
            Err("a gap is taken for long, or for short".into())
        } else if self.gaps.values().any(|first| self.gaps.contains_key(first)) {
            Err("two gaps touch".into())
        } else {
            Ok(())
        }
    }

    /// Adds free frames, and joins the gap with its neighbours.
    fn add_gap(&mut self, first: u32, count: u32) {
        let (mut first, mut end) = (first, first + count);
        if let Some(&before) = self.gaps.get(&first) {
            self.set_gap(first, first);
            first = before;
        }
        if let Some((&behind, &start)) = self.gaps.range(end + 1..).next()
            && start == end
        {
            end = behind;
        }
        self.set_gap(first, end);
    }

    /// Moves the front of the gap that ends there; an empty one goes.
    fn set_gap(&mut self, first: u32, end: u32) {
        if first < end {
            self.gaps.insert(end, first);
        } else {
            self.gaps.remove(&end);
        }
        if end - first >= RUN {
            self.long.insert(end);
        } else {
            self.long.remove(&end);
        }
    }
}

/// Makes room for more, in steps of an eighth: doubling would leave columns half empty.
pub fn reserve<T>(column: &mut Vec<T>, more: usize) {
    if column.capacity() - column.len() < more {
        column.reserve_exact(more.max(column.len() / 8));
    }
}
