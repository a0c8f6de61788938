//! A whole engine on real objects: a short story. The property tests that compare it with the reference are in Python.

use crate::engine::{Columns, Engine, Error, Fault, Miscount, Options, Violation};
use crate::page::{bytes, page_size};
use crate::sys::shm;
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};

fn segment(contents: &[u8]) -> OwnedFd {
    let fd = shm::anonymous();
    for (page, content) in contents.iter().enumerate().filter(|(_, content)| **content != 0) {
        let data = vec![*content; page_size()];
        shm::write(fd.as_fd(), &[IoSlice::new(&data)], bytes(page)).expect("a page");
    }
    fd
}

fn event(kind: i64, first: i64, count: i64, pool: i64, frame: i64) -> Columns {
    let one = |value| vec![value];
    Columns {
        kind: one(kind),
        segment: one(1),
        first: one(first),
        count: one(count),
        pool: one(pool),
        frame: one(frame),
        detail: one(0),
    }
}

#[test]
fn pages_are_merged_written_and_given_back() {
    for threads in [1, 3] {
        let mut engine = Engine::new(shm::anonymous(), Options::default(), 1, 1 << 20, 1);
        for client in 1..=2 {
            engine.add_client(client).expect("a client");
            engine.add_segment(client, 1, segment(&[7, 8, 0, 9]), 4, false).expect("a segment");
        }
        let passes: Vec<_> = (0..2).map(|_| engine.scan(1 << 20, threads).finished.expect("a pass")).collect();
        assert_eq!((passes[0].fresh, passes[0].proposed), (6, 0));
        assert_eq!((passes[1].volatile, passes[1].proposed), (0, 6));
        assert_eq!(engine.check(), Ok(()));
        for client in 1..=2 {
            let told = engine.take_instructions(client, 100).expect("instructions");
            assert_eq!(told.merges, [(1, 0, 2, 0), (1, 3, 1, 3)]);
            for (_, first, count, frame) in told.merges {
                engine.apply(client, &event(1, first as i64, count as i64, 1, frame)).expect("an answer");
            }
        }
        assert_eq!(engine.merged_pages(1).expect("counts"), (3, 0));
        let lie = engine.apply(1, &event(1, 0, 1, 1, 0));
        assert!(matches!(lie, Err(Error::Violation(Violation::State(1, 0, 1)))));
        assert_eq!(engine.check(), Ok(()));
        engine.apply(1, &event(3, 0, 1, 0, 0)).expect("a copy");
        assert_eq!(engine.take_instructions(1, 100).expect("instructions").adopts, [(1, 0, 1)]);
        engine.remove_client(2).expect("its death");
        assert_eq!(engine.frames(), [0, 1, 3]);
        engine.remove_client(1).expect("its death");
        assert!(engine.frames().is_empty());
        assert_eq!(engine.check(), Ok(()));
    }
}

#[test]
fn an_audit_sees_what_the_books_have_wrong() {
    let mut engine = Engine::new(shm::anonymous(), Options::default(), 1, 1 << 20, 1);
    for client in 1..=2 {
        engine.add_client(client).expect("a client");
        engine.add_segment(client, 1, segment(&[7, 8]), 2, false).expect("a segment");
    }
    for _ in 0..2 {
        engine.scan(1 << 20, 1);
    }
    engine.take_instructions(1, 100).expect("instructions");
    engine.apply(1, &event(1, 0, 2, 1, 0)).expect("an answer");
    assert_eq!((engine.recount(), engine.audit(0, u32::MAX)), (vec![], vec![]));
    engine.books.frames.commit(1); // as if client 2 had merged its page
    let wrong = Miscount { frame: 1, booked: (2, 0), counted: (1, 1) };
    assert_eq!(engine.recount(), [wrong]);
    assert!(engine.check().is_err());
    engine.books.frames.forget_listing(1);
    assert_eq!(engine.audit(0, u32::MAX), [(1, Fault::Unlisted)]);
}
