//! A set of pages, a bit each.

use crate::page::Run;

/// See above. Zeroed memory from calloc: what is never touched costs nothing.
pub struct Bits {
    words: Vec<u64>,
}

impl Bits {
    /// Nothing of `pages` pages.
    pub fn new(pages: usize) -> Bits {
        Bits { words: vec![0; pages.div_ceil(64)] }
    }

    /// Whether a page is in.
    pub fn has(&self, page: usize) -> bool {
        self.words[page / 64] >> (page % 64) & 1 != 0
    }

    /// Puts a run in.
    pub fn insert(&mut self, run: Run) {
        self.each_word(run, |word, mask| *word |= mask);
    }

    /// Takes a run out. How many of its pages were in.
    pub fn remove(&mut self, run: Run) -> usize {
        let mut were = 0;
        self.each_word(run, |word, mask| {
            were += (*word & mask).count_ones() as usize;
            *word &= !mask;
        });
        were
    }

    /// How many pages of a run are in.
    pub fn count(&self, run: Run) -> usize {
        words(run).map(|(at, mask)| (self.words[at] & mask).count_ones() as usize).sum()
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    fn each_word(&mut self, run: Run, mut each: impl FnMut(&mut u64, u64)) {
        for (at, mask) in words(run) {
            each(&mut self.words[at], mask);
        }
    }
}

/// The words that a run has bits in, and which of their bits.
pub fn words(run: Run) -> impl Iterator<Item = (usize, u64)> {
    (run.first / 64..run.end().div_ceil(64)).map(move |at| {
        let (from, to) = (run.first.max(at * 64) - at * 64, run.end().min(at * 64 + 64) - at * 64);
        let mask = if to - from == 64 { u64::MAX } else { ((1u64 << (to - from)) - 1) << from };
        (at, mask)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn is_a_set(steps in prop::collection::vec((0usize..200, 0usize..200, any::<bool>()), 1..30)) {
            let (mut bits, mut model) = (Bits::new(200), BTreeSet::new());
            for (first, count, insert) in steps {
                let run = Run { first, count: count.min(200 - first) };
                prop_assert_eq!(bits.count(run), (run.first..run.end()).filter(|page| model.contains(page)).count());
                if insert {
                    bits.insert(run);
                    model.extend(run.first..run.end());
                } else {
                    let were = (run.first..run.end()).filter(|page| model.remove(page)).count();
                    prop_assert_eq!(bits.remove(run), were);
                }
                prop_assert!((0..200).all(|page| bits.has(page) == model.contains(&page)));
            }
            bits.clear();
            prop_assert_eq!(bits.count(Run { first: 0, count: 200 }), 0);
        }
    }
}
