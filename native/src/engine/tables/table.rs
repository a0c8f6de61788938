//! The page table of one segment: what each of its pages is doing, in at most 12 bytes a page. Pure books.
//!
//! ```text
//!   OWNED --proposed--> QUEUED --sent--> PROPOSED --merged--> MERGED or ZERO --written--> COPIED
//!     ^                                     |                      |                        |
//!     |<-- WAITING, OVER_BUDGET, REFUSED <--'declined              '------- released -------'
//!     |    (rest for some passes; PINNED, FAILED and FORKED are refused by name)
//!     '--> EXCLUDED (the program does not want it merged) and back
//!
//!   column    bytes   what
//!   state     1       see above
//!   flags     1       what is going on besides
//!   breaks    1       how often it was written after it was merged
//!   streak    1       passes in a row in which its digest had changed
//!   value     8       the frame while it holds one (from QUEUED to COPIED), else the digest
//! ```
//!
//! A page is proposed for a frame that has its digest. So the code that lets go of the frame can put the digest back, and
//! nothing is lost by keeping both in one column.
//! Kept true: the counts by state are what counting gives, and adopts are asked for only of pages that map something.

use crate::engine::error::{Error, Result};
use crate::engine::tables::column::Column;
use crate::engine::tables::state::{
    ADOPT_QUEUED, ADOPT_SENT, HELD, IN_RUN, LISTED, MAPPED, PENDING, READING, STATES, State, UNHELD, UNWANTED, WRITTEN,
};
use crate::engine::tables::values::Values;
use crate::page::Run;

/// 2**6 = 64 passes is the longest wait.
const MAX_BREAKS: u8 = 6;

// How frames stand in the column of values.
/// The zero page, which a client has mapped since before the books began: no digest of the page is known.
const ZERO_BEFORE: u64 = 0;
const ZERO_FRAME: u64 = u64::MAX;

fn standing(frame: u32) -> u64 {
    u64::from(frame) + 1
}

/// One segment's pages.
pub struct PageTable {
    // A large sparse segment costs next to nothing for pages that are never read.
    states: Column,
    flags: Column,
    breaks: Column,
    streaks: Column,
    values: Values,
    counts: [usize; STATES],
    resumed: usize, // pages that were held before the books began, as it was said
    pub tracked: bool,
}

impl PageTable {
    /// All pages owned and never read.
    pub fn new(pages: usize, tracked: bool) -> Result<PageTable> {
        let mut counts = [0; STATES];
        counts[State::Owned as usize] = pages;
        let column = || Column::new(pages).ok_or(Error::NoMemory);
        Ok(PageTable {
            states: column()?,
            flags: column()?,
            breaks: column()?,
            streaks: column()?,
            values: Values::new(pages).ok_or(Error::NoMemory)?,
            counts,
            resumed: 0,
            tracked,
        })
    }

    pub fn pages(&self) -> usize {
        self.states.len()
    }

    pub fn whole(&self) -> Run {
        Run { first: 0, count: self.pages() }
    }

    pub fn state(&self, page: usize) -> State {
        State::ALL[self.states.get(page) as usize]
    }

    pub fn is_owned(&self, page: usize) -> bool {
        self.states.get(page) == State::Owned as u8
    }

    pub fn count(&self, state: State) -> usize {
        self.counts[state as usize]
    }

    /// The digest of a page that holds no frame; 0 before it was read.
    pub fn digest(&self, page: usize) -> u64 {
        debug_assert!(UNHELD >> self.states.get(page) & 1 != 0);
        self.values.get(page)
    }

    pub fn set_digest(&mut self, page: usize, digest: u64) {
        debug_assert!(UNHELD >> self.states.get(page) & 1 != 0);
        self.values.set(page, digest);
    }

    /// The frame of a page that holds one; None is the zero page.
    pub fn frame(&self, page: usize) -> Option<u32> {
        debug_assert!(HELD >> self.states.get(page) & 1 != 0);
        u32::try_from(self.values.get(page).wrapping_sub(1)).ok()
    }

    /// The frame of a page that a run may go on from.
    pub fn run_frame(&self, page: usize) -> Option<u32> {
        if IN_RUN >> self.states.get(page) & 1 != 0 { self.frame(page) } else { None }
    }

    /// The page is proposed for a frame, None for the zero page.
    pub fn hold(&mut self, page: usize, frame: Option<u32>) {
        self.set_state(page, State::Queued);
        self.values.set(page, frame.map_or(ZERO_FRAME, standing));
    }

    /// Pages that hold frames, or the zero page, because their bytes were read. In doubt fewer.
    pub fn genuine(&self) -> usize {
        let held = State::ALL.iter().filter(|state| HELD & state.bit() != 0).map(|state| self.count(*state));
        held.sum::<usize>().saturating_sub(self.resumed)
    }

    /// The pages have held this frame, or a run from it on, since before the books began; None: the zero page.
    pub fn resume(&mut self, run: Run, frame: Option<u32>) {
        self.resumed += run.count;
        let Some(first) = frame else { return self.hold_zeros(run) };
        for (page, frame) in (run.first..run.end()).zip(first..) {
            self.values.set(page, standing(frame));
        }
        self.set_states(run, State::Merged);
    }

