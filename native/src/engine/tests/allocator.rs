//! Frame numbers against a list of what each is doing.

use crate::engine::frames::allocator::Allocator;
use proptest::prelude::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Use {
    Free,
    Used,
    Released,
}

#[derive(Default)]
struct Model {
    uses: Vec<Use>,
}

impl Model {
    fn gaps(&self) -> Vec<(usize, usize)> {
        let mut gaps: Vec<(usize, usize)> = Vec::new();
        for (n, _) in self.uses.iter().enumerate().filter(|(_, u)| **u == Use::Free) {
            match gaps.last_mut() {
                Some((_, end)) if *end == n => *end += 1,
                _ => gaps.push((n, n + 1)),
            }
        }
        gaps
    }

    fn start_of_run(&self) -> Option<u32> {
        let gaps = self.gaps();
        let long = gaps.iter().find(|(first, end)| end - first >= 64);
        long.or(gaps.first()).map(|(first, _)| *first as u32)
    }
}

#[derive(Clone, Debug)]
enum Op {
    Allocate(u32),
    Release(usize),
    Flush(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (0u32..700).prop_map(Op::Allocate),
        4 => any::<usize>().prop_map(Op::Release),
        1 => any::<usize>().prop_map(Op::Flush),
    ];
    prop::collection::vec(op, 0..400)
}

proptest! {
    #[test]
    fn numbers_are_handed_out_as_a_list_of_uses_says(limit in 0u32..600, ops in ops()) {
        let (mut allocator, mut model) = (Allocator::new(limit), Model::default());
        for op in ops {
            match op {
                Op::Allocate(near) => {
                    let free = model.uses.get(near as usize) == Some(&Use::Free);
                    prop_assert_eq!(allocator.is_free(near), free);
                    if !free && !allocator.has_long_gap() && let Some(numbers) = allocator.growth() {
                        allocator.grow(numbers);
                        prop_assert!(numbers <= limit);
                        model.uses.resize(numbers as usize, Use::Free);
                    }
                    let frame = if free { Some(near) } else { allocator.start_of_run() };
                    prop_assert_eq!(frame, if free { Some(near) } else { model.start_of_run() });
                    if let Some(frame) = frame {
                        allocator.take_frame(frame);
                        model.uses[frame as usize] = Use::Used;
                    }
                }
                Op::Release(pick) => {
                    let used: Vec<u32> = allocator.used().collect();
                    if !used.is_empty() {
                        let frame = used[pick % used.len()];
                        allocator.release(frame);
                        model.uses[frame as usize] = Use::Released;
                    }
                }
                Op::Flush(keep) => {
                    let mut waiting = allocator.take_released();
                    prop_assert!(waiting.is_sorted_by(|a, b| a > b));
                    let keep = keep % (waiting.len() + 1);
                    for frame in waiting.drain(keep..).rev() {
                        allocator.give_back(frame, 1);
                        model.uses[frame as usize] = Use::Free;
                    }
                    allocator.put_back(waiting);
                }
            }
            prop_assert_eq!(allocator.check(), Ok(()));
            prop_assert_eq!(allocator.has_gap(), !model.gaps().is_empty());
            prop_assert_eq!(allocator.used().count(), model.uses.iter().filter(|u| **u == Use::Used).count());
        }
    }
}

#[test]
fn a_batch_is_full_at_256() {
    let mut allocator = Allocator::new(1000);
    allocator.grow(600);
    (0..512).for_each(|frame| allocator.take_frame(frame));
    let full: Vec<u32> = (0..512).filter(|&frame| allocator.release(frame)).collect();
    assert_eq!(full, [255, 511]);
}
