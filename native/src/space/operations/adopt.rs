//! Adopt: taking pages back from frames, copies and the zero page into their segment.

use crate::arena::books::Place;
use crate::arena::room;
use crate::error::{Error, Result};
use crate::faults;
use crate::page::{Run, bytes, page_size};
use crate::space::Space;
use crate::space::books::journal::{Event, Journal};
use crate::space::books::view_table::PageState;
use crate::space::inner::Inner;
use crate::space::redo::{Change, Mapped, Redo};
use crate::space::view::View;
use crate::sys::sched;
use crate::wire::EventKind;
use std::os::fd::AsFd;

/// Most pages between two looks at the clock: saving one costs 1 us, or 10 where the kernel has to find memory first.
const CLOCK_PAGES: usize = 8;

/// What became of the first pages of a run.
#[derive(Default)]
pub struct Window {
    /// So many are dealt with.
    pub done: usize,
    /// Of these, so many were adopted.
    pub adopted: usize,
    /// So many were not, and the errno of the first that were not.
    pub refused: Option<(usize, i32)>,
}

impl Window {
    /// What is left of the run.
    pub fn rest_of(&self, run: Run) -> Run {
        Run { first: run.first + self.done, count: run.count - self.done }
    }

    fn refuse(&mut self, journal: &mut Journal, segment: u32, run: Run, errno: i32) {
        journal.push(Event { detail: errno as u32, ..Event::new(EventKind::NotAdopted, segment, run) });
        let (pages, first) = self.refused.unwrap_or((0, errno));
        self.refused = Some((pages + run.count, first));
    }
}

impl Space {
    /// Takes pages back into their segments, a window at a time, using up `room` pages of memory at most. The pages adopted.
    pub fn adopt(&self, runs: impl IntoIterator<Item = (u32, u32, u32)>, mut room: usize) -> Result<usize> {
        let mut adopted = 0;
        for (segment, first, count) in runs {
            let mut rest = Run { first: first as usize, count: count as usize };
            while rest.count > 0 {
                sched::begin_slice();
                let window = self.open()?.adopt_window(segment, rest, &mut room)?;
                adopted += window.adopted;
                rest = window.rest_of(rest);
            }
        }
        Ok(adopted)
    }

    /// Has pages not be merged, and takes back at once what is. How many keep their frames, and the errno for which.
    pub fn take_back(&self, number: u32, run: Run) -> Result<Option<(usize, i32)>> {
        self.exclude(number, run, true)?;
        self.sweep(false)?; // what was freed before has room for what is taken back
        let mut room = room::spare_pages(self.room(Place::Memfd)).unwrap_or(usize::MAX);
        let (mut rest, mut refused) = (run, None);
        while rest.count > 0 {
            sched::begin_slice();
            let window = self.open()?.adopt_window(number, rest, &mut room)?;
            rest = window.rest_of(rest);
            // What is pinned, or shared with a forked child, is taken back when that is over.
            if let Some((pages, errno)) =
                window.refused.filter(|(_, errno)| ![libc::EBUSY, libc::EAGAIN].contains(errno))
            {
                let (before, first) = refused.unwrap_or((0, errno));
                refused = Some((before + pages, first));
            }
        }
        Ok(refused)
    }
}

