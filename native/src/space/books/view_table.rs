//! A view's page table: what each page maps, and how many mappings that takes. Pure books.
//!
//! ```text
//!   page      0 1 2 3 4 5 6 7 8 9
//!   state     o o M M M o Z Z M M        o owned  M merged  Z zero
//!   frame     . . 7 8 9 . . . 4 9
//!   mappings  |1 |2    |3|4  |5|6        a run of following frames is one mapping
//! ```
//!
//! Kept true: `mappings` is what counting from scratch gives, `counts` too; `check` does so.

use crate::page::{Run, pieces};

/// What a page maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PageState {
    /// Its segment, shared.
    Owned = 0,
    /// A frame, privately; not written, as far as is known.
    Merged = 1,
    /// The zero page; not written, as far as is known.
    Zero = 2,
    /// A frame, and it was written since: a private copy.
    Copied = 3,
    /// The zero page, and it was written since.
    CopiedZero = 4,
    /// Its own segment, privately: after a fork.
    Frozen = 5,
    /// In a child: what the parent had there, privately, and no segment of this process's.
    Inherited = 6,
}

/// Number of states.
const STATES: usize = 7;

impl PageState {
    const ALL: [PageState; STATES] = [
        PageState::Owned,
        PageState::Merged,
        PageState::Zero,
        PageState::Copied,
        PageState::CopiedZero,
        PageState::Frozen,
        PageState::Inherited,
    ];

    /// Whether the page holds a reference in the server's books: a frame's, or the zero page's.
    pub fn is_switched(self) -> bool {
        matches!(self, PageState::Merged | PageState::Zero | PageState::Copied | PageState::CopiedZero)
    }

    /// Whether the page maps a frame of a pool.
    pub fn has_frame(self) -> bool {
        matches!(self, PageState::Merged | PageState::Copied)
    }

    fn backing(self) -> u8 {
        match self {
            PageState::Owned => 0,
            PageState::Merged | PageState::Copied => 1,
            PageState::Zero | PageState::CopiedZero => 2,
            PageState::Frozen => 3,
            PageState::Inherited => 4,
        }
    }
}

const EXCLUDED: u8 = 0x80;
const UNWATCHED: u8 = 0x40;
const STATE: u8 = !(EXCLUDED | UNWATCHED);

/// States, frames and flags of a view's pages: 7 bytes a page, touched only where used.
pub struct ViewTable {
    // The zeroed vectors come from calloc: a large sparse view costs nothing for pages that are never merged.
    state: Vec<u8>,
    frame: Vec<u32>,
    pool: Vec<u16>,
    pins: Vec<Run>,
    counts: [usize; STATES],
    mappings: usize,
    watches: bool,
    unwatched: usize,
}

impl ViewTable {
    /// All pages owned.
    pub fn new(pages: usize) -> ViewTable {
        let mut counts = [0; STATES];
        counts[PageState::Owned as usize] = pages;
        ViewTable {
            state: vec![0; pages],
            frame: vec![0; pages],
            pool: vec![0; pages],
            pins: Vec::new(),
            counts,
            mappings: 1,
            watches: false,
            unwatched: 0,
        }
    }

    /// The pages are watched for writes from now on: whatever is mapped anew counts as unwatched.
    pub fn begin_to_watch(&mut self) {
        self.watches = true;
    }

    /// Whether writes to the pages are watched for, as a rule.
    pub fn watches(&self) -> bool {
        self.watches
    }

    /// Owned pages whose writes nobody would notice.
    pub fn unwatched(&self) -> usize {
        self.unwatched
    }

    /// Whether a page is one of them.
    pub fn is_unwatched(&self, page: usize) -> bool {
        self.state[page] & UNWATCHED != 0
    }

    /// Writes to the owned pages of a run are not noticed any more.
    pub fn set_unwatched(&mut self, run: Run) {
        for flags in self.state[run.first..run.end()].iter_mut().filter(|_| self.watches) {
            if *flags & (STATE | UNWATCHED) == PageState::Owned as u8 {
                *flags |= UNWATCHED;
                self.unwatched += 1;
            }
        }
    }

    /// Writes to a run are noticed again.
    pub fn set_watched(&mut self, run: Run) {
        for flags in &mut self.state[run.first..run.end()] {
            self.unwatched -= usize::from(*flags & UNWATCHED != 0);
            *flags &= !UNWATCHED;
        }
    }

    /// How many pages there are.
    pub fn pages(&self) -> usize {
        self.state.len()
    }

    /// What a page maps.
    pub fn state(&self, page: usize) -> PageState {
        PageState::ALL[(self.state[page] & STATE) as usize]
    }

