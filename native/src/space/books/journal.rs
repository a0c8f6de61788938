//! What happened to pages, in the order in which it happened.
//!
//! The server's books are a replay of this journal, so an event is written under the same lock as the change that it
//! tells of, and after it. Neighbouring events of one kind are joined into runs.

use crate::page::Run;
use crate::wire::{CALL_PAGES, EventKind};
use std::collections::VecDeque;

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// To which segment.
    pub segment: u32,
    /// To which pages. 32 bits as on the wire: what is declined may lie outside of any segment.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// The pool of `frame`; 0 is the zero page.
    pub pool: u32,
    /// The first page's frame.
    pub frame: u32,
    /// A reason or an errno, by kind.
    pub detail: u32,
}

impl Event {
    /// An event without pool, frame and detail.
    pub fn new(kind: EventKind, segment: u32, run: Run) -> Event {
        Event { kind, segment, first: run.first as u32, count: run.count as u32, pool: 0, frame: 0, detail: 0 }
    }

    /// The pages, of a view that is known to have them.
    pub fn run(&self) -> Run {
        Run { first: self.first as usize, count: self.count as usize }
    }

    /// Cuts off the first pages.
    fn split(&mut self, pages: u32) -> Event {
        let head = Event { count: pages, ..*self };
        (self.first, self.count) = (self.first.wrapping_add(pages), self.count - pages);
        self.frame = self.frame.wrapping_add(if self.pool == 0 { 0 } else { pages });
        head
    }

    fn is_followed_by(&self, next: &Event) -> bool {
        let frames_follow = self.pool == 0 || u64::from(next.frame) == u64::from(self.frame) + u64::from(self.count);
        self.kind == next.kind
            && self.segment == next.segment
            && u64::from(next.first) == u64::from(self.first) + u64::from(self.count)
            && self.count.saturating_add(next.count) <= CALL_PAGES
            && self.pool == next.pool
            && frames_follow
            && self.detail == next.detail
    }
}

/// The events not yet drained, oldest first.
#[derive(Default)]
pub struct Journal {
    events: VecDeque<Event>,
}

impl Journal {
    /// Writes one event down; joins it to the last where it goes on from it. What a call has no room for becomes several.
    pub fn push(&mut self, mut event: Event) {
        while event.count > CALL_PAGES {
            let head = event.split(CALL_PAGES);
            self.events.push_back(head);
        }
        match self.events.back_mut() {
            Some(last) if last.is_followed_by(&event) => last.count += event.count,
            _ => self.events.push_back(event),
        }
    }

    /// Takes out what one call has room for: at most `limit`, about at most `CALL_PAGES` pages.
    pub fn drain(&mut self, limit: usize) -> Vec<Event> {
        let mut pages = 0u64;
        let fits = |event: &&Event| {
            pages += u64::from(event.count);
            pages <= CALL_PAGES.into()
        };
        let take = self.events.iter().take(limit).take_while(fits).count();
        self.events.drain(..take).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(first: u32, count: u32, pool: u32, frame: u32) -> Event {
        Event { kind: EventKind::Merged, segment: 1, first, count, pool, frame, detail: 0 }
    }

    #[test]
    fn joins_only_what_goes_on() {
        let mut j = Journal::default();
        j.push(merged(0, 4, 1, 10));
        j.push(merged(4, 2, 1, 14));
        j.push(merged(6, 2, 1, 99)); // other frames
        j.push(merged(8, 2, 0, 0)); // zero page
        j.push(merged(10, 1, 0, 0));
        j.push(merged(12, 1, 0, 0)); // a gap
        assert_eq!(
            j.drain(usize::MAX),
            vec![merged(0, 6, 1, 10), merged(6, 2, 1, 99), merged(8, 3, 0, 0), merged(12, 1, 0, 0)]
        );
        assert!(j.is_empty());
    }

    #[test]
    fn drains_in_order_and_in_parts() {
        let mut j = Journal::default();
        for i in 0..5 {
            j.push(merged(i * 2, 1, 0, 0));
        }
        assert_eq!(j.drain(2).len(), 2);
        assert_eq!(j.drain(10)[0].first, 4);
    }

    #[test]
    fn a_call_is_about_no_more_pages_than_it_may_be() {
        let mut j = Journal::default();
        j.push(merged(7, 2 * CALL_PAGES + 5, 1, 100));
        j.push(merged(7 + 2 * CALL_PAGES + 5, CALL_PAGES - 5, 1, 105 + 2 * CALL_PAGES)); // goes on, and fits
        j.push(merged(7 + 3 * CALL_PAGES, 1, 1, 100 + 3 * CALL_PAGES)); // goes on, and does not
        j.push(Event::new(EventKind::Excluded, 2, Run { first: 0, count: u32::MAX as usize }));
        assert_eq!(j.len(), 4 + 4096);
        let mut calls = Vec::new();
        while !j.is_empty() {
            calls.push(j.drain(10));
        }
        for n in 0..3 {
            assert_eq!(calls[n as usize], vec![merged(7 + n * CALL_PAGES, CALL_PAGES, 1, 100 + n * CALL_PAGES)]);
        }
        let pages = |call: &Vec<Event>| call.iter().map(|event| u64::from(event.count)).sum::<u64>();
        assert!(calls.iter().all(|call| pages(call) <= u64::from(CALL_PAGES)));
        let excluded = calls.iter().flatten().filter(|event| event.kind == EventKind::Excluded);
        assert_eq!(excluded.map(|event| u64::from(event.count)).sum::<u64>(), u64::from(u32::MAX));
    }
}
