//! M3 to M7: switching owned pages to frames.
//!
//! A proposal is believed in nothing: numbers may be unknown, ranges out of bounds, frames of other content. Each page
//! of it ends up in the journal, merged or declined.

use crate::journal::{Event, Kind, Reason};
use crate::page::{Run, bytes, page_size};
use crate::pool::Pool;
use crate::space::Inner;
use crate::states::State;
use crate::sys::mmap::Look;
use crate::view::View;
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Pages that may lie between two runs that are switched under one lock, after one look at what is there. Each has a
/// window of its own: to hold what lies between would end its tracking, and to begin that again costs more than a window.
const MAX_GAP: usize = 32;

/// So many runs at most: about as many as there is time for.
const MAX_RUNS: usize = 16;

/// For so long windows are opened under one lock: less than what is left of a time slice that was begun for them.
const ROW: Duration = Duration::from_micros(100);

/// How many pages are compared between two looks at the clock: about 8 us.
const CLOCK_PAGES: usize = 32;

/// A run that is to map following frames of a pool; pool 0 is the zero page.
#[derive(Clone, Copy, Debug)]
pub struct Proposal {
    /// The segment.
    pub segment: u32,
    /// Its first page.
    pub first: u32,
    /// How many pages.
    pub count: u32,
    /// The pool.
    pub pool: u32,
    /// The first page's frame.
    pub frame: u32,
}

impl Proposal {
    fn run(&self) -> Run {
        Run { first: self.first as usize, count: self.count as usize }
    }

    fn frames(&self) -> Run {
        Run { first: self.frame as usize, count: self.count as usize }
    }

    /// Splits the first `count` pages off.
    fn split(&mut self, count: usize) -> Proposal {
        let head = Proposal { count: count as u32, ..*self };
        self.first += count as u32;
        self.count -= count as u32;
        self.frame = if self.pool == 0 { 0 } else { self.frame + count as u32 };
        head
    }

    fn event(&self, kind: Kind, run: Run, detail: u32) -> Event {
        let offset = (run.first - self.first as usize) as u32;
        let frame = if self.pool == 0 { 0 } else { self.frame.wrapping_add(offset) };
        Event { pool: self.pool, frame, detail, ..Event::new(kind, self.segment, run) }
    }
}

impl Inner {
    /// Carries out what fits into one window, from the front of the queue. The pages merged; None if there was nothing.
    pub fn merge_window(&mut self, queue: &mut VecDeque<Proposal>) -> Option<usize> {
        let first = *queue.front()?;
        if let Some(reason) = self.refusal(&first) {
            queue.pop_front();
            self.decline(&first, first.run(), reason);
            return Some(0);
        }
        let taken = self.take_span(queue);
        let taken = self.ready(taken);
        Some(self.merge_span(taken, queue))
    }

    /// Has the frames entered into the page tables, and declines what has none: a hole in the pool must not be read, and
    /// faults in a window would make it longer.
    fn ready(&mut self, taken: Vec<Proposal>) -> Vec<Proposal> {
        let (ready, absent): (Vec<Proposal>, Vec<Proposal>) = taken.into_iter().partition(|proposal| {
            proposal.pool == 0 || self.pools.get_mut(&proposal.pool).is_some_and(|pool| pool.prepare(proposal.frames()))
        });
        absent.iter().for_each(|proposal| self.decline(proposal, proposal.run(), Reason::State));
        ready
    }

    /// Why a whole proposal cannot be carried out.
    fn refusal(&mut self, proposal: &Proposal) -> Option<Reason> {
        let Some(view) = self.views.get(&proposal.segment) else { return Some(Reason::State) };
        if !proposal.run().fits(view.table.pages()) {
            return Some(Reason::State);
        }
        if view.shared {
            return Some(Reason::Forked);
        }
        if proposal.pool != 0 {
            if proposal.frames().end() > 1 << 32 {
                return Some(Reason::State);
            }
            let pool = self.pools.get_mut(&proposal.pool);
            let reachable = pool.and_then(|pool| pool.look(proposal.frames()).ok()).flatten();
            if reachable.is_none() {
                return Some(Reason::State);
            }
        }
        self.barrier.is_none().then_some(Reason::Failed)
    }