    fn hold_zeros(&mut self, run: Run) {
        self.set_states(run, State::Zero);
        self.values.clear(run);
    }

    /// The page lets go of its frame, which has this digest. Its state is to be changed next.
    pub fn let_go(&mut self, page: usize, digest: u64) {
        if self.values.get(page) != ZERO_BEFORE {
            self.values.set(page, digest);
        }
    }

    pub fn set_state(&mut self, page: usize, state: State) {
        self.counts[self.states.get(page) as usize] -= 1;
        self.counts[state as usize] += 1;
        self.states.set(page, state as u8);
    }

    /// Changes the state of a run, whatever it was.
    pub fn set_states(&mut self, run: Run, state: State) {
        let counts = &mut self.counts;
        self.states.fill(run, state as u8, |before, pages| counts[before as usize] -= pages);
        counts[state as usize] += run.count;
    }

    /// The pages are in their segment again, and candidates unless the program does not want that.
    pub fn own(&mut self, run: Run) {
        self.set_states(run, State::Owned);
        if self.tracked {
            self.set_flag(run, PENDING);
        }
        let mut at = run.first;
        while let Some(unwanted) = self.next_flagged(at, run.end(), UNWANTED) {
            at = unwanted.end();
            self.set_states(unwanted, State::Excluded);
        }
    }

    /// The next run of pages in a set of states, within `from..end`.
    pub fn next_of(&self, from: usize, end: usize, states: u16) -> Option<Run> {
        self.states.next(from, end, |state| states >> state & 1 != 0)
    }

    /// The first owned page from here on.
    pub fn next_owned(&self, from: usize) -> Option<usize> {
        self.states.find(from, self.pages(), |state| state == State::Owned as u8)
    }

    /// Whether every page of a run is in one of these states.
    pub fn only(&self, run: Run, states: u16) -> bool {
        self.states.find(run.first, run.end(), |state| states >> state & 1 == 0).is_none()
    }

    /// The owned pages among up to 64 from `first` on, a bit each; for the scan.
    pub fn owned_among(&self, run: Run) -> u64 {
        (0..run.count).fold(0, |bits, n| bits | u64::from(self.is_owned(run.first + n)) << n)
    }

    pub fn flags(&self, page: usize) -> u8 {
        self.flags.get(page)
    }

    /// The first page from here on with a flag.
    pub fn find_flagged(&self, from: usize, end: usize, flags: u8) -> Option<usize> {
        self.flags.find(from, end, |value| value & flags != 0)
    }

    /// The next run of pages with a flag, within `from..end`.
    pub fn next_flagged(&self, from: usize, end: usize, flags: u8) -> Option<Run> {
        self.flags.next(from, end, |value| value & flags != 0)
    }

    /// The next run of pages with none of these flags, within `from..end`.
    pub fn next_unflagged(&self, from: usize, end: usize, flags: u8) -> Option<Run> {
        self.flags.next(from, end, |value| value & flags == 0)
    }

    pub fn set_flag(&mut self, run: Run, flag: u8) {
        self.flags.map(run, |flags| flags | flag, |_, _| ());
    }

    /// Clears a flag on a run. Returns how many pages had it.
    pub fn clear_flag(&mut self, run: Run, flag: u8) -> usize {
        let mut cleared = 0;
        let mut at = run.first;
        while let Some(found) = self.next_flagged(at, run.end(), flag) {
            at = found.end();
            cleared += found.count;
            self.flags.map(found, |flags| flags & !flag, |_, _| ());
        }
        cleared
    }

    pub fn count_flag(&self, flag: u8) -> usize {
        self.flags.count(|flags| flags & flag != 0)
    }

    /// Owned pages that became due for reading after the pass began.
    pub fn count_due(&self) -> usize {
        let is_due = |flags: u8| flags & (PENDING | WRITTEN) == PENDING;
        let (mut due, mut at) = (0, 0);
        while let Some(run) = self.flags.next(at, self.pages(), is_due) {
            at = run.end();
            due += self.count_owned(run);
        }
        due
    }

    fn count_owned(&self, run: Run) -> usize {
        let (mut owned, mut at) = (0, run.first);
        while let Some(found) = self.next_of(at, run.end(), State::Owned.bit()) {
            at = found.end();
            owned += found.count;
        }
        owned
    }

    /// A pass begins: pages that were written since the last one wait, those that stayed quiet will be read.
    ///
    /// Returns how many owned pages were written, and how many of them had not been in the pass before.
    pub fn sift(&mut self) -> (usize, usize) {
        let found = self.lengthen_streaks();
        let change = |flags: u8| {
            let rest = flags & !(WRITTEN | PENDING | READING);
            if flags & WRITTEN != 0 {
                rest | PENDING
            } else if flags & (PENDING | READING) != 0 {
                rest | READING
            } else {
                rest
            }
        };
        self.flags.map(self.whole(), change, |_, _| ());
        found
    }

