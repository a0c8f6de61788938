//! The stable and the unstable tree against maps by whole digests.

use crate::engine::books::members::Members;
use crate::engine::frames::stable::Stable;
use crate::engine::frames::tree::Tree;
use crate::engine::frames::unstable::Unstable;
use crate::engine::ids::{MemberKey, TableId};
use crate::engine::tables::Tables;
use crate::engine::tables::segment::Segment;
use crate::engine::tables::state::{LISTED, PENDING};
use crate::engine::tables::table::PageTable;
use crate::page::Run;
use crate::sys::shm::anonymous;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Few digests, many of which agree in their upper half.
fn digest() -> impl Strategy<Value = u64> {
    (0u64..3, 0u64..3).prop_map(|(upper, lower)| upper << 32 | lower)
}

#[test]
fn hundreds_of_thousands_of_twins_are_let_go_of_one_by_one() {
    // A made-up pool may be filled with one content: what is linear here takes no time, and was quadratic.
    let count = 200_000;
    let digests = vec![7; count as usize];
    for order in [|n: u32, _: u32| n, |n: u32, count: u32| count - 1 - n, |n: u32, count: u32| (n * 7919) % count] {
        let mut stable = Stable::default();
        (0..count).for_each(|frame| stable.insert(7, frame, &digests));
        assert_eq!(stable.duplicates(), count as usize - 1);
        for frame in (0..count).map(|n| order(n, count)) {
            assert!(stable.find(7, &digests, |_| true).is_some());
            stable.remove(7, frame);
        }
        assert_eq!((stable.duplicates(), stable.frames().len()), (0, 0));
        stable.check(&digests).unwrap();
    }
}

proptest! {
    #[test]
    fn the_oldest_frame_with_room_is_found(
        ops in prop::collection::vec((digest(), 0u32..20, 0u8..4, prop::collection::hash_set(0u32..20, 0..20)), 0..80),
    ) {
        let mut stable = Stable::default();
        let mut digests = vec![0u64; 20];
        let mut model: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        let mut in_use: HashSet<u32> = HashSet::new();
        for (digest, frame, what, roomy) in ops {
            if what == 0 && in_use.remove(&frame) {
                let digest = digests[frame as usize];
                stable.remove(digest, frame);
                let twins = model.get_mut(&digest).expect("it was added");
                twins.retain(|&other| other != frame);
            } else if what < 3 && in_use.insert(frame) {
                digests[frame as usize] = digest;
                stable.insert(digest, frame, &digests);
                model.entry(digest).or_default().push(frame);
            }
            prop_assert_eq!(stable.check(&digests), Ok(()));
            let duplicates: usize = model.values().map(|twins| twins.len().saturating_sub(1)).sum();
            prop_assert_eq!(stable.duplicates(), duplicates);
            stable.forget_fullness();
            let oldest = |room: &dyn Fn(u32) -> bool| {
                model.get(&digest).and_then(|twins| twins.iter().copied().find(|&frame| room(frame)))
            };
            prop_assert_eq!(stable.find(digest, &digests, |f| roomy.contains(&f)), oldest(&|f| roomy.contains(&f)));
            // Those that were full are so still, and are not asked for again.
            let less: HashSet<u32> = roomy.iter().copied().filter(|f| f % 2 == 0).collect();
            prop_assert_eq!(stable.find(digest, &digests, |f| less.contains(&f)), oldest(&|f| less.contains(&f)));
            in_use.iter().filter(|f| digests[**f as usize] == digest).for_each(|f| stable.has_room_again(digest, *f));
            prop_assert_eq!(stable.find(digest, &digests, |_| true), oldest(&|_| true));
        }
    }

    #[test]
    fn a_tree_is_a_map(ops in prop::collection::vec((digest(), 0u32..20, 0u8..5), 0..80)) {
        let mut tree = Tree::default();
        let mut digests = [0u64; 20];
        let mut model: BTreeMap<u64, u32> = BTreeMap::new();
        for (digest, number, what) in ops {
            if what == 0 {
                tree.retain(|other| other % 3 != number % 3);
                model.retain(|_, other| *other % 3 != number % 3);
            } else if let Some(number) = model.get(&digest).filter(|_| what < 3) {
                tree.remove(digest, *number);
                model.remove(&digest);
            } else if !model.contains_key(&digest) && !model.values().any(|other| *other == number) {
                digests[number as usize] = digest;
                tree.insert(digest, number);
                model.insert(digest, number);
            }
            prop_assert_eq!(tree.len(), model.len());
            for upper in 0..3 {
                for lower in 0..3 {
                    let digest = upper << 32 | lower;
                    prop_assert_eq!(tree.get(digest, |n| digests[n as usize]), model.get(&digest).copied());
                }
            }
            prop_assert_eq!(tree.check(|n| digests[n as usize]), Ok(()));
            prop_assert_eq!(tree.numbers().collect::<BTreeSet<_>>(), model.values().copied().collect::<BTreeSet<_>>());
        }
    }

    #[test]
    fn the_unstable_tree_finds_what_was_entered(
        tracked in prop::collection::vec(any::<bool>(), 3),
        ops in prop::collection::vec((0usize..3, 0usize..90, digest(), 0u8..9), 0..120),
    ) {
        let mut tables = Tables::default();
        let ids: Vec<TableId> = tracked.iter().map(|&tracked| add(&mut tables, 90, tracked)).collect();
        let mut unstable = Unstable::default();
        let mut model: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
        for (table, page, digest, what) in ops {
            let run = Run { first: page, count: (90 - page).min(usize::from(what) * 2 + 1) };
            let inside = |&(t, p): &(usize, usize)| t == table && (run.first..run.end()).contains(&p);
            let is_listed = model.values().any(|place| *place == (table, page));
            match what {
                0..=4 if !is_listed && !model.contains_key(&digest) => {
                    tables.table_mut(ids[table]).set_digest(page, digest);
                    unstable.enter(&mut tables, ids[table], page);
                    model.insert(digest, (table, page));
                }
                5 => {
                    unstable.remove(&mut tables, ids[table], run);
                    model.retain(|_, place| !inside(place));
                }
                6 => {
                    let whole = tables.table(ids[table]).whole();
                    unstable.remove(&mut tables, ids[table], whole);
                    model.retain(|_, place| place.0 != table);
                }
                7 => {
                    unstable.read_again(&mut tables, ids[table], run);
                    let again: BTreeSet<usize> = model.values().filter(|p| inside(p)).map(|p| p.1).collect();
                    prop_assert!(again.iter().all(|&page| tables.table(ids[table]).flags(page) & PENDING != 0));
                    model.retain(|_, place| !inside(place));
                }
                8 => {
                    unstable.forget_untracked(&mut tables);
                    model.retain(|_, place| tracked[place.0]);
                }
                _ => {}
            }
            prop_assert_eq!(unstable.check(&tables), Ok(()));
            prop_assert_eq!(unstable.len(), model.len());
            prop_assert_eq!(unstable.tracked(), model.values().filter(|place| tracked[place.0]).count());
            let expected = model.get(&digest).map(|&(table, page)| (ids[table], page));
            prop_assert_eq!(unstable.find(&tables, digest), expected);
            for (digest, &(table, page)) in &model {
                prop_assert_eq!(unstable.find(&tables, *digest), Some((ids[table], page)));
                prop_assert!(tables.table(ids[table]).flags(page) & LISTED != 0);
            }
        }
    }
}

