//! Searching columns of a byte a page. Long stretches of zeros, as sparse segments have, are passed over by the word,
//! and read only: a column that was never written costs no memory, and looking at it shall not change that.

use crate::page::Run;

const WORD: usize = 8;

/// The first entry in `from..end` that has one of the bits of `mask`.
pub fn find_bits(column: &[u8], from: usize, end: usize, mask: u8) -> Option<usize> {
    let splat = u64::from_ne_bytes([mask; WORD]);
    let mut at = from;
    while at + WORD <= end {
        let word = u64::from_ne_bytes(column[at..at + WORD].try_into().expect("a word"));
        if word & splat != 0 {
            break;
        }
        at += WORD;
    }
    (at.min(end)..end).find(|&page| column[page] & mask != 0)
}

/// The next run of entries that have one of the bits of `mask`.
pub fn next_bits(column: &[u8], from: usize, end: usize, mask: u8) -> Option<Run> {
    let first = find_bits(column, from, end, mask)?;
    Some(run_from(column, first, end, |value| value & mask != 0))
}

/// The next run of entries whose value is in `set`, a bit for each value below 16.
pub fn next_of(column: &[u8], from: usize, end: usize, set: u16) -> Option<Run> {
    let wanted = |value: u8| set >> value & 1 != 0;
    let first = from + column[from.min(end)..end].iter().position(|&value| wanted(value))?;
    Some(run_from(column, first, end, wanted))
}

/// The first entry that is 0 from `from` on.
pub fn find_zero(column: &[u8], from: usize) -> Option<usize> {
    Some(from + column.get(from..)?.iter().position(|&value| value == 0)?)
}

fn run_from(column: &[u8], first: usize, end: usize, wanted: impl Fn(u8) -> bool) -> Run {
    let count = column[first..end].iter().position(|&value| !wanted(value)).unwrap_or(end - first);
    Run { first, count }
}

/// How many entries have one of the bits of `mask`.
pub fn count_bits(column: &[u8], mask: u8) -> usize {
    column.iter().filter(|&&value| value & mask != 0).count()
}

/// Replaces every entry of a run that is not 0.
pub fn map_nonzero(column: &mut [u8], run: Run, change: impl Fn(u8) -> u8) {
    let mut at = run.first;
    while let Some(page) = find_bits(column, at, run.end(), 0xFF) {
        let here = next_bits(column, page, run.end(), 0xFF).map_or(page + 1, Run::end);
        for value in &mut column[page..here] {
            *value = change(*value);
        }
        at = here;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn searches_agree_with_looking_at_each_entry(
            column in prop::collection::vec(prop_oneof![4 => Just(0u8), 1 => 1u8..10], 0..60),
            from in 0usize..60,
            mask in 1u8..16,
        ) {
            let (end, from) = (column.len(), from.min(column.len()));
            let bits = (from..end).find(|&n| column[n] & mask != 0);
            prop_assert_eq!(find_bits(&column, from, end, mask), bits);
            let run = next_bits(&column, from, end, mask);
            prop_assert_eq!(run.map(|r| r.first), bits);
            if let Some(run) = run {
                prop_assert!((run.first..run.end()).all(|n| column[n] & mask != 0));
                prop_assert!(run.end() == end || column[run.end()] & mask == 0);
            }
            prop_assert_eq!(find_zero(&column, from), (from..end).find(|&n| column[n] == 0));
            let set = 0b10_0000_0010u16;
            let found = next_of(&column, from, end, set);
            prop_assert_eq!(found.map(|r| r.first), (from..end).find(|&n| set >> column[n] & 1 != 0));
            prop_assert_eq!(count_bits(&column, mask), column.iter().filter(|&&v| v & mask != 0).count());
            let mut mapped = column.clone();
            map_nonzero(&mut mapped, Run { first: from, count: end - from }, |v| v - 1);
            for n in 0..end {
                prop_assert_eq!(mapped[n], if n < from { column[n] } else { column[n].saturating_sub(1) });
            }
        }
    }
}
