//! A page table against an array of pages.

use crate::engine::tables::state::{
    ADOPT_QUEUED, ADOPT_SENT, LISTED, PENDING, READING, State, UNHELD, UNWANTED, WRITTEN,
};
use crate::engine::tables::table::PageTable;
use crate::page::Run;
use proptest::prelude::*;

const PAGES: usize = 24;

#[derive(Clone, Copy, Debug)]
struct Page {
    state: State,
    flags: u8,
    value: u64,
    streak: u8,
    breaks: u8,
}

#[derive(Clone, Debug)]
enum Op {
    Hold(usize, Option<u32>),
    Advance(Run, State),
    LetGo(Run, u64),
    Unwanted(Run, bool),
    Flag(Run, u8, bool),
    Digest(usize, u64),
    Sift,
    Lengthen(usize),
    Holes(Run),
    Breaks(Run),
    ForgetBreaks(Run),
    Forgive,
}

fn run() -> impl Strategy<Value = Run> {
    (0..PAGES).prop_flat_map(|first| (Just(first), 1..=PAGES - first)).prop_map(|(first, count)| Run { first, count })
}

fn op() -> impl Strategy<Value = Op> {
    let held = prop::sample::select(vec![State::Proposed, State::Merged, State::Zero, State::Copied]);
    let flag = prop::sample::select(vec![WRITTEN, PENDING, READING, LISTED]);
    prop_oneof![
        3 => (0..PAGES, prop::option::of(0u32..9)).prop_map(|(page, frame)| Op::Hold(page, frame)),
        2 => (run(), held).prop_map(|(run, state)| Op::Advance(run, state)),
        2 => (run(), any::<u64>()).prop_map(|(run, digest)| Op::LetGo(run, digest)),
        1 => (run(), any::<bool>()).prop_map(|(run, on)| Op::Unwanted(run, on)),
        4 => (run(), flag, any::<bool>()).prop_map(|(run, flag, on)| Op::Flag(run, flag, on)),
        2 => (0..PAGES, any::<u64>()).prop_map(|(page, digest)| Op::Digest(page, digest)),
        1 => Just(Op::Sift),
        2 => (0..PAGES).prop_map(Op::Lengthen),
        1 => run().prop_map(Op::Holes),
        1 => run().prop_map(Op::Breaks),
        1 => run().prop_map(Op::ForgetBreaks),
        1 => Just(Op::Forgive),
    ]
}

/// Does to an array of pages what a table is to do. Whether the operation makes sense now, and the table is to do it.
fn model(pages: &mut [Page], tracked: bool, op: &Op) -> bool {
    let own = |page: &mut Page| {
        page.state = if page.flags & UNWANTED != 0 { State::Excluded } else { State::Owned };
        page.flags |= if tracked { PENDING } else { 0 };
    };
    match *op {
        Op::Hold(page, frame) => {
            let page = &mut pages[page];
            if page.state != State::Owned {
                return false;
            }
            (page.state, page.value) = (State::Queued, frame.map_or(u64::MAX, u64::from));
        }
        Op::Advance(run, state) => {
            let right = |page: &Page| {
                UNHELD & page.state.bit() == 0
                    && match state {
                        State::Zero => page.value == u64::MAX,
                        State::Merged => page.value != u64::MAX,
                        _ => true,
                    }
            };
            if !pages[run.first..run.end()].iter().all(right) {
                return false;
            }
            pages[run.first..run.end()].iter_mut().for_each(|page| page.state = state);
        }
        Op::LetGo(run, digest) => {
            if !pages[run.first..run.end()].iter().all(|page| UNHELD & page.state.bit() == 0) {
                return false;
            }
            for page in &mut pages[run.first..run.end()] {
                page.value = digest;
                own(page);
            }
        }
        Op::Unwanted(run, on) => {
            for page in &mut pages[run.first..run.end()] {
                page.flags = if on { page.flags | UNWANTED } else { page.flags & !UNWANTED };
                if UNHELD & page.state.bit() != 0 {
                    own(page);
                }
            }
        }
        Op::Flag(run, flag, on) => {
            if flag == WRITTEN && !tracked {
                return false;
            }
            for page in &mut pages[run.first..run.end()] {
                page.flags = if on { page.flags | flag } else { page.flags & !flag };
            }
        }
        Op::Digest(page, digest) => {
            if UNHELD & pages[page].state.bit() == 0 {
                return false;
            }
            pages[page].value = digest;
        }
        Op::Sift => {
            for page in pages {
                let (written, due) = (page.flags & WRITTEN != 0, page.flags & (PENDING | READING) != 0);
                page.streak = page.streak.saturating_add(u8::from(written && page.state == State::Owned));
                page.flags &= !(WRITTEN | PENDING | READING);
                page.flags |= if written { PENDING } else { u8::from(due) * READING };
            }
        }
        Op::Lengthen(page) => pages[page].streak = pages[page].streak.saturating_add(1),
        Op::Holes(run) => pages[run.first..run.end()].iter_mut().for_each(|page| page.streak = 0),
        Op::Breaks(run) => {
            pages[run.first..run.end()].iter_mut().for_each(|page| page.breaks = (page.breaks + 1).min(6));
        }
        Op::ForgetBreaks(run) => pages[run.first..run.end()].iter_mut().for_each(|page| page.breaks = 0),
        Op::Forgive => pages.iter_mut().for_each(|page| page.breaks = page.breaks.saturating_sub(1)),
    }
    true
}

