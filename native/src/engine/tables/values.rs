//! The column of a page table that has 8 bytes a page, in blocks of 128 pages: there are none for pages of which nothing
//! is known. A page that stands alone takes a kibibyte, less than the page itself.

use crate::engine::tables::column::HEAD;
use crate::page::Run;
use crate::sys::zeroed::zeroed;

/// Pages in a block.
const BLOCK: usize = 128;

type Numbers = Box<[u64; BLOCK]>;

/// See the head of this file.
pub struct Values {
    // The place of its numbers and one; 0: all of them are 0. Zeroed: what was never written costs no memory.
    blocks: Vec<u32>,
    numbers: Vec<Option<Numbers>>,
    free: Vec<u32>, // places in `numbers`
}

impl Values {
    /// All zeros; None if there is no memory for them.
    pub fn new(len: usize) -> Option<Values> {
        Some(Values { blocks: zeroed(len.div_ceil(BLOCK))?, numbers: Vec::new(), free: Vec::new() })
    }

    pub fn get(&self, page: usize) -> u64 {
        match self.blocks[page / BLOCK] {
            0 => 0,
            place => self.numbers[place as usize - 1].as_deref().expect("a block's numbers are there")[page % BLOCK],
        }
    }

    pub fn set(&mut self, page: usize, value: u64) {
        let block = &mut self.blocks[page / BLOCK];
        if *block == 0 {
            if value == 0 {
                return;
            }
            let place = self.free.pop().unwrap_or_else(|| {
                self.numbers.push(None);
                (self.numbers.len() - 1) as u32
            });
            self.numbers[place as usize] = Some(Box::new([0; BLOCK]));
            *block = place + 1;
        }
        let place = *block as usize - 1;
        self.numbers[place].as_deref_mut().expect("a block's numbers are there")[page % BLOCK] = value;
    }

    /// All of a run are 0.
    pub fn clear(&mut self, run: Run) {
        let mut at = run.first;
        while at < run.end() {
            let (block, end) = (at / BLOCK, run.end().min(at - at % BLOCK + BLOCK));
            if end - at == BLOCK {
                self.drop_block(block);
            } else if self.blocks[block] != 0 {
                (at..end).for_each(|page| self.set(page, 0));
            }
            at = end;
        }
    }

    /// Forgets the numbers of blocks that nobody needs, which is asked by the pages in them.
    pub fn compact(&mut self, is_needed: impl Fn(usize, usize) -> bool) {
        for block in 0..self.blocks.len() {
            if self.blocks[block] != 0 && !is_needed(block * BLOCK, (block + 1) * BLOCK) {
                self.drop_block(block);
            }
        }
    }

    /// What it takes because something is known of pages: all but what stands for its blocks.
    pub fn claims(&self) -> usize {
        (self.numbers.len() - self.free.len()) * (8 * BLOCK + HEAD)
    }

    pub fn bookkeeping_bytes(&self) -> usize {
        4 * (self.blocks.len() + self.free.capacity())
            + size_of::<Option<Numbers>>() * self.numbers.capacity()
            + (self.numbers.len() - self.free.len()) * 8 * BLOCK
    }

    fn drop_block(&mut self, block: usize) {
        // Only where there are some: writing a zero over a zero takes memory.
        if self.blocks[block] != 0 {
            let place = std::mem::take(&mut self.blocks[block]) - 1;
            self.numbers[place as usize] = None;
            self.free.push(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEN: usize = 3 * BLOCK + 10;

    proptest! {
        #[test]
        fn it_is_a_list_of_numbers(steps in prop::collection::vec((0..LEN, 0..LEN, 0u64..3, any::<bool>()), 1..40)) {
            let mut values = Values::new(LEN).unwrap();
            let mut model = vec![0u64; LEN];
            for (a, b, value, one) in steps {
                if one {
                    values.set(a, value);
                    model[a] = value;
                } else {
                    values.clear(Run { first: a.min(b), count: a.abs_diff(b) });
                    model[a.min(b)..a.max(b)].fill(0);
                }
            }
            values.compact(|first, end| model[first..end.min(LEN)].iter().any(|&value| value != 0));
            prop_assert!((0..LEN).all(|page| values.get(page) == model[page]));
            let used = model.chunks(BLOCK).filter(|block| block.iter().any(|&value| value != 0)).count();
            prop_assert_eq!(values.claims(), used * (8 * BLOCK + HEAD));
        }
    }
}