    /// A page's pool and frame; meaningful where the state has a frame.
    pub fn frame(&self, page: usize) -> (u32, u32) {
        (u32::from(self.pool[page]), self.frame[page])
    }

    /// How many pages are in a state.
    pub fn count(&self, state: PageState) -> usize {
        self.counts[state as usize]
    }

    /// Pages that hold a reference in the server's books.
    pub fn switched(&self) -> usize {
        PageState::ALL.iter().filter(|s| s.is_switched()).map(|s| self.count(*s)).sum()
    }

    /// How many mappings the view takes.
    pub fn mappings(&self) -> usize {
        self.mappings
    }

    /// Whether merging is unwanted here.
    pub fn is_excluded(&self, page: usize) -> bool {
        self.state[page] & EXCLUDED != 0
    }

    /// Says whether merging is wanted.
    pub fn exclude(&mut self, run: Run, excluded: bool) {
        for flags in &mut self.state[run.first..run.end()] {
            *flags = if excluded { *flags | EXCLUDED } else { *flags & !EXCLUDED };
        }
    }

    /// Pins a run once more.
    pub fn pin(&mut self, run: Run) {
        self.pins.push(run);
    }

    /// Undoes one pin of just this run; false if there is none.
    pub fn unpin(&mut self, run: Run) -> bool {
        let found = self.pins.iter().position(|pin| *pin == run);
        found.map(|at| self.pins.swap_remove(at)).is_some()
    }

    /// Whether any page is pinned.
    pub fn has_pins(&self) -> bool {
        !self.pins.is_empty()
    }

    /// Forgets pins and exclusion of a run whose memory was given back.
    pub fn forget_wishes(&mut self, run: Run) {
        self.pins.retain(|pin| !pin.overlaps(run));
        self.exclude(run, false);
    }

    /// Whether a page is pinned.
    pub fn is_pinned(&self, page: usize) -> bool {
        self.pins.iter().any(|pin| pin.first <= page && page < pin.end())
    }

    /// By how much the mappings grow if the run maps following frames from `frame` on (or all of `state`).
    pub fn cost(&self, run: Run, state: PageState, pool: u32, frame: u32) -> isize {
        let before: usize = (run.first..=run.end()).filter(|at| self.is_boundary(*at)).count();
        let seam = |left: (PageState, u32, u32), right: (PageState, u32, u32)| usize::from(!joins(left, right));
        let mut after = 0;
        if run.first > 0 {
            after += seam(self.entry(run.first - 1), (state, pool, frame));
        }
        if run.end() < self.pages() {
            let last = if state.has_frame() { frame.wrapping_add(run.count as u32 - 1) } else { frame };
            after += seam((state, pool, last), self.entry(run.end()));
        }
        after as isize - before as isize
    }

    /// Books that the run maps following frames from `frame` on (or all of `state`).
    pub fn set(&mut self, run: Run, state: PageState, pool: u32, frame: u32) {
        let grown = self.cost(run, state, pool, frame);
        for (offset, page) in (run.first..run.end()).enumerate() {
            let old = self.state(page);
            self.counts[old as usize] -= 1;
            self.counts[state as usize] += 1;
            let unwatched = self.watches && state == PageState::Owned;
            self.unwatched += usize::from(unwatched);
            self.unwatched -= usize::from(self.state[page] & UNWATCHED != 0);
            let flags = self.state[page] & EXCLUDED | if unwatched { UNWATCHED } else { 0 };
            self.state[page] = flags | state as u8;
            self.pool[page] = pool as u16;
            self.frame[page] = if state.has_frame() { frame + offset as u32 } else { 0 };
        }
        self.mappings = self.mappings.checked_add_signed(grown).expect("a view has at least one mapping");
    }

    /// In a child: nothing maps the segment of these books any more, and no device writes here.
    pub fn become_snapshot(&mut self) {
        self.pins.clear();
        self.watches = false;
        let whole = Run { first: 0, count: self.pages() };
        self.set_watched(whole);
        let mut left = Vec::new();
        let leave = |state: PageState| matches!(state, PageState::Owned | PageState::Frozen);
        pieces(whole, |page| leave(self.state(page)), |run, is| left.extend(is.then_some(run)));
        for run in left {
            self.set(run, PageState::Inherited, 0, 0);
        }
    }