fn add(tables: &mut Tables, pages: usize, tracked: bool) -> TableId {
    let base = tables.place_for(pages).expect("a place");
    let table = PageTable::new(pages, tracked).expect("memory");
    tables.add(Segment::new(client(), 1, base, anonymous(), table))
}

fn client() -> MemberKey {
    let mut members = Members::default();
    members.add(1).expect("a new client");
    members.key(1).expect("it was added")
}

/// The smallest and the largest digest there are, and others at the borders of shards and halves.
#[test]
fn entries_at_the_borders_find_their_places() {
    let edges = [0, 1, 1 << 32, u64::MAX, u64::MAX - 1, u64::MAX << 32, 0x00FF_FFFF_0000_0000, 0x0100_0000_0000_0000];
    let digests: Vec<u64> = (0..4096u64).map(|n| edges[n as usize % 8] ^ (n / 8 * 0x1_0000)).collect();
    let mut tree = Tree::default();
    for (number, digest) in digests.iter().enumerate() {
        tree.insert(*digest, number as u32);
    }
    let digest_of = |number: u32| digests[number as usize];
    assert_eq!(tree.check(digest_of), Ok(()));
    assert_eq!(tree.len(), digests.len());
    for (number, digest) in digests.iter().enumerate() {
        assert_eq!(tree.get(*digest, digest_of), Some(number as u32));
        tree.remove(*digest, number as u32);
        assert_eq!(tree.get(*digest, digest_of), None);
    }
    assert_eq!(tree.len(), 0);
    assert_eq!(tree.check(digest_of), Ok(()));
}

#[test]
fn an_entry_takes_so_much() {
    let mut tree = Tree::default();
    let mut digest = 1u64;
    let mut digests = Vec::new();
    for place in 0..200_000 {
        digest = digest.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        tree.insert(digest, place);
        digests.push(digest);
    }
    // Regression: the lower half of a digest had a say in where it was looked for, so one in a hundred was not found.
    assert_eq!(tree.check(|place| digests[place as usize]), Ok(()));
    let each = tree.bookkeeping_bytes() as f64 / tree.len() as f64;
    assert!((8.0..16.0).contains(&each), "{each:.1} bytes an entry");
}
