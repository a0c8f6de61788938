//! A column of a page table: a byte a page, in blocks of 512 pages, of which each is one value for all of its pages or a
//! byte for each.
//!
//! Segments are large and sparse, and what is said of them is said of long runs. So what a column takes, and what going
//! through it costs, follows from what differs between pages, never from how many pages somebody claims to have.

use crate::page::Run;
use crate::sys::zeroed::zeroed;

/// Pages in a block.
const BLOCK: usize = 512;
/// Numbers below this in `Column::blocks` are values.
const VALUES: u32 = 256;
/// What the allocator takes for a block besides its bytes, about.
pub const HEAD: usize = 24;
const WORD: usize = 8;

type Bytes = Box<[u8; BLOCK]>;

/// See the head of this file.
pub struct Column {
    // A value, or `VALUES` and the place of its bytes. Zeroed: what was never written costs no memory.
    blocks: Vec<u32>,
    bytes: Vec<Option<Bytes>>,
    free: Vec<u32>, // places in `bytes`
    len: usize,
}

/// Pages of one block.
enum Piece<'a> {
    All(u8),
    Each(&'a [u8]),
}

impl Column {
    /// All zeros; None if there is no memory for them.
    pub fn new(len: usize) -> Option<Column> {
        Some(Column { blocks: zeroed(len.div_ceil(BLOCK))?, bytes: Vec::new(), free: Vec::new(), len })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn get(&self, page: usize) -> u8 {
        debug_assert!(page < self.len);
        match self.block(page / BLOCK) {
            Piece::All(value) => value,
            Piece::Each(bytes) => bytes[page % BLOCK],
        }
    }

    pub fn set(&mut self, page: usize, value: u8) {
        debug_assert!(page < self.len);
        if self.get(page) != value {
            self.bytes_of(page / BLOCK)[page % BLOCK] = value;
        }
    }

    /// Changes the entries of a run. `seen` is told each value that was there before, and of how many pages.
    pub fn map(&mut self, run: Run, change: impl Fn(u8) -> u8, mut seen: impl FnMut(u8, usize)) {
        debug_assert!(run.end() <= self.len);
        let mut at = run.first;
        while at < run.end() {
            let (block, end) = (at / BLOCK, run.end().min(self.end_of(at)));
            match self.block(block) {
                Piece::All(before) => {
                    seen(before, end - at);
                    let after = change(before);
                    if after != before && end - at == self.end_of(at) - block * BLOCK {
                        self.blocks[block] = after.into();
                    } else if after != before {
                        self.bytes_of(block)[at % BLOCK..][..end - at].fill(after);
                    }
                }
                Piece::Each(_) => {
                    let bytes = &mut self.bytes_of(block)[at % BLOCK..][..end - at];
                    for value in bytes {
                        seen(*value, 1);
                        *value = change(*value);
                    }
                    if end == self.end_of(at) {
                        self.join(block);
                    }
                }
            }
            at = end;
        }
    }

    /// Gives all entries of a run one value. `seen` as with `map`.
    pub fn fill(&mut self, run: Run, value: u8, seen: impl FnMut(u8, usize)) {
        self.map(run, |_| value, seen);
    }

    /// The first entry in `from..end` that is wanted.
    pub fn find(&self, from: usize, end: usize, wanted: impl Fn(u8) -> bool) -> Option<usize> {
        let (mut at, end) = (from, end.min(self.len));
        let mut unwanted = None; // eight of them in a row
        while at < end {
            let next = end.min(self.end_of(at));
            match self.block(at / BLOCK) {
                Piece::All(value) if wanted(value) => return Some(at),
                Piece::All(_) => {}
                Piece::Each(bytes) => {
                    let here = &bytes[at % BLOCK..][..next - at];
                    if let Some(n) = find_in(here, &mut unwanted, &wanted) {
                        return Some(at + n);
                    }
                }
            }
            at = next;
        }
        None
    }

    /// The next run of entries that are wanted, within `from..end`.
    pub fn next(&self, from: usize, end: usize, wanted: impl Fn(u8) -> bool) -> Option<Run> {
        let end = end.min(self.len);
        let first = self.find(from, end, &wanted)?;
        let last = self.find(first, end, |value| !wanted(value)).unwrap_or(end);
        Some(Run { first, count: last - first })
    }

    /// How many entries are wanted.
    pub fn count(&self, wanted: impl Fn(u8) -> bool) -> usize {
        let of_block = |block: usize| match self.block(block) {
            Piece::All(value) if wanted(value) => BLOCK.min(self.len - block * BLOCK),
            Piece::All(_) => 0,
            Piece::Each(bytes) => bytes.iter().filter(|&&value| wanted(value)).count(),
        };
        (0..self.blocks.len()).map(of_block).sum()
    }

    /// What it takes because pages differ: all but what stands for its blocks.
    pub fn claims(&self) -> usize {
        (self.bytes.len() - self.free.len()) * (BLOCK + HEAD)
    }

    pub fn bookkeeping_bytes(&self) -> usize {
        4 * (self.blocks.len() + self.free.capacity())
            + size_of::<Option<Bytes>>() * self.bytes.capacity()
            + (self.bytes.len() - self.free.len()) * BLOCK
    }

    /// Keeps no bytes for blocks of which all pages have one value.
    pub fn compact(&mut self) {
        (0..self.blocks.len()).for_each(|block| self.join(block));
    }

    fn block(&self, block: usize) -> Piece<'_> {
        let number = self.blocks[block];
        if number < VALUES {
            return Piece::All(number as u8);
        }
        let bytes = self.bytes[(number - VALUES) as usize].as_deref().expect("a block's bytes are there");
        Piece::Each(&bytes[..BLOCK.min(self.len - block * BLOCK)])
    }