fn act(table: &mut PageTable, op: &Op) {
    match *op {
        Op::Hold(page, frame) => table.hold(page, frame),
        Op::Advance(run, state) => table.set_states(run, state),
        Op::LetGo(run, digest) => {
            (run.first..run.end()).for_each(|page| table.let_go(page, digest));
            table.own(run);
        }
        Op::Unwanted(run, on) => {
            if on {
                table.set_flag(run, UNWANTED);
            } else {
                table.clear_flag(run, UNWANTED);
            }
            let mut at = run.first;
            while let Some(found) = table.next_of(at, run.end(), UNHELD) {
                at = found.end();
                table.own(found);
            }
        }
        Op::Flag(run, flag, true) => table.set_flag(run, flag),
        Op::Flag(run, flag, false) => {
            let had = (run.first..run.end()).filter(|&page| table.flags(page) & flag != 0).count();
            assert_eq!(table.clear_flag(run, flag), had);
        }
        Op::Digest(page, digest) => table.set_digest(page, digest),
        Op::Sift => {
            let written = |page: &usize| table.flags(*page) & WRITTEN != 0 && table.is_owned(*page);
            let volatile: Vec<usize> = (0..PAGES).filter(written).collect();
            let fresh = volatile.iter().filter(|page| table.streak(**page) == 0).count();
            let found = (volatile.len(), fresh);
            assert_eq!(table.sift(), found);
        }
        Op::Lengthen(page) => {
            let first = table.streak(page) == 0;
            assert_eq!(table.lengthen_streak(page), first);
        }
        Op::Holes(run) => table.forget_readings(run),
        Op::Breaks(run) => table.count_breaks(run),
        Op::ForgetBreaks(run) => table.forget_breaks(run),
        Op::Forgive => table.forgive(),
    }
}

proptest! {
    #[test]
    fn a_table_is_an_array_of_pages(tracked: bool, ops in prop::collection::vec(op(), 0..80)) {
        let mut table = PageTable::new(PAGES, tracked).expect("memory");
        let mut pages = vec![Page { state: State::Owned, flags: 0, value: 0, streak: 0, breaks: 0 }; PAGES];
        for op in ops {
            if model(&mut pages, tracked, &op) {
                act(&mut table, &op);
            }
            prop_assert_eq!(table.check(), Ok(()));
            for (n, page) in pages.iter().enumerate() {
                prop_assert_eq!((table.state(n), table.flags(n)), (page.state, page.flags), "page {}", n);
                prop_assert_eq!((table.streak(n), table.next_breaks(n, n + 1).1), (page.streak, page.breaks));
                if UNHELD & page.state.bit() != 0 {
                    prop_assert_eq!(table.digest(n), page.value);
                } else {
                    prop_assert_eq!(table.frame(n).map_or(u64::MAX, u64::from), page.value);
                }
            }
            for state in State::ALL {
                prop_assert_eq!(table.count(state), pages.iter().filter(|page| page.state == state).count());
            }
            let owned = table.owned_among(table.whole());
            prop_assert!((0..PAGES).all(|n| (owned >> n & 1 != 0) == (pages[n].state == State::Owned)));
        }
    }
}

type Spoil = fn(&mut PageTable, Run);

#[test]
fn the_check_finds_what_is_wrong() {
    let run = Run { first: 1, count: 2 };
    let wrong: [(&str, Spoil); 4] = [
        ("nothing to adopt", |table, run| table.set_flag(run, ADOPT_QUEUED)),
        ("asked for twice", |table, run| {
            table.hold(run.first, Some(1));
            table.set_state(run.first, State::Merged);
            table.set_flag(Run { count: 1, ..run }, ADOPT_QUEUED | ADOPT_SENT);
        }),
        ("excluded, or not", |table, run| table.set_flag(run, UNWANTED)),
        ("flagged as written", |table, run| table.set_flag(run, WRITTEN)),
    ];
    for (text, make) in wrong {
        let mut table = PageTable::new(4, false).expect("memory");
        assert_eq!(table.check(), Ok(()));
        make(&mut table, run);
        assert!(table.check().is_err_and(|error| error.contains(text)), "{text}");
    }
}