    /// Takes proposals for neighbouring pages of one segment off the queue, as many as one window may hold.
    fn take_span(&mut self, queue: &mut VecDeque<Proposal>) -> Vec<Proposal> {
        let mut taken: Vec<Proposal> = Vec::new();
        while let Some(next) = queue.front_mut() {
            let start = taken.first().map_or(next.first as usize, |p| p.first as usize);
            if let Some(last) = taken.last() {
                let (end, first) = (last.run().end(), next.first as usize);
                let near = next.segment == last.segment && first >= end && first - end <= MAX_GAP;
                if !near || first - start >= self.window_pages || taken.len() == MAX_RUNS {
                    break;
                }
            }
            let room = self.window_pages - (next.first as usize - start);
            let next = *next;
            if !taken.is_empty() && self.refusal(&next).is_some() {
                break;
            }
            if next.run().count > room {
                taken.push(queue.front_mut().expect("looked at above").split(room));
                break;
            }
            taken.push(next);
            queue.pop_front();
        }
        taken
    }

    /// Windows in a row: what is left undone for lack of time goes back to the front of the queue.
    fn merge_span(&mut self, taken: Vec<Proposal>, queue: &mut VecDeque<Proposal>) -> usize {
        let Some((first, last)) = taken.first().zip(taken.last()) else { return 0 };
        let span = Run { first: first.first as usize, count: last.run().end() - first.first as usize };
        let others: usize = self.mappings() - self.views[&first.segment].table.mappings();
        let room = self.budget.saturating_sub(others);
        let view = self.views.get_mut(&first.segment).expect("no refusal, so there is a view");
        view.agenda.stir();
        // Reading a hole would allocate it; where there is no room, that is SIGBUS. A page was a hole when it was proposed
        // only if somebody lies, but it may have become one since; while the lock is held it becomes none.
        let present = view.memory.range.resident(bytes(span.first), bytes(span.count), view.memory.segment.as_fd());
        let readable = |page: usize| present[page - span.first];
        let began = Instant::now();
        let mut events: Vec<Event> = Vec::with_capacity(taken.len());
        let mut rest: VecDeque<Proposal> = taken.into();
        while !rest.is_empty() && (events.is_empty() || began.elapsed() < ROW) {
            self.merge_held(&mut rest, room, readable, &mut events);
        }
        for proposal in rest.into_iter().rev() {
            queue.push_front(proposal);
        }
        // M7, still under the lock: a page that is adopted again must not be punched afterwards.
        let view = self.views.get_mut(&events[0].segment).expect("looked at above");
        let mut pages = 0;
        let mut merged = events.iter().filter(|event| event.kind == Kind::Merged).map(Event::run).peekable();
        while let Some(mut run) = merged.next() {
            while let Some(next) = merged.next_if(|next| next.first == run.end()) {
                run.count += next.count;
            }
            pages += run.count;
            view.punch(run);
        }
        events.into_iter().for_each(|event| self.journal.push(event));
        pages
    }