    /// Books that a switched page was written. The mapping stays, but is counted as one of its own: see `joins`.
    pub fn set_copied(&mut self, page: usize) {
        let old = self.state(page);
        let new = match old {
            PageState::Merged => PageState::Copied,
            PageState::Zero => PageState::CopiedZero,
            other => other,
        };
        let boundaries = |table: &ViewTable| [page, page + 1].into_iter().filter(|at| table.is_boundary(*at)).count();
        let before = boundaries(self);
        self.counts[old as usize] -= 1;
        self.counts[new as usize] += 1;
        self.state[page] = self.state[page] & EXCLUDED | new as u8;
        self.mappings = self.mappings + boundaries(self) - before;
    }

    fn entry(&self, page: usize) -> (PageState, u32, u32) {
        (self.state(page), u32::from(self.pool[page]), self.frame[page])
    }

    fn is_boundary(&self, at: usize) -> bool {
        at > 0 && at < self.pages() && !joins(self.entry(at - 1), self.entry(at))
    }

    /// Recounts everything.
    ///
    /// # Panics
    /// At the first difference.
    pub fn check(&self) {
        let mappings = 1 + (1..self.pages()).filter(|at| self.is_boundary(*at)).count();
        assert_eq!(self.mappings, mappings, "mappings");
        for state in PageState::ALL {
            let counted = (0..self.pages()).filter(|page| self.state(*page) == state).count();
            assert_eq!(self.count(state), counted, "{state:?}");
        }
        let unwatched: Vec<usize> = (0..self.pages()).filter(|page| self.is_unwatched(*page)).collect();
        assert_eq!(self.unwatched, unwatched.len(), "unwatched");
        assert!(unwatched.iter().all(|page| self.state(*page) == PageState::Owned), "only owned pages are watched");
    }
}

/// Whether two neighbouring pages are sure to be one mapping. Written pages are not: each mapping has its anonymous pages
/// on a list of its own, and the kernel joins no two mappings with different lists. So this counts too many, never too few.
fn joins(left: (PageState, u32, u32), right: (PageState, u32, u32)) -> bool {
    if matches!(left.0, PageState::Copied | PageState::CopiedZero)
        || matches!(right.0, PageState::Copied | PageState::CopiedZero)
    {
        return false;
    }
    if left.0.backing() != right.0.backing() {
        return false;
    }
    !left.0.has_frame() || (left.1 == right.1 && left.2.wrapping_add(1) == right.2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_run_of_following_frames_is_one_mapping() {
        let mut t = ViewTable::new(10);
        t.set(Run { first: 2, count: 3 }, PageState::Merged, 1, 7);
        assert_eq!(t.mappings(), 3);
        t.set(Run { first: 5, count: 2 }, PageState::Merged, 1, 10);
        assert_eq!(t.mappings(), 3);
        t.set(Run { first: 7, count: 1 }, PageState::Merged, 1, 10);
        assert_eq!(t.mappings(), 4);
        t.set_copied(3);
        assert_eq!(t.mappings(), 6);
        t.check();
        assert_eq!(t.count(PageState::Copied), 1);
        t.set(Run { first: 0, count: 10 }, PageState::Owned, 0, 0);
        assert_eq!(t.mappings(), 1);
        t.check();
    }

    #[test]
    fn exclusion_and_pins_survive_changes_of_state() {
        let mut t = ViewTable::new(4);
        let run = Run { first: 1, count: 2 };
        t.exclude(run, true);
        t.pin(run);
        t.pin(run);
        t.set(run, PageState::Zero, 0, 0);
        assert!(t.is_excluded(1) && t.is_pinned(2) && !t.is_pinned(3));
        assert!(t.unpin(run) && t.is_pinned(1) && t.unpin(run) && !t.is_pinned(1) && !t.unpin(run));
        t.forget_wishes(run);
        assert!(!t.is_excluded(1));
        t.check();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn books_equal_a_recount(steps in prop::collection::vec((0usize..24, 1usize..24, 0u8..6, 1u32..3, 0u32..30), 1..40)) {
            let mut t = ViewTable::new(24);
            t.begin_to_watch();
            for (first, count, kind, pool, frame) in steps {
                let run = Run { first, count: count.min(24 - first) };
                let state = [PageState::Owned, PageState::Merged, PageState::Zero, PageState::Frozen][kind as usize % 4];
                if kind > 3 && t.state(first).is_switched() {
                    t.set_copied(first);
                    t.check();
                    continue;
                }
                if kind > 4 {
                    t.set_watched(Run { first: 0, count: 12 });
                    t.set_unwatched(Run { first: 8, count: 8 });
                    t.check();
                }
                let (pool, frame) = if state.has_frame() { (pool, frame) } else { (0, 0) };
                let expected = t.mappings() as isize + t.cost(run, state, pool, frame);
                t.set(run, state, pool, frame);
                prop_assert_eq!(t.mappings() as isize, expected);
                t.check();
            }
        }
    }
}