impl Inner {
    /// Adopts what one window holds of a run.
    ///
    /// Pages that are owned already are passed over in silence, and so is what lies outside of any view. `room` is how many
    /// pages of memory may be used up, and becomes less: where there is no bound like that of a tmpfs, the kernel would
    /// end the process for want of memory, or another one.
    pub fn adopt_window(&mut self, segment: u32, run: Run, room: &mut usize) -> Result<Window> {
        let mappings = self.mappings();
        let Inner { views, journal, barrier, tracker, window_pages, budget, redo, .. } = self;
        let passed_over = |done| Ok(Window { done, ..Window::default() });
        let Some(view) = views.get_mut(&segment) else { return passed_over(run.count) };
        if !run.fits(view.table.pages()) {
            return passed_over(run.count);
        }
        let idle = (run.first..run.end()).take_while(|page| !view.table.state(*page).is_switched()).count();
        if idle > 0 {
            return passed_over(idle);
        }
        let refused = |journal: &mut Journal, run: Run, errno| {
            let mut window = Window { done: run.count, ..Window::default() };
            window.refuse(journal, segment, run, errno);
            Ok(window)
        };
        if view.shared || view.table.is_pinned(run.first) {
            let held =
                |page: &usize| view.table.state(*page).is_switched() && (view.shared || view.table.is_pinned(*page));
            let count = (run.first..run.end()).take_while(held).count();
            view.held_back |= !view.shared;
            return refused(journal, Run { first: run.first, count }, libc::EBUSY);
        }
        let wanted = |page: &usize| view.table.state(*page).is_switched() && !view.table.is_pinned(*page);
        let count = (run.first..run.end().min(run.first + *window_pages)).take_while(wanted).count();
        let span = Run { first: run.first, count };
        // An isolated page costs two mappings to adopt and none to leave where it is. Windows are no borders for this:
        // what counts is the stretch that is to be adopted.
        let stretch = Run { first: run.first, count: (run.first..run.end()).take_while(wanted).count() };
        let cost = view.table.cost(stretch, PageState::Owned, 0, 0);
        if cost >= 0 && mappings.saturating_add_signed(cost) > *budget {
            return refused(journal, stretch, libc::ENOMEM);
        }
        // What shares a frame gets a page of its own. A copy has one, and gives that up for the segment's.
        if merged(view, span) > *room {
            return refused(journal, span, libc::ENOMEM);
        }
        let barrier = barrier.as_mut().ok_or(Error::Closed)?;
        if !barrier.holds_unpopulated() {
            view.memory.range.touch(bytes(span.first), bytes(span.count));
        }
        let window = match barrier.window(view.address(span.first), bytes(span.count)) {
            Ok(window) => window,
            Err(error) => return refused(journal, span, error.errno()),
        };
        faults::hit("adopt.held");
        let mut all = Window::default();
        while all.done < span.count && (all.done == 0 || !window.is_over()) {
            let part = Run { first: span.first + all.done, count: (span.count - all.done).min(CLOCK_PAGES) };
            redo.saving = Some(segment);
            let (kept, errno) = adopt_part(view, segment, part, redo);
            *room = room.saturating_sub(merged(view, kept)); // before the books say that the pages are owned
            redo.follow(view, journal);
            redo.saving = None;
            if let Some(errno) = errno {
                all.refuse(journal, segment, Run { first: kept.end(), count: part.count - kept.count }, errno);
            }
            all.adopted += kept.count;
            all.done += part.count;
        }
        drop(window);
        if let Some(tracker) = tracker {
            tracker.register_again(view, Run { first: span.first, count: all.done });
        }
        Ok(all)
    }
}

/// Saves a part's bytes to its segment pages and maps those. The pages for which that worked, from the first on, and the
/// errno for the rest. Writes to the part are held, and that it is mapped is noted.
fn adopt_part(view: &mut View, segment: u32, part: Run, redo: &mut Redo) -> (Run, Option<i32>) {
    let memory = view.memory.clone();
    let mut saved = part.first;
    let mut errno = None;
    while saved < part.end() && errno.is_none() {
        let from = saved;
        if is_zero(view, saved) {
            saved += 1;
            continue; // the segment has a hole here, and a hole reads as zeros
        }
        while saved < part.end() && !is_zero(view, saved) {
            saved += 1;
        }
        let (written, error) = match faults::check("adopt.save") {
            Ok(()) => memory.range.save(bytes(from), bytes(saved - from), memory.segment().as_fd()),
            Err(error) => (0, Some(error)),
        };
        if let Some(error) = error {
            saved = from + written / page_size();
            errno = Some(error.raw_os_error().unwrap_or(libc::EIO));
        }
    }
    let mut kept = Run { first: part.first, count: saved - part.first };
    if kept.count > 0 {
        let (first, count) = (bytes(kept.first), bytes(kept.count));
        let mapped =
            faults::check("adopt.map").and_then(|()| memory.range.map_shared(first, count, memory.segment().as_fd()));
        match mapped {
            Err(error) if !view.ensure_mapped(kept) => {
                errno = Some(error.raw_os_error().unwrap_or(libc::ENOMEM));
                kept.count = 0;
            }
            _ => {
                redo.change = Some(Change { segment, run: kept, mapped: Mapped::Adopted });
                faults::hit("adopt.mapped");
            }
        }
    }
    if errno.is_some() {
        // Bytes saved for pages that stay where they are would be taken for current ones later.
        view.punch(Run { first: kept.end(), count: part.end() - kept.end() });
    }
    (kept, errno)
}

/// How many pages of a run share a frame.
fn merged(view: &View, run: Run) -> usize {
    (run.first..run.end()).filter(|page| view.table.state(*page) == PageState::Merged).count()
}

/// Whether a page can be adopted without writing it.
fn is_zero(view: &View, page: usize) -> bool {
    let zero = matches!(view.table.state(page), PageState::Zero | PageState::CopiedZero);
    zero && !view.stale && view.memory.range.is_zero(bytes(page), page_size())
}