    /// One window, over what the first proposals make one run.
    fn merge_held(
        &mut self,
        rest: &mut VecDeque<Proposal>,
        room: usize,
        readable: impl Fn(usize) -> bool,
        events: &mut Vec<Event>,
    ) {
        let mut held = rest[0].run();
        held.count =
            rest.iter().fold(0, |n, next| n + if next.first as usize == held.first + n { next.run().count } else { 0 });
        let view = self.views.get_mut(&rest[0].segment).expect("no refusal, so there is a view");
        let barrier = self.barrier.as_mut().expect("no refusal, so there is a barrier");
        // A mapping takes one userfaultfd: where the tracker's could not let go, the window's is refused as busy.
        let freed = self.tracker.as_ref().map_or(Ok(()), |tracker| tracker.let_go(view, held));
        match barrier.window(view.address(held.first), bytes(held.count)) {
            Err(error) => {
                let reason = Reason::of(freed.err().and_then(|e| e.raw_os_error()).unwrap_or(error.errno()));
                let refused = rest.iter().take_while(|next| held.overlaps(next.run())).count();
                let declined = |next: Proposal| next.event(Kind::Declined, next.run(), reason as u32);
                events.extend(rest.drain(..refused).map(declined));
            }
            Ok(mut window) => {
                let mut at = held.first;
                while at < held.end() && (at == held.first || !window.is_over()) {
                    let proposal = &mut rest[0];
                    let pool = self.pools.get_mut(&proposal.pool);
                    let (count, event) = step(view, pool, &self.zeros, proposal, room, &readable, || window.is_over());
                    if event.kind == Kind::Merged {
                        window.switched(bytes(count));
                    }
                    events.push(event);
                    at += count;
                    if count == proposal.count as usize {
                        rest.pop_front();
                    } else {
                        proposal.split(count);
                    }
                }
            }
        }
        if let Some(tracker) = &self.tracker {
            tracker.take_back(view, held);
        }
    }

    fn decline(&mut self, proposal: &Proposal, run: Run, reason: Reason) {
        // Numbers out of bounds are answered as they came, so that the server can tell what was meant.
        self.journal.push(proposal.event(Kind::Declined, run, reason as u32));
    }
}

/// Compares and switches the longest stretch from the proposal's first page on. How many pages it was, and the event.
fn step(
    view: &mut View,
    pool: Option<&mut Pool>,
    zeros: &Look,
    proposal: &Proposal,
    room: usize,
    readable: impl Fn(usize) -> bool,
    is_over: impl Fn() -> bool,
) -> (usize, Event) {
    let first = proposal.first as usize;
    let one = Run { first, count: 1 };
    let declined = |run: Run, reason: Reason| (run.count, proposal.event(Kind::Declined, run, reason as u32));
    let wanted = |page: usize| !view.table.is_excluded(page) && !view.table.is_pinned(page);
    if view.table.state(first) != State::Owned {
        return declined(one, Reason::State);
    }
    if !wanted(first) {
        view.held_back |= view.table.is_pinned(first);
        return declined(one, Reason::Pinned);
    }
    let mut pool = pool;
    let look = match &mut pool {
        None => Some(zeros),
        Some(pool) => pool.look(proposal.frames()).ok().flatten(),
    };
    let Some(look) = look else { return declined(one, Reason::State) };
    let page = page_size();
    if !readable(first) {
        return declined(one, Reason::Changed); // it was given back since, or reclaimed
    }
    let equal = |at: usize| {
        let frame = if proposal.pool == 0 { 0 } else { proposal.frame as usize + at - first };
        view.memory.range.equals(bytes(at), page, look, bytes(frame))
    };
    // M4. The stretch ends at the first page that differs, or when the time is over.
    let mut end = first;
    while end < proposal.run().end()
        && view.table.state(end) == State::Owned
        && wanted(end)
        && readable(end)
        && equal(end)
    {
        end += 1;
        if (end - first).is_multiple_of(CLOCK_PAGES) && is_over() {
            break;
        }
    }
    if end == first {
        return declined(one, Reason::Changed);
    }
    let run = Run { first, count: end - first };
    let state = if proposal.pool == 0 { State::Zero } else { State::Merged };
    let cost = view.table.cost(run, state, proposal.pool, proposal.frame);
    if view.table.mappings().saturating_add_signed(cost) > room {
        return declined(run, Reason::Budget);
    }
    // M5.
    let memory = view.memory.clone();
    let mapped = match &pool {
        None => memory.range.map_zero(bytes(first), bytes(run.count)),
        Some(pool) => {
            let offset = bytes(proposal.frame as usize);
            memory.range.map_frames(bytes(first), bytes(run.count), pool.fd(), offset)
        }
    };
    if let Err(error) = mapped {
        view.ensure_mapped(run); // the segment still has the bytes
        return declined(run, Reason::of(error.raw_os_error().unwrap_or(0)));
    }
    view.table.set(run, state, proposal.pool, proposal.frame);
    (run.count, proposal.event(Kind::Merged, run, 0))
}