    /// The end of the block that a page is in.
    fn end_of(&self, page: usize) -> usize {
        self.len.min(page - page % BLOCK + BLOCK)
    }

    /// A byte for each page of a block, from now on.
    fn bytes_of(&mut self, block: usize) -> &mut [u8; BLOCK] {
        let number = self.blocks[block];
        if number < VALUES {
            let place = self.free.pop().unwrap_or_else(|| {
                self.bytes.push(None);
                (self.bytes.len() - 1) as u32
            });
            self.bytes[place as usize] = Some(Box::new([number as u8; BLOCK]));
            self.blocks[block] = VALUES + place;
        }
        let place = (self.blocks[block] - VALUES) as usize;
        self.bytes[place].as_deref_mut().expect("a block's bytes are there")
    }

    /// One value for all pages of a block, if they have it.
    fn join(&mut self, block: usize) {
        let Piece::Each(bytes) = self.block(block) else { return };
        let value = bytes[0];
        if bytes.iter().all(|&other| other == value) {
            let place = self.blocks[block] - VALUES;
            self.blocks[block] = value.into();
            self.bytes[place as usize] = None;
            self.free.push(place);
        }
    }
}

/// The first byte that is wanted. Words that equal one without any are passed over with one look.
fn find_in(bytes: &[u8], unwanted: &mut Option<u64>, wanted: impl Fn(u8) -> bool) -> Option<usize> {
    let mut words = bytes.chunks_exact(WORD);
    for (n, word) in words.by_ref().enumerate() {
        let number = word.try_into().map(u64::from_ne_bytes).ok();
        if number == *unwanted {
            continue;
        }
        if let Some(found) = word.iter().position(|&value| wanted(value)) {
            return Some(n * WORD + found);
        }
        *unwanted = number;
    }
    let rest = words.remainder();
    rest.iter().position(|&value| wanted(value)).map(|found| bytes.len() - rest.len() + found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEN: usize = 3 * BLOCK + 100;

    fn run() -> impl Strategy<Value = Run> {
        let near =
            prop_oneof![0..=LEN, (0..4usize, 0..3usize).prop_map(|(n, d)| (n * BLOCK + d).saturating_sub(1).min(LEN))];
        (near.clone(), near).prop_map(|(a, b)| Run { first: a.min(b), count: a.max(b) - a.min(b) })
    }

    proptest! {
        #[test]
        fn it_is_a_list_of_bytes(
            steps in prop::collection::vec((run(), 0u8..4, 0..3), 1..30),
            part in run(),
            mask in 1u8..4,
        ) {
            let mut column = Column::new(LEN).unwrap();
            let mut model = vec![0u8; LEN];
            for (run, value, kind) in steps {
                let (mut seen, mut expected) = ([0; 8], [0; 8]);
                model[run.first..run.end()].iter().for_each(|&v| expected[v as usize] += 1);
                let tell = |value: u8, count: usize| seen[value as usize] += count;
                match kind {
                    0 => {
                        column.fill(run, value, tell);
                        model[run.first..run.end()].fill(value);
                    }
                    1 => {
                        column.map(run, |v| v ^ value, tell);
                        model[run.first..run.end()].iter_mut().for_each(|v| *v ^= value);
                    }
                    _ => {
                        let page = run.first.min(LEN - 1);
                        column.set(page, value);
                        model[page] = value;
                        expected = [0; 8];
                    }
                }
                prop_assert_eq!(seen, expected);
            }
            prop_assert!((0..LEN).all(|page| column.get(page) == model[page]));
            let wanted = |value: u8| value & mask != 0;
            let (from, end) = (part.first, part.end());
            let found = (from..end).find(|&page| wanted(model[page]));
            prop_assert_eq!(column.find(from, end, wanted), found);
            let run = column.next(from, end, wanted);
            prop_assert_eq!(run.map(|run| run.first), found);
            if let Some(run) = run {
                prop_assert!((run.first..run.end()).all(|page| wanted(model[page])));
                prop_assert!(run.end() == end || !wanted(model[run.end()]));
            }
            prop_assert_eq!(column.count(wanted), model.iter().filter(|&&value| wanted(value)).count());
        }
    }

    #[test]
    fn what_is_said_of_long_runs_takes_no_memory() {
        let pages = 1 << 28;
        let mut column = Column::new(pages).unwrap();
        let empty = column.bookkeeping_bytes();
        let whole = Run { first: 0, count: pages };
        for value in [1, 2, 0] {
            column.fill(whole, value, |_, _| ());
            assert_eq!(column.count(|other| other == value), pages);
        }
        column.map(whole, |value| value | 4, |_, _| ());
        assert_eq!(column.bookkeeping_bytes(), empty);
        column.set(pages / 2, 5);
        assert!(column.bookkeeping_bytes() > empty && column.claims() > 0);
        column.set(pages / 2, 4);
        column.compact();
        assert_eq!(column.claims(), 0);
        column.set(pages / 2, 5);
        let middle = Run { first: pages / 2 - 700, count: 1400 };
        column.fill(middle, 7, |_, _| ());
        assert_eq!(column.next(0, pages, |value| value != 4), Some(middle));
        assert_eq!(column.bytes.len(), column.free.len() + 2); // at both ends of the run only
    }
}
