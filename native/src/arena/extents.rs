//! Which pages of the segments are free: best fit, coalescing, O(log n). Pure books; knows no memory and no lock.
//!
//! ```text
//!   by place, per segment     {first: pages}              to coalesce with neighbours
//!   by size, over all         {(pages, segment, first)}   to find the best fit; older segments first, lower pages first
//! ```
//!
//! What holds: free extents lie inside of their segment, do not overlap and do not touch; both views list the same ones.

use crate::page::Run;
use std::collections::{BTreeMap, BTreeSet};

/// Pages of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extent {
    /// The segment's number.
    pub segment: u32,
    /// Its pages.
    pub run: Run,
}

#[derive(Default)]
struct Places {
    pages: usize,
    free: BTreeMap<usize, usize>,
}

/// See the head of this file.
#[derive(Default)]
pub struct Extents {
    by_size: BTreeSet<(usize, u32, usize)>,
    by_place: BTreeMap<u32, Places>,
    free: usize,
}

impl Extents {
    /// Makes a segment known, all of it free.
    pub fn add_segment(&mut self, segment: u32, pages: usize) {
        self.by_place.insert(segment, Places { pages, free: BTreeMap::new() });
        self.insert(Extent { segment, run: Run { first: 0, count: pages } });
    }

    /// Forgets a segment. False, and nothing is done, if it is not wholly free.
    pub fn remove_segment(&mut self, segment: u32) -> bool {
        let whole = self.is_whole(segment);
        if whole {
            let count = self.by_place[&segment].pages;
            self.remove(Extent { segment, run: Run { first: 0, count } });
            self.by_place.remove(&segment);
        }
        whole
    }

    /// Whether all of a segment is free.
    pub fn is_whole(&self, segment: u32) -> bool {
        self.by_place.get(&segment).is_some_and(|places| places.free.get(&0) == Some(&places.pages))
    }

    /// How many pages are free.
    pub fn free(&self) -> usize {
        self.free
    }

    /// Takes pages out of the smallest free extent that is large enough.
    pub fn take_pages(&mut self, pages: usize) -> Option<Extent> {
        let &(size, segment, first) = self.by_size.range((pages, 0, 0)..).next()?;
        self.remove(Extent { segment, run: Run { first, count: size } });
        if size > pages {
            self.insert(Extent { segment, run: Run { first: first + pages, count: size - pages } });
        }
        Some(Extent { segment, run: Run { first, count: pages } })
    }

    /// Gives an extent back. False, and nothing is done, if part of it is free already, or outside of its segment.
    pub fn give(&mut self, extent: Extent) -> bool {
        let Extent { segment, mut run } = extent;
        let Some(places) = self.by_place.get(&segment) else { return false };
        let entry = |found: Option<(&usize, &usize)>| found.map(|(&first, &count)| Run { first, count });
        let following = entry(places.free.range(run.first..).next());
        let preceding = entry(places.free.range(..run.first).next_back());
        if !run.fits(places.pages)
            || following.is_some_and(|next| next.first < run.end())
            || preceding.is_some_and(|last| last.end() > run.first)
        {
            return false;
        }
        if let Some(next) = following.filter(|next| next.first == run.end()) {
            self.remove(Extent { segment, run: next });
            run.count += next.count;
        }
        if let Some(last) = preceding.filter(|last| last.end() == run.first) {
            self.remove(Extent { segment, run: last });
            run = Run { first: last.first, count: last.count + run.count };
        }
        self.insert(Extent { segment, run });
        true
    }

    /// Free extents, in order of place.
    pub fn iter(&self) -> impl Iterator<Item = Extent> {
        self.by_place.iter().flat_map(|(&segment, places)| {
            places.free.iter().map(move |(&first, &count)| Extent { segment, run: Run { first, count } })
        })
    }

    fn insert(&mut self, Extent { segment, run }: Extent) {
        self.by_place.entry(segment).or_default().free.insert(run.first, run.count);
        self.by_size.insert((run.count, segment, run.first));
        self.free += run.count;
    }

    fn remove(&mut self, Extent { segment, run }: Extent) {
        if let Some(places) = self.by_place.get_mut(&segment) {
            places.free.remove(&run.first);
        }
        self.by_size.remove(&(run.count, segment, run.first));
        self.free -= run.count;
    }

    /// Counts again.
    pub fn check(&self) -> Result<(), String> {
        for (segment, places) in &self.by_place {
            let mut end = None;
            for (&first, &count) in &places.free {
                if !(Run { first, count }).fits(places.pages) {
                    return Err(format!("an extent of segment {segment} is empty, or beyond it"));
                }
                if end.is_some_and(|end| first <= end) {
                    return Err(format!("extents of segment {segment} overlap, or were not coalesced"));
                }
                end = Some(first + count);
            }
        }
        let mut listed: Vec<_> =
            self.iter().map(|extent| (extent.run.count, extent.segment, extent.run.first)).collect();
        listed.sort_unstable();
        if !self.by_size.iter().eq(&listed) {
            return Err("the two views of free extents differ".into());
        }
        if self.free != listed.iter().map(|(count, ..)| count).sum::<usize>() {
            return Err("free pages are miscounted".into());
        }
        Ok(())
    }
}
