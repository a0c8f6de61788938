//! M3 to M7: switching owned pages to frames.
//!
//! A proposal is believed in nothing: numbers may be unknown, ranges out of bounds, frames of other content. Each page
//! of it ends up in the journal, merged or declined.

use crate::error::Result;
use crate::faults;
use crate::page::{Run, bytes, page_size};
use crate::space::Space;
use crate::space::books::proposal::Proposal;
use crate::space::books::view_table::PageState;
use crate::space::headroom::Headroom;
use crate::space::inner::Inner;
use crate::space::pool::Pool;
use crate::space::redo::{Change, Mapped};
use crate::space::view::View;
use crate::sys::mmap::ReadMapping;
use crate::sys::sched;
use crate::wire::{DeclineReason, EventKind};
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

impl Space {
    /// Carries proposals out where the bytes are equal, a window at a time. The pages merged.
    pub fn merge(&self, mut proposals: Vec<Proposal>) -> Result<usize> {
        proposals.sort_by_key(|p| (p.segment, p.first));
        let room = {
            let mut inner = self.open()?;
            inner.pools.values_mut().for_each(Pool::forget_presence);
            inner.headroom = Headroom::measure(inner.pagemap.as_ref(), inner.private());
            inner.budget.saturating_sub(inner.mappings())
        };
        if room < 2 * proposals.len() {
            // Not all of them may fit: the longest save the most for a mapping.
            proposals.sort_by_key(|p| std::cmp::Reverse(p.count));
        }
        self.open()?.redo.queue.extend(proposals);
        let mut merged = 0;
        loop {
            sched::begin_slice(); // with no lock held: others may run first
            let mut inner = self.open()?;
            match inner.merge_window() {
                Some(pages) => merged += pages,
                None => {
                    inner.pools.values_mut().for_each(Pool::unmap);
                    return Ok(merged);
                }
            }
        }
    }
}

impl Inner {
    /// Carries out what fits into one window, from the front of the queue. The pages merged; None if there was nothing.
    pub fn merge_window(&mut self) -> Option<usize> {
        let first = *self.redo.queue.front()?;
        if let Some(reason) = self.refusal(&first) {
            self.redo.queue.pop_front();
            self.journal.push(first.event(EventKind::Declined, first.run(), reason as u32));
            return Some(0);
        }
        self.take_span();
        self.ready();
        Some(self.merge_span())
    }

    /// Has the frames entered into the page tables, and declines what has none: a hole in the pool must not be read, and
    /// faults in a window would make it longer.
    fn ready(&mut self) {
        let Inner { pools, journal, redo, .. } = self;
        for _ in 0..redo.taken.len() {
            let next = redo.taken[0];
            if next.pool == 0 || pools.get_mut(&next.pool).is_some_and(|pool| pool.prepare(next.frames())) {
                redo.taken.rotate_left(1); // to the end; after one round they are in order again
            } else {
                redo.decline(journal, next.count as usize, DeclineReason::State);
            }
        }
    }

    /// Why a whole proposal cannot be carried out.
    fn refusal(&mut self, proposal: &Proposal) -> Option<DeclineReason> {
        if self.headroom.is_locked() {
            self.headroom.declined();
            return Some(DeclineReason::State);
        }
        let Some(view) = self.views.get(&proposal.segment) else { return Some(DeclineReason::State) };
        if !proposal.run().fits(view.table.pages()) {
            return Some(DeclineReason::State);
        }
        if view.shared {
            return Some(DeclineReason::Forked);
        }
        if proposal.pool != 0 {
            if proposal.frames().end() > 1 << 32 {
                return Some(DeclineReason::State);
            }
            let pool = self.pools.get_mut(&proposal.pool);
            let reachable = pool.and_then(|pool| pool.mapping_of(proposal.frames()).ok()).flatten();
            if reachable.is_none() {
                return Some(DeclineReason::State);
            }
        }
        self.barrier.is_none().then_some(DeclineReason::Failed)
    }

