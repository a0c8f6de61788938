//! Pages and runs of them. Everything outside `sys` counts pages; only here do counts become bytes.

use std::sync::OnceLock;

/// The kernel's base page in bytes. Asked once; it cannot change.
pub fn page_size() -> usize {
    static SIZE: OnceLock<usize> = OnceLock::new();
    *SIZE.get_or_init(crate::sys::page_size::page_size)
}

/// Bytes that `pages` pages take.
pub fn bytes(pages: usize) -> usize {
    pages * page_size()
}

/// Neighbouring pages of one view, or frames of one pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Run {
    /// The first page.
    pub first: usize,
    /// How many; never 0 in a run that is kept anywhere.
    pub count: usize,
}

impl Run {
    /// The page after the last.
    pub fn end(self) -> usize {
        self.first + self.count
    }

    /// Whether the run has pages and all of them lie below `pages`. Safe for any numbers a peer may send.
    pub fn fits(self, pages: usize) -> bool {
        self.count > 0 && self.first < pages && self.count <= pages - self.first
    }

    /// Whether the two have a page in common.
    pub fn overlaps(self, other: Run) -> bool {
        self.first < other.end() && other.first < self.end()
    }
}

/// Splits `run` into maximal pieces over which `key` is the same, and hands each to `each` in order.
pub fn pieces<K: PartialEq>(run: Run, key: impl Fn(usize) -> K, mut each: impl FnMut(Run, K)) {
    let mut at = run.first;
    while at < run.end() {
        let here = key(at);
        let mut end = at + 1;
        while end < run.end() && key(end) == here {
            end += 1;
        }
        each(Run { first: at, count: end - at }, here);
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fits_survives_any_numbers() {
        assert!(Run { first: 0, count: 4 }.fits(4));
        assert!(!Run { first: 1, count: 4 }.fits(4));
        assert!(!Run { first: 0, count: 0 }.fits(4));
        assert!(!Run { first: usize::MAX, count: 2 }.fits(4));
        assert!(!Run { first: 2, count: usize::MAX }.fits(4));
    }

    #[test]
    fn pieces_cover_the_run_in_order() {
        let kinds = [1, 1, 2, 2, 2, 1];
        let mut seen = Vec::new();
        pieces(Run { first: 1, count: 5 }, |i| kinds[i], |r, k| seen.push((r.first, r.count, k)));
        assert_eq!(seen, vec![(1, 1, 1), (2, 3, 2), (5, 1, 1)]);
    }
}
