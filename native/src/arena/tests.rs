//! The books against a list of who has each page.

use super::Claim;
use super::books::{Books, Place, Segment};
use super::extents::{Extent, Extents};
use crate::arena::memory::Memory;
use crate::arena::room::Room;
use crate::page::{Run, bytes};
use crate::sys::flock;
use crate::sys::mmap::{Lease, ViewRange};
use crate::sys::object::Object;
use crate::sys::shm;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;

#[test]
fn memory_is_reserved_without_a_lock_that_a_fork_could_find_taken() {
    // It asked the memory for its segment, with no lock of the space: a child of just then hung in fork().
    const PAGES: usize = 3000; // more than at once
    let segment = Arc::new(Object::keep(shm::anonymous()));
    shm::resize(segment.as_fd(), bytes(PAGES)).unwrap();
    let range = ViewRange::map_segment(segment.as_fd(), bytes(PAGES)).unwrap();
    let lease = Arc::new(Lease::hold(flock::object().unwrap()).unwrap());
    let memory = Arc::new(Memory::new(range, segment.clone(), lease));
    let extent = extent(1, 7, PAGES - 7);
    let unreserved = Some((segment.clone(), extent.run));
    let mut claim = Claim::new(memory.clone(), Arc::new(()), Arc::default(), extent, unreserved);
    memory.while_looked_at(|| while !claim.reserve().unwrap() {});
    assert!(claim.reserve().unwrap());
    assert_eq!(shm::extent(segment.as_fd()).unwrap().1, bytes(PAGES - 7));
}

fn extent(segment: u32, first: usize, count: usize) -> Extent {
    Extent { segment, run: Run { first, count } }
}

#[test]
fn extents_fit_best_and_coalesce() {
    let mut extents = Extents::default();
    extents.add_segment(1, 100);
    for first in (0..100).step_by(10) {
        assert_eq!(extents.take_pages(10), Some(extent(1, first, 10)));
    }
    assert_eq!(extents.take_pages(1), None);
    assert!(extents.give(extent(1, 20, 10)) && extents.give(extent(1, 50, 4)));
    assert_eq!(extents.take_pages(3), Some(extent(1, 50, 3)));
    assert!(extents.give(extent(1, 30, 10)) && extents.give(extent(1, 10, 10)));
    assert!(extents.iter().eq([extent(1, 10, 30), extent(1, 53, 1)]));
    for (first, count) in [(10, 2), (15, 2), (39, 2), (95, 6), (60, 0), (usize::MAX, 2)] {
        assert!(!extents.give(extent(1, first, count)), "{first} {count}");
    }
    assert!(!extents.give(extent(2, 0, 1)) && !extents.remove_segment(1));
    assert_eq!(extents.check(), Ok(()));
}

fn segment(place: Place, pages: usize, dedicated: bool) -> Segment {
    Segment { place, pages, dedicated, inherited: false }
}

#[test]
fn what_was_promised_and_not_touched_counts_and_merged_pages_do_not() {
    let mut books = Books::new(100, 100);
    books.add_segment(1, segment(Place::Shm, 100, false));
    books.take_pages(Place::Shm, 60).unwrap();
    let room = |free: usize| Room { size: bytes(64) as u64, free: bytes(free) as u64, small: false };
    let ask = |pages, free, backed: usize, merged| {
        books.is_scarce(Place::Shm, pages, room(free), bytes(backed) as u64, merged)
    };
    assert_eq!(ask(1, 64, 60, 0), Ok(false));
    assert_eq!(ask(32, 64, 60, 0), Ok(false));
    assert_eq!(ask(33, 64, 60, 0), Ok(true), "less than half would be left");
    assert_eq!(ask(5, 10, 55, 0), Ok(true));
    assert_eq!(ask(6, 10, 55, 0).unwrap_err().promised, bytes(5) as u64);
    assert_eq!(ask(6, 10, 55, 5), Ok(true), "merged pages need nothing");
    assert_eq!(ask(1, 0, 0, 0).unwrap_err().promised, 0, "no more than there is");
    // What is merged may be memory of the other place.
    books.add_segment(2, segment(Place::Memfd, 100, false));
    books.take_pages(Place::Memfd, 5).unwrap();
    assert!(books.is_scarce(Place::Shm, 6, room(10), bytes(55) as u64, 5).is_err());
}