    /// Takes proposals for neighbouring pages of one segment off the queue, as many as one window may hold.
    fn take_span(&mut self) {
        while let Some(&next) = self.redo.queue.front() {
            let taken = &self.redo.taken;
            let start = taken.front().map_or(next.first as usize, |p| p.first as usize);
            if let Some(last) = taken.back() {
                let (end, first) = (last.run().end(), next.first as usize);
                let near = next.segment == last.segment && first >= end && first - end <= MAX_GAP;
                if !near || first - start >= self.window_pages || taken.len() == MAX_RUNS {
                    break;
                }
            }
            let room = self.window_pages - (next.first as usize - start);
            if !self.redo.taken.is_empty() && self.refusal(&next).is_some() {
                break;
            }
            if next.run().count > room {
                let head = self.redo.queue[0].split(room);
                self.redo.taken.push_back(head);
                break;
            }
            self.redo.queue.pop_front();
            self.redo.taken.push_back(next);
        }
    }

    /// Windows in a row: what is left undone for lack of time goes back to the front of the queue. The pages merged.
    fn merge_span(&mut self) -> usize {
        let Some((first, last)) = self.redo.taken.front().zip(self.redo.taken.back()) else { return 0 };
        let span = Run { first: first.first as usize, count: last.run().end() - first.first as usize };
        let segment = first.segment;
        let others: usize = self.mappings() - self.views[&segment].table.mappings();
        self.headroom.mappings = self.budget.saturating_sub(others);
        let view = self.views.get_mut(&segment).expect("no refusal, so there is a view");
        view.agenda.stir();
        // Reading a hole would allocate it; where there is no room, that is SIGBUS. A page was a hole when it was proposed
        // only if somebody lies, but it may have become one since; while the lock is held it becomes none.
        let present = view.memory.range.resident(bytes(span.first), bytes(span.count), view.memory.segment().as_fd());
        let readable = |page: usize| present[page - span.first];
        let began = Instant::now();
        let mut first = true;
        while !self.redo.taken.is_empty() && (first || began.elapsed() < ROW) {
            self.merge_held(readable);
            first = false;
        }
        let redo = &mut self.redo;
        while let Some(left) = redo.taken.pop_back() {
            redo.queue.push_front(left);
        }
        // M7, still under the lock: a page that is adopted again must not be punched afterwards.
        let view = self.views.get_mut(&segment).expect("looked at above");
        let merged = redo.punch.iter().map(|(_, run)| run.count).sum();
        while let Some(&(_, run)) = redo.punch.last() {
            view.punch(run);
            redo.punch.pop();
        }
        merged
    }

    /// One window, over what the first proposals make one run.
    fn merge_held(&mut self, readable: impl Fn(usize) -> bool) {
        let Inner { views, pools, journal, barrier, tracker, zeros, redo, headroom, .. } = self;
        let taken = &redo.taken;
        let mut held = taken[0].run();
        held.count = taken
            .iter()
            .fold(0, |n, next| n + if next.first as usize == held.first + n { next.run().count } else { 0 });
        let segment = taken[0].segment;
        let view = views.get_mut(&segment).expect("no refusal, so there is a view");
        let barrier = barrier.as_mut().expect("no refusal, so there is a barrier");
        // A mapping takes one userfaultfd: where the tracker's could not let go, the window's is refused as busy.
        let freed = tracker.as_ref().map_or(Ok(()), |tracker| tracker.let_span_go(view, held));
        match barrier.window(view.address(held.first), bytes(held.count)) {
            Err(error) => {
                let reason = reason_for(freed.err().and_then(|e| e.raw_os_error()).unwrap_or(error.errno()));
                while redo.taken.front().is_some_and(|next| held.overlaps(next.run())) {
                    redo.decline(journal, redo.taken[0].count as usize, reason);
                }
            }
            Ok(mut window) => {
                faults::hit("merge.held");
                let mut at = held.first;
                while at < held.end() && (at == held.first || !window.is_over()) {
                    let proposal = redo.taken[0];
                    let pool = pools.get_mut(&proposal.pool);
                    let (run, declined) = step(view, pool, zeros, &proposal, headroom, &readable, || window.is_over());
                    match declined {
                        Some(reason) => redo.decline(journal, run.count, reason),
                        None => {
                            headroom.pages -= run.count;
                            redo.change = Some(Change { segment, run, mapped: Mapped::Frames });
                            faults::hit("merge.mapped");
                            window.switched(bytes(run.count));
                            redo.follow(view, journal);
                        }
                    }
                    at += run.count;
                }
            }
        }
        if let Some(tracker) = tracker {
            tracker.register_again(view, held);
        }
    }
}

