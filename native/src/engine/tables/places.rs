//! The places of all pages of a domain: 32-bit numbers, by which the unstable tree names them.
//!
//! ```text
//!   place   0 .... 8191 | 8192 ... 12287 |   free   | 20480 ...            2**32
//!           segment A   | segment B      |          | segment D
//! ```
//!
//! Each segment has a range of them while it lives; ranges are used again.

use crate::engine::ids::TableId;
use std::collections::BTreeMap;

const ALL: u64 = 1 << 32;

/// Which ranges are whose.
#[derive(Default)]
pub struct Places {
    taken: BTreeMap<u32, (u64, TableId)>, // first place -> places, whose
}

impl Places {
    /// The first free range for so many pages, None if there is none. Nothing is taken yet.
    pub fn find(&self, pages: usize) -> Option<u32> {
        let mut free = 0;
        for (&first, &(count, _)) in &self.taken {
            if u64::from(first) - free >= pages as u64 {
                break;
            }
            free = u64::from(first) + count;
        }
        if pages > 0 && pages as u64 <= ALL - free { u32::try_from(free).ok() } else { None }
    }

    /// Takes a range that `find` has found.
    pub fn take_places(&mut self, first: u32, pages: usize, table: TableId) {
        self.taken.insert(first, (pages as u64, table));
    }

    pub fn give_back(&mut self, first: u32) {
        self.taken.remove(&first);
    }

    /// Whose place that is, and which of its pages.
    pub fn locate(&self, place: u32) -> (TableId, usize) {
        let (first, &(_, table)) = self.taken.range(..=place).next_back().expect("places in use are taken");
        (table, (place - first) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_used_again_and_run_out() {
        let mut places = Places::default();
        let add = |places: &mut Places, pages: usize, id: u64| {
            let first = places.find(pages)?;
            places.take_places(first, pages, TableId(id));
            Some(first)
        };
        assert_eq!(add(&mut places, 100, 1), Some(0));
        assert_eq!(add(&mut places, 1 << 31, 2), Some(100));
        assert_eq!(add(&mut places, 1 << 31, 3), None);
        assert_eq!(add(&mut places, (1 << 31) - 100, 4), Some((1 << 31) + 100));
        assert_eq!(add(&mut places, 1, 5), None);
        assert_eq!(places.locate(99), (TableId(1), 99));
        assert_eq!(places.locate(u32::MAX), (TableId(4), (1 << 31) - 101));
        places.give_back(100);
        assert_eq!(add(&mut places, 5, 6), Some(100));
        assert_eq!(add(&mut places, 5, 7), Some(105));
        assert_eq!(places.locate(107), (TableId(7), 2));
        assert_eq!(places.find(0), None);
        assert_eq!(Places::default().find(1 << 32), Some(0));
        assert_eq!(Places::default().find((1 << 32) + 1), None);
    }
}
