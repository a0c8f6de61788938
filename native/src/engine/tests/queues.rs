//! Queues against lists that are searched from end to end.

use crate::engine::books::queues::{AdoptQueue, Merge, MergeQueue};
use crate::engine::ids::TableId;
use crate::page::Run;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Add(u64, usize, Option<u32>),
    Take(usize),
    Remove(Option<u64>),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        12 => (0u64..3, 0usize..12, prop::option::of(0u32..12)).prop_map(|(t, p, f)| Op::Add(t, p, f)),
        // As scans have it: two runs that grow in turns.
        12 => (0u64..2, 0usize..12).prop_map(|(t, p)| Op::Add(t, p, Some(p as u32))),
        2 => (0usize..9).prop_map(Op::Take),
        1 => prop::option::of(0u64..3).prop_map(Op::Remove),
    ];
    prop::collection::vec(op, 0..60)
}

fn takes(model: &mut Vec<Merge>, mut pages: usize) -> Vec<Merge> {
    let mut taken = Vec::new();
    while pages > 0 && !model.is_empty() {
        let run = model[0];
        if run.pages.count > pages {
            taken.push(Merge { pages: Run { count: pages, ..run.pages }, ..run });
            let first = run.pages.first + pages;
            model[0] =
                Merge { frame: run.frame_of(first), pages: Run { first, count: run.pages.count - pages }, ..run };
            break;
        }
        pages -= run.pages.count;
        taken.push(model.remove(0));
    }
    taken
}

proptest! {
    #[test]
    fn merges_are_joined_to_the_run_that_they_go_on_from(ops in ops()) {
        let (mut queue, mut model) = (MergeQueue::default(), Vec::<Merge>::new());
        for op in ops {
            match op {
                Op::Add(table, page, frame) => {
                    let table = TableId(table);
                    let has = |run: &Merge| run.table == table && (run.pages.first..run.pages.end()).contains(&page);
                    if model.iter().any(has) {
                        continue; // a page stands in the queue once
                    }
                    queue.add_page(table, page, frame);
                    let goes_on = |run: &&mut Merge| {
                        run.table == table && run.pages.end() == page && run.frame_of(page) == frame
                    };
                    match model.iter_mut().find(goes_on) {
                        Some(run) => run.pages.count += 1,
                        None => model.push(Merge { table, pages: Run { first: page, count: 1 }, frame }),
                    }
                }
                Op::Take(pages) => prop_assert_eq!(queue.take_runs(pages), takes(&mut model, pages)),
                Op::Remove(table) => {
                    let goes = |run: &Merge| table.is_none_or(|id| run.table == TableId(id));
                    let removed: Vec<Merge> = model.iter().copied().filter(goes).collect();
                    model.retain(|run| !goes(run));
                    prop_assert_eq!(queue.remove(table.map(TableId)), removed);
                }
            }
            prop_assert_eq!(queue.iter().copied().collect::<Vec<_>>(), model.clone());
            prop_assert_eq!(queue.is_empty(), model.is_empty());
            prop_assert_eq!(queue.check(), Ok(()));
        }
    }

    #[test]
    fn adopts_come_out_in_order(runs in prop::collection::vec((0u64..2, 0usize..9, 1usize..5), 0..20), take in 1usize..9) {
        let mut queue = AdoptQueue::default();
        let mut pages = Vec::new();
        for (table, first, count) in runs {
            queue.add_run(TableId(table), Run { first, count });
            pages.extend((first..first + count).map(|page| (TableId(table), page)));
        }
        for expected in pages.chunks(take) {
            let taken = queue.take_runs(take);
            let out: Vec<_> =
                taken.iter().flat_map(|(id, run)| (run.first..run.end()).map(|page| (*id, page))).collect();
            prop_assert_eq!(out, expected);
        }
        prop_assert!(queue.take_runs(take).is_empty());
    }
}