#[derive(Clone, Debug)]
enum Op {
    Allocate(Place, usize),
    Free(usize),
    Discard { refused: bool },
    Retry,
    Drop,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let place = prop_oneof![Just(Place::Shm), Just(Place::Memfd)];
    let op = prop_oneof![
        6 => (place, 1usize..50).prop_map(|(place, pages)| Op::Allocate(place, pages)),
        4 => any::<usize>().prop_map(Op::Free),
        4 => any::<bool>().prop_map(|refused| Op::Discard { refused }),
        1 => Just(Op::Retry),
        2 => Just(Op::Drop),
    ];
    prop::collection::vec(op, 0..200)
}

/// What the books are compared with: for each segment, what each page is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Is {
    Free,
    Used,
    Dying,
}

proptest! {
    #[test]
    fn a_page_has_one_owner(ops in ops()) {
        let mut books = Books::new(8, 32);
        let mut pages: BTreeMap<u32, (Place, bool, Vec<Is>)> = BTreeMap::new();
        let mut live: Vec<Extent> = Vec::new();
        for op in ops {
            match op {
                Op::Allocate(place, count) => {
                    let taken = match books.take_pages(place, count) {
                        Some(taken) => taken,
                        None => {
                            let regular = pages.values().filter(|(at, dedicated, _)| *at == place && !dedicated).count();
                            let (size, dedicated) = books.growth(place, count);
                            prop_assert_eq!(dedicated, count > 32.min(8 << regular));
                            prop_assert_eq!(size, if dedicated { count } else { 32.min(8 << regular) });
                            let number = books.number();
                            books.add_segment(number, segment(place, size, dedicated));
                            prop_assert!(pages.insert(number, (place, dedicated, vec![Is::Free; size])).is_none());
                            books.take_pages(place, count).expect("the new segment is large enough")
                        }
                    };
                    let (at, _, of) = pages.get_mut(&taken.segment).expect("a segment that there is");
                    prop_assert_eq!((*at, taken.run.count), (place, count));
                    for page in &mut of[taken.run.first..taken.run.end()] {
                        prop_assert_eq!(*page, Is::Free);
                        *page = Is::Used;
                    }
                    live.push(taken);
                }
                Op::Free(pick) => {
                    if !live.is_empty() {
                        let dead = live.swap_remove(pick % live.len());
                        pages.get_mut(&dead.segment).unwrap().2[dead.run.first..dead.run.end()].fill(Is::Dying);
                        books.pending.push_back(dead);
                    }
                }
                Op::Discard { refused } => {
                    if let Some(dead) = books.pending.pop_front() {
                        if refused {
                            books.quarantine.push(dead);
                        } else {
                            pages.get_mut(&dead.segment).unwrap().2[dead.run.first..dead.run.end()].fill(Is::Free);
                            books.give(dead);
                        }
                    }
                }
                Op::Retry => books.retry(),
                Op::Drop => {
                    for number in books.unneeded(false) {
                        prop_assert!(pages.remove(&number).unwrap().2.iter().all(|page| *page == Is::Free));
                        books.remove_segment(number);
                    }
                    for place in [Place::Shm, Place::Memfd] {
                        let whole = pages.values().filter(|(at, _, of)| *at == place && of.iter().all(|p| *p == Is::Free));
                        let whole: Vec<bool> = whole.map(|(_, dedicated, _)| *dedicated).collect();
                        prop_assert!(whole.len() <= 1 && !whole.contains(&true), "one is kept, and no dedicated one");
                    }
                }
            }
            prop_assert_eq!(books.check(), Ok(()));
            for place in [Place::Shm, Place::Memfd] {
                let used = pages.values().filter(|(at, ..)| *at == place).flat_map(|(.., of)| of);
                prop_assert_eq!(books.in_use(place), used.filter(|page| **page != Is::Free).count());
            }
            let free: Vec<(u32, usize)> =
                books.free().iter().flat_map(|e| (e.run.first..e.run.end()).map(|page| (e.segment, page))).collect();
            let model = pages.iter().flat_map(|(number, (.., of))| {
                of.iter().enumerate().filter(|(_, is)| **is == Is::Free).map(|(page, _)| (*number, page))
            });
            prop_assert!(model.eq(free));
        }
        prop_assert_eq!(books.unneeded(true).len(), pages.values().filter(|(.., of)| of.iter().all(|p| *p == Is::Free)).count());
    }
}