    fn lengthen_streaks(&mut self) -> (usize, usize) {
        let (mut volatile, mut fresh, mut at) = (0, 0, 0);
        while let Some(written) = self.next_flagged(at, self.pages(), WRITTEN) {
            at = written.end();
            let mut page = written.first;
            while let Some(owned) = self.next_of(page, written.end(), State::Owned.bit()) {
                page = owned.end();
                volatile += owned.count;
                self.streaks.map(owned, longer, |streak, pages| fresh += if streak == 0 { pages } else { 0 });
            }
        }
        (volatile, fresh)
    }

    /// The page was found changed. Whether it had not been in the pass before.
    pub fn lengthen_streak(&mut self, page: usize) -> bool {
        let before = self.streaks.get(page);
        self.streaks.set(page, longer(before));
        before == 0
    }

    /// The page was found unchanged.
    pub fn end_streak(&mut self, page: usize) {
        self.streaks.set(page, 0);
    }

    #[cfg(test)]
    pub fn streak(&self, page: usize) -> u8 {
        self.streaks.get(page)
    }

    /// What comes to these pages next is new: they are holes now.
    pub fn forget_readings(&mut self, run: Run) {
        self.streaks.fill(run, 0, |_, _| ());
    }

    /// The next reading of these pages is a change. No page has the digest 0, but for one in 2**64.
    pub fn forget_digests(&mut self, run: Run) {
        self.values.clear(run);
    }

    /// The pages from here on, up to `end` at most, that broke as often as this one; and how often that was.
    pub fn next_breaks(&self, page: usize, end: usize) -> (Run, u8) {
        let breaks = self.breaks.get(page);
        let last = self.breaks.find(page, end, |other| other != breaks).unwrap_or(end);
        (Run { first: page, count: last - page }, breaks)
    }

    /// The pages broke once more.
    pub fn count_breaks(&mut self, run: Run) {
        self.breaks.map(run, |breaks| (breaks + 1).min(MAX_BREAKS), |_, _| ());
    }

    pub fn forget_breaks(&mut self, run: Run) {
        self.breaks.fill(run, 0, |_, _| ());
    }

    /// Takes one break off every page.
    pub fn forgive(&mut self) {
        self.breaks.map(self.whole(), |breaks| breaks.saturating_sub(1), |_, _| ());
    }

    /// What the columns take.
    pub fn bookkeeping_bytes(&self) -> usize {
        let columns = self.columns().map(Column::bookkeeping_bytes);
        columns.iter().sum::<usize>() + self.values.bookkeeping_bytes() + size_of::<PageTable>()
    }

    /// What the columns take because pages differ, or something is known of them.
    pub fn claims(&self) -> usize {
        self.columns().map(Column::claims).iter().sum::<usize>() + self.values.claims()
    }

    /// Lets go of what can be done without: nothing of what clients hold or said is forgotten, only what was read.
    pub fn compact(&mut self) {
        for column in [&mut self.states, &mut self.flags, &mut self.breaks, &mut self.streaks] {
            column.compact();
        }
        let (states, flags) = (&self.states, &self.flags);
        self.values.compact(|first, end| {
            states.find(first, end, |state| HELD >> state & 1 != 0).is_some()
                || flags.find(first, end, |flags| flags & LISTED != 0).is_some()
        });
    }

    fn columns(&self) -> [&Column; 4] {
        [&self.states, &self.flags, &self.breaks, &self.streaks]
    }

    /// Counts again, and looks whether flags and frames stand where they should.
    pub fn check(&self) -> std::result::Result<(), String> {
        let mut counts = [0; STATES];
        for page in 0..self.pages() {
            let (state, flags) = (self.states.get(page), self.flags.get(page));
            counts[state as usize] += 1;
            let (here, set) = (self.state(page), 1u16 << state);
            let held = set & HELD != 0;
            let asked = flags & (ADOPT_QUEUED | ADOPT_SENT);
            let text = if held && self.values.get(page) > 1 << 32 && self.values.get(page) != ZERO_FRAME {
                "holds a frame that does not exist"
            } else if here == State::Zero && self.frame(page).is_some() {
                "is on the zero page and on a frame"
            } else if here == State::Merged && self.frame(page).is_none() {
                "is merged and has no frame"
            } else if (here == State::Excluded) != (!held && flags & UNWANTED != 0) {
                "is excluded, or not, against its flag"
            } else if set & MAPPED == 0 && asked != 0 {
                "has nothing to adopt"
            } else if asked == ADOPT_QUEUED | ADOPT_SENT {
                "is asked for twice"
            } else if !self.tracked && flags & WRITTEN != 0 {
                "is not tracked, and flagged as written"
            } else {
                continue;
            };
            return Err(format!("page {page} in state {here:?} with flags {flags} {text}"));
        }
        if counts == self.counts { Ok(()) } else { Err("states miscounted".into()) }
    }
}

fn longer(streak: u8) -> u8 {
    streak.saturating_add(1)
}
