//! The page table of one segment: what each of its pages is doing, in 12 bytes a page. Pure books.
//!
//! ```text
//!   OWNED --proposed--> QUEUED --sent--> PROPOSED --merged--> MERGED or ZERO --written--> COPIED
//!     ^                                     |                      |                        |
//!     |<-- WAITING, OVER_BUDGET, REFUSED <--'declined              '------- released -------'
//!     |    (rest for some passes)
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
//! A page is proposed for a frame that has its digest. So whoever lets go of the frame can put the digest back, and
//! nothing is lost by keeping both in one column.
//! Kept true: the counts by state are what counting gives, and adopts are asked for only of pages that map something.

use super::columns::{self, map_nonzero, next_bits, next_of};
use super::error::{Error, Result};
use super::state::{
    ADOPT_QUEUED, ADOPT_SENT, HELD, IN_RUN, MAPPED, PENDING, READING, STATES, State, UNHELD, UNWANTED, WRITTEN,
};
use crate::page::Run;
use crate::sys::zeroed::zeroed;

/// 2**6 = 64 passes is the longest wait.
const MAX_BREAKS: u8 = 6;

/// How the zero page stands in the column of frames.
const ZERO_FRAME: u64 = u64::MAX;

/// One segment's pages.
pub struct PageTable {
    // Zeroed: a large sparse segment costs nothing for pages that are never read.
    states: Vec<u8>,
    pub flags: Vec<u8>,
    breaks: Vec<u8>,
    pub streaks: Vec<u8>,
    values: Vec<u64>,
    counts: [usize; STATES],
    pub tracked: bool,
}