/// Why pages are declined if a system call failed. What takes mappings fails with ENOMEM when there are no more.
fn reason_for(errno: i32) -> DeclineReason {
    if errno == libc::ENOMEM { DeclineReason::Budget } else { DeclineReason::Failed }
}

/// Compares and switches the longest stretch from the proposal's first page on, and leaves the books to the caller. The
/// stretch, and why it is declined if it is.
fn step(
    view: &mut View,
    pool: Option<&mut Pool>,
    zeros: &ReadMapping,
    proposal: &Proposal,
    headroom: &mut Headroom,
    readable: impl Fn(usize) -> bool,
    is_over: impl Fn() -> bool,
) -> (Run, Option<DeclineReason>) {
    let first = proposal.first as usize;
    let one = Run { first, count: 1 };
    let declined = |run: Run, reason: DeclineReason| (run, Some(reason));
    let wanted = |page: usize| !view.table.is_excluded(page) && !view.table.is_pinned(page);
    if view.table.state(first) != PageState::Owned {
        return declined(one, DeclineReason::State);
    }
    if !wanted(first) {
        view.held_back |= view.table.is_pinned(first);
        return declined(one, DeclineReason::Pinned);
    }
    let mut pool = pool;
    let mapping = match &mut pool {
        None => Some(zeros),
        Some(pool) => pool.mapping_of(proposal.frames()).ok().flatten(),
    };
    let Some(mapping) = mapping else { return declined(one, DeclineReason::State) };
    let page = page_size();
    if !readable(first) {
        return declined(one, DeclineReason::Changed); // it was given back since, or reclaimed
    }
    let equal = |at: usize| {
        let frame = if proposal.pool == 0 { 0 } else { proposal.frame as usize + at - first };
        view.memory.range.equals(bytes(at), page, mapping, bytes(frame))
    };
    if headroom.pages == 0 {
        headroom.declined();
        return declined(proposal.run(), DeclineReason::Budget);
    }
    // M4. The stretch ends at the first page that differs, or when the time is over.
    let mut end = first;
    while end < proposal.run().end().min(first.saturating_add(headroom.pages))
        && view.table.state(end) == PageState::Owned
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
        return declined(one, DeclineReason::Changed);
    }
    let run = Run { first, count: end - first };
    let state = if proposal.pool == 0 { PageState::Zero } else { PageState::Merged };
    let cost = view.table.cost(run, state, proposal.pool, proposal.frame);
    if view.table.mappings().saturating_add_signed(cost) > headroom.mappings {
        return declined(run, DeclineReason::Budget);
    }
    // M5.
    let memory = view.memory.clone();
    let mapped = faults::check("merge.map").and_then(|()| match &pool {
        None => memory.range.map_zero(bytes(first), bytes(run.count)),
        Some(pool) => {
            let offset = bytes(proposal.frame as usize);
            memory.range.map_frames(bytes(first), bytes(run.count), pool.fd(), offset)
        }
    });
    if let Err(error) = mapped {
        view.ensure_mapped(run); // the segment still has the bytes
        return declined(run, reason_for(error.raw_os_error().unwrap_or(0)));
    }
    (run, None)
}