impl PageTable {
    /// All pages owned and never read.
    pub fn new(pages: usize, tracked: bool) -> Result<PageTable> {
        let mut counts = [0; STATES];
        counts[State::Owned as usize] = pages;
        let column = || zeroed(pages).ok_or(Error::NoMemory);
        Ok(PageTable {
            states: column()?,
            flags: column()?,
            breaks: column()?,
            streaks: column()?,
            values: zeroed(pages).ok_or(Error::NoMemory)?,
            counts,
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
        State::ALL[self.states[page] as usize]
    }

    pub fn is_owned(&self, page: usize) -> bool {
        self.states[page] == State::Owned as u8
    }

    pub fn count(&self, state: State) -> usize {
        self.counts[state as usize]
    }

    /// The digest of a page that holds no frame; 0 before it was read.
    pub fn digest(&self, page: usize) -> u64 {
        debug_assert!(UNHELD >> self.states[page] & 1 != 0);
        self.values[page]
    }

    pub fn set_digest(&mut self, page: usize, digest: u64) {
        debug_assert!(UNHELD >> self.states[page] & 1 != 0);
        self.values[page] = digest;
    }

    /// The frame of a page that holds one; None is the zero page.
    pub fn frame(&self, page: usize) -> Option<u32> {
        debug_assert!(HELD >> self.states[page] & 1 != 0);
        u32::try_from(self.values[page]).ok()
    }

    /// The frame of a page that a run may go on from.
    pub fn run_frame(&self, page: usize) -> Option<u32> {
        if IN_RUN >> self.states[page] & 1 != 0 { self.frame(page) } else { None }
    }

    /// The page is proposed for a frame, None for the zero page.
    pub fn hold(&mut self, page: usize, frame: Option<u32>) {
        self.set_state(page, State::Queued);
        self.values[page] = frame.map_or(ZERO_FRAME, u64::from);
    }

    /// The page lets go of its frame, which has this digest. Its state is to be changed next.
    pub fn let_go(&mut self, page: usize, digest: u64) {
        self.values[page] = digest;
    }

    pub fn set_state(&mut self, page: usize, state: State) {
        self.counts[self.states[page] as usize] -= 1;
        self.counts[state as usize] += 1;
        self.states[page] = state as u8;
    }

    /// Changes the state of a run, whatever it was.
    pub fn set_states(&mut self, run: Run, state: State) {
        for value in &mut self.states[run.first..run.end()] {
            self.counts[*value as usize] -= 1;
            *value = state as u8;
        }
        self.counts[state as usize] += run.count;
    }

    /// The pages are in their segment again, and candidates unless the program does not want that.
    pub fn own(&mut self, run: Run) {
        self.set_states(run, State::Owned);
        if self.tracked {
            self.set_flag(run, PENDING);
        }
        let mut at = run.first;
        while let Some(unwanted) = next_bits(&self.flags, at, run.end(), UNWANTED) {
            at = unwanted.end();
            self.set_states(unwanted, State::Excluded);
        }
    }

    /// The next run of pages in a set of states, within `from..end`.
    pub fn next_of(&self, from: usize, end: usize, states: u16) -> Option<Run> {
        next_of(&self.states, from, end, states)
    }

    /// The first owned page from here on.
    pub fn next_owned(&self, from: usize) -> Option<usize> {
        columns::find_zero(&self.states, from)
    }

    /// The first page from here on with a flag.
    pub fn find_flagged(&self, from: usize, end: usize, flags: u8) -> Option<usize> {
        columns::find_bits(&self.flags, from, end, flags)
    }

    /// The next run of pages with a flag, within `from..end`.
    pub fn next_flagged(&self, from: usize, end: usize, flags: u8) -> Option<Run> {
        next_bits(&self.flags, from, end, flags)
    }

    /// Whether every page of a run is in one of these states.
    pub fn only(&self, run: Run, states: u16) -> bool {
        self.states[run.first..run.end()].iter().all(|&state| states >> state & 1 != 0)
    }

    /// The owned pages among up to 64 from `first` on, a bit each; for the scan.
    pub fn owned_among(&self, run: Run) -> u64 {
        let states = self.states[run.first..run.end()].iter().enumerate();
        states.fold(0, |bits, (n, &state)| bits | u64::from(state == State::Owned as u8) << n)
    }

    pub fn set_flag(&mut self, run: Run, flag: u8) {
        for flags in &mut self.flags[run.first..run.end()] {
            *flags |= flag;
        }
    }

    /// Clears a flag on a run. Returns how many pages had it.
    pub fn clear_flag(&mut self, run: Run, flag: u8) -> usize {
        let mut cleared = 0;
        let mut at = run.first;
        while let Some(found) = next_bits(&self.flags, at, run.end(), flag) {
            at = found.end();
            cleared += found.count;
            for flags in &mut self.flags[found.first..found.end()] {
                *flags &= !flag;
            }
        }
        cleared
    }

    pub fn count_flag(&self, flag: u8) -> usize {
        columns::count_bits(&self.flags, flag)
    }

    /// A pass begins: pages that were written since the last one wait, those that stayed quiet will be read.
    pub fn sift(&mut self) {
        let whole = self.whole();
        map_nonzero(&mut self.flags, whole, |flags| {
            let rest = flags & !(WRITTEN | PENDING | READING);
            if flags & WRITTEN != 0 {
                rest | PENDING
            } else if flags & (PENDING | READING) != 0 {
                rest | READING
            } else {
                rest
            }
        });
    }

    /// The page was found changed. Whether it had not been in the pass before.
    pub fn lengthen_streak(&mut self, page: usize) -> bool {
        let before = self.streaks[page];
        self.streaks[page] = before.saturating_add(1);
        before == 0
    }

    /// What comes to these pages next is new: they are holes now.
    pub fn forget_readings(&mut self, run: Run) {
        map_nonzero(&mut self.streaks, run, |_| 0);
    }

    /// The next reading of these pages is a change. No page has the digest 0, but for one in 2**64.
    pub fn forget_digests(&mut self, run: Run) {
        self.values[run.first..run.end()].fill(0);
    }

    pub fn breaks(&self, page: usize) -> u8 {
        self.breaks[page]
    }

    /// The pages broke once more.
    pub fn count_breaks(&mut self, run: Run) {
        for breaks in &mut self.breaks[run.first..run.end()] {
            *breaks = (*breaks + 1).min(MAX_BREAKS);
        }
    }

    pub fn forget_breaks(&mut self, run: Run) {
        map_nonzero(&mut self.breaks, run, |_| 0);
    }

    /// Takes one break off every page.
    pub fn forgive(&mut self) {
        let whole = self.whole();
        map_nonzero(&mut self.breaks, whole, |breaks| breaks - 1);
    }

    /// What the columns take.
    pub fn bookkeeping_bytes(&self) -> usize {
        let bytes = [&self.states, &self.flags, &self.breaks, &self.streaks].map(Vec::capacity);
        bytes.iter().sum::<usize>() + 8 * self.values.capacity() + size_of::<PageTable>()
    }

    /// Counts again, and looks whether flags and frames stand where they should.
    pub fn check(&self) -> std::result::Result<(), String> {
        let mut counts = [0; STATES];
        for (page, (&state, &flags)) in self.states.iter().zip(&self.flags).enumerate() {
            counts[state as usize] += 1;
            let (here, set) = (self.state(page), 1u16 << state);
            let held = set & HELD != 0;
            let asked = flags & (ADOPT_QUEUED | ADOPT_SENT);
            let text = if held && self.values[page] != ZERO_FRAME && self.frame(page).is_none() {
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
