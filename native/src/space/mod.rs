//! A client's share of the address space: its views, the pools they map, and the means to hold writes.
//!
//! One lock guards it all, taken after every lock of the Python side and held for one window, or one look at a view, at
//! most. Nothing in here calls into Python, so no window can wait for the GIL, whose holder may be waiting for the window.
//! A second lock, over the list of freed extents, is taken by blocks as they die, never across a system call.

pub mod books;
pub mod ending;
pub(crate) mod headroom;
pub(crate) mod operations;
mod pool;
mod redo;
mod tracker;
pub(crate) mod view;
mod warden;
mod window;

use crate::arena::extents::Extent;
use crate::arena::freed::Freed;
use crate::arena::room::Room;
use crate::arena::{Arena, Claim};
use crate::error::{Error, Result};
use crate::fork;
use crate::fork::generation::Generations;
use crate::page::{Run, bytes, page_size, pieces};
use crate::space::books::counts::{Counts, WindowStats};
use crate::space::books::flags::Flags;
use crate::space::books::journal::{self, Journal, Kind};
use crate::space::books::page_table::{PageTable, State};
use crate::space::books::proposal::Proposal;
use crate::space::headroom::{Headroom, Hindrance};
use crate::space::pool::Pool;
use crate::space::redo::Redo;
use crate::space::tracker::Tracker;
use crate::space::view::{Memory, View};
use crate::space::warden::Watch;
use crate::space::window::Barrier;
use crate::sys::doorbell::Doorbell;
use crate::sys::event::Event;
use crate::sys::forklock::{ForkLock, Guard};
use crate::sys::mmap::{Lease, Look, ViewRange};
use crate::sys::object::{Lent, Object};
use crate::sys::pagemap::Pagemap;
use crate::sys::sched;
use crate::sys::shm;
use crate::sys::uffd::Scope;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// What a space is made with.
pub struct Options {
    /// Whose writes are held; None: nothing is ever merged.
    pub scope: Option<Scope>,
    /// Most mappings that the views may use.
    pub budget: usize,
    /// Most pages in a window.
    pub window_pages: usize,
    /// How long a window takes up pages.
    pub window_time: Duration,
    /// Use WP_UNPOPULATED where the kernel has it.
    pub unpopulated: bool,
    /// Use PAGEMAP_SCAN where the kernel has it.
    pub pagemap_scan: bool,
    /// Find out which owned pages are written.
    pub track: bool,
}

/// Time between two looks for written pages, until `wait` says otherwise.
const POLL: Duration = Duration::from_millis(500);

/// Most pages that a window holds, whatever it is told: I8.
const MAX_WINDOW_PAGES: usize = 256;

/// What the lock guards.
pub(crate) struct Inner {
    pub views: BTreeMap<u32, View>,
    pub pools: BTreeMap<u32, Pool>,
    pub journal: Journal,
    pub barrier: Option<Barrier>,
    pub pagemap: Option<Pagemap>,
    pub tracker: Option<Tracker>,
    /// How long between two looks at a view, as a rule.
    pub poll: Duration,
    pub zeros: Look,
    pub budget: usize,
    pub window_pages: usize,
    /// What the program's limits leave, as of the last batch.
    pub headroom: Headroom,
    pub redo: Redo,
    pub closed: bool,
    pub flags: Arc<Flags>,
    pub generations: Generations,
    /// Whether forks get a lease: somebody will ask whether the children are gone.
    pub asks_for_children: bool,
    /// During a fork: the lease for the child.
    pub given: Option<Lease>,
    /// For views that are made: held as long as they are. A child has none.
    pub lease: Option<Arc<Lease>>,
    /// In a child: memory of the parent's, as long as blocks live in it, and what it mapped when it was inherited.
    pub inherited: Vec<(Weak<Memory>, PageTable)>,
    /// In a child: spaces that have taken over such memory. Blocks keep this one, and so those: forks freeze them.
    pub successors: Vec<Arc<ForkLock<Inner>>>,
    /// What went wrong at the last fork.
    pub trouble: Option<Error>,
    /// Segments, and what is handed out of them.
    pub arena: Arena,
    /// Of the session.
    pub bell: Option<Arc<Doorbell>>,
    /// Descriptors that Python keeps beside ours: a child closes its copies.
    pub lent: BTreeMap<i32, Lent>,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The doorbell.
    Rung,
    /// There are events or freed extents.
    News,
    /// Nothing of the kind.
    Idle,
}

/// A space.
pub struct Space {
    pub(crate) inner: Arc<ForkLock<Inner>>,
    flags: Arc<Flags>,
    freed: Arc<Freed>,
    watch: Option<Arc<Watch>>,
    announced: Arc<Event>,
    /// Whether the session tells the server of new segments: else nobody waits for that.
    pub reachable: AtomicBool,
    pub(crate) looked: Mutex<Option<(Instant, Option<Room>)>>,
}

impl Space {
    /// Makes one and probes that windows and harvests can be had.
    pub fn new(lease: OwnedFd, options: &Options) -> Result<Space> {
        let barrier = match options.scope {
            Some(scope) => Some(Barrier::open(scope, options.unpopulated, options.window_time)?),
            None => None,
        };
        let pagemap = Pagemap::open(options.pagemap_scan);
        let pagemap = match (pagemap, &barrier) {
            (Ok(pagemap), _) => Some(pagemap),
            (Err(_), None) => None,
            (Err(error), Some(_)) => return Err(Error::System("/proc/self/pagemap", error)),
        };
        let tracker = match options.scope {
            Some(scope) if options.track => Some(Tracker::open(scope)?),
            _ => None,
        };
        let inner = Inner {
            views: BTreeMap::new(),
            pools: BTreeMap::new(),
            journal: Journal::default(),
            barrier,
            pagemap,
            tracker,
            poll: POLL,
            zeros: Look::zeros(page_size()).map_err(|e| Error::System("mapping a page of zeros", e))?,
            budget: options.budget,
            window_pages: options.window_pages.clamp(1, MAX_WINDOW_PAGES),
            headroom: Headroom::default(),
            redo: Redo::default(),
            closed: false,
            flags: Arc::default(),
            generations: Generations::default(),
            asks_for_children: true,
            given: None,
            lease: Some(Arc::new(Lease::hold(lease).map_err(|e| Error::System("mapping the lease", e))?)),
            inherited: Vec::new(),
            successors: Vec::new(),
            trouble: None,
            arena: Arena::new(),
            bell: None,
            lent: BTreeMap::new(),
        };
        let watch = inner.barrier.as_ref().map(Barrier::watch);
        let space = Space {
            flags: inner.flags.clone(),
            announced: inner.arena.announced().clone(),
            inner: Arc::new(ForkLock::new(inner)),
            freed: Arc::default(),
            watch,
            reachable: AtomicBool::new(true),
            looked: Mutex::default(),
        };
        if let Some(watch) = &space.watch {
            warden::start(Arc::downgrade(&space.inner), watch.clone())
                .map_err(|e| Error::System("starting a thread", e))?;
        }
        fork::take_part(&space.inner)?;
        Ok(space)
    }

    /// See `Flags`.
    pub fn flags(&self) -> &Flags {
        &self.flags
    }

    /// Set while the server knows of all segments.
    pub fn all_announced(&self) -> &Event {
        &self.announced
    }

    /// The list that dying blocks add to.
    pub fn freed(&self) -> &Arc<Freed> {
        &self.freed
    }

    /// Maps a segment; its address.
    pub fn add_view(&self, number: u32, segment: OwnedFd, pages: usize) -> Result<usize> {
        self.open()?.add_view(number, Arc::new(Object::keep(segment)), pages)
    }

    /// Unmaps a view that no block lives in; false if one does, or if a forked child may share it.
    pub fn drop_view(&self, number: u32) -> Result<bool> {
        self.open()?.drop_view(number)
    }

    /// The session, which is rung when there is something to tell, or children to wait for.
    pub fn attend(&self, bell: Arc<Doorbell>) {
        self.inner.lock().bell = Some(bell);
    }

    /// What a block holds on to so that forks freeze its memory, whatever becomes of the space.
    pub(crate) fn keeper(&self) -> Arc<dyn Send + Sync> {
        self.inner.clone()
    }

    /// The memory behind a range of a view, for a block.
    pub fn claim(&self, number: u32, run: Run) -> Result<Claim> {
        let inner = self.open()?;
        let view = inner.views.get(&number).ok_or(Error::NoView(number))?;
        if !run.fits(view.table.pages()) {
            return Err(Error::Range("the range is not inside of its view"));
        }
        let (extent, reserved) = (Extent { segment: number, run }, Run { first: 0, count: 0 });
        Ok(Claim::new(view.memory.clone(), self.keeper(), self.freed.clone(), extent, reserved))
    }

    /// Makes a pool known.
    pub fn add_pool(&self, number: u32, fd: OwnedFd) -> Result<()> {
        if number == 0 || number > u32::from(u16::MAX) {
            return Err(Error::Range("pools have numbers from 1 to 65535"));
        }
        let mut inner = self.open()?;
        if inner.pools.contains_key(&number) {
            return Err(Error::Taken(number));
        }
        inner.pools.insert(number, Pool::new(fd));
        Ok(())
    }

    /// Notes a descriptor that Python keeps, so that a child closes its copy.
    pub fn lend(&self, fd: i32) {
        self.inner.lock().lent.insert(fd, Lent::note(fd));
    }

    /// Carries proposals out where the bytes are equal, a window at a time. The pages merged.
    pub fn merge(&self, mut proposals: Vec<Proposal>) -> Result<usize> {
        proposals.sort_by_key(|p| (p.segment, p.first));
        let room = {
            let mut inner = self.open()?;
            inner.pools.values_mut().for_each(Pool::forget);
            inner.headroom = Headroom::look(inner.pagemap.as_ref(), inner.private());
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
                    inner.pools.values_mut().for_each(Pool::rest);
                    return Ok(merged);
                }
            }
        }
    }

    /// Sets whether pages may be merged.
    pub fn exclude(&self, number: u32, run: Run, excluded: bool) -> Result<()> {
        self.with_range(number, run, |view, journal| {
            view.table.exclude(run, excluded);
            let kind = if excluded { Kind::Excluded } else { Kind::Included };
            journal.push(journal::Event::new(kind, number, run));
        })
    }

    /// Pins pages once more.
    pub fn pin(&self, number: u32, run: Run) -> Result<()> {
        self.with_range(number, run, |view, _| view.table.pin(run))
    }

    /// Undoes one pin.
    pub fn unpin(&self, number: u32, run: Run) -> Result<()> {
        let found = self.with_range(number, run, |view, journal| {
            let found = view.table.unpin(run);
            if found {
                view.table.set_unwatched(run); // devices write past the page table: nobody has seen what they wrote
                view.agenda.stir();
            }
            if found && view.held_back {
                view.include(journal, number, run);
                view.held_back = view.table.has_pins();
            }
            found
        })?;
        if found { Ok(()) } else { Err(Error::Range("this range is not pinned")) }
    }

    /// How many pages of a run are switched: mapped to a frame or the zero page, or copied from there.
    pub fn switched(&self, number: u32, run: Run) -> Result<usize> {
        self.with_range(number, run, |view, _| {
            (run.first..run.end()).filter(|page| view.table.state(*page).is_switched()).count()
        })
    }

    /// Finds pages that were written, in views that are due for it or in all. How many there were.
    pub fn harvest(&self, all: bool, tracked: bool) -> Result<usize> {
        let numbers: Vec<u32> = self.open()?.views.keys().copied().collect();
        let mut found = 0;
        for number in numbers {
            found += self.open()?.harvest(number, all, tracked)?;
        }
        Ok(found)
    }

    /// Watches for writes no longer.
    pub fn untrack(&self) {
        self.inner.lock().tracker = None;
    }

    /// Takes at most `limit` events out.
    pub fn drain(&self, limit: usize) -> Vec<journal::Event> {
        self.inner.lock().journal.drain(limit)
    }

    /// Events in the journal.
    pub fn pending(&self) -> usize {
        self.inner.lock().journal.len()
    }

    /// Pages by state.
    pub fn counts(&self) -> Counts {
        self.inner.lock().counts()
    }

    /// What pages of the last batch were declined for, of the program's own limits, if that is so still.
    pub fn hindrance(&self) -> Option<Hindrance> {
        let inner = self.inner.lock();
        inner.headroom.met().then(|| Headroom::look(inner.pagemap.as_ref(), inner.private()).used_up()).flatten()
    }

    /// How long windows lasted.
    pub fn windows(&self) -> WindowStats {
        let inner = self.inner.lock();
        inner.barrier.as_ref().map_or(WindowStats::default(), |barrier| {
            let lasted = barrier.lasted();
            WindowStats {
                windows: lasted.total(),
                p50: lasted.quantile(0.5),
                p99: lasted.quantile(0.99),
                max: lasted.max(),
                max_running: barrier.longest_running(),
                over_bound: barrier.over_bound(),
            }
        })
    }

    /// Waits for the doorbell, or for news of our own.
    pub fn wait(&self, doorbell: &Doorbell, poll: Duration, timeout: Duration) -> Result<Woken> {
        let end = Instant::now() + timeout;
        self.inner.lock().poll = poll;
        loop {
            if !self.freed.is_empty() || self.pending() > 0 {
                return Ok(Woken::News);
            }
            let left = end.saturating_duration_since(Instant::now());
            let pause = self.inner.lock().pause().min(left);
            if doorbell.wait(pause).map_err(|e| Error::System("waiting for the doorbell", e))? {
                return Ok(Woken::Rung);
            }
            if self.harvest(false, true)? == 0 && Instant::now() >= end && self.freed.is_empty() {
                return Ok(Woken::Idle);
            }
        }
    }

    /// Ends merging for good.
    pub fn close(&self) {
        self.inner.lock().shut();
    }

    pub(crate) fn open(&self) -> Result<Guard<'_, Inner>> {
        if self.inner.is_held_here() {
            return Err(Error::Forking);
        }
        let inner = self.inner.lock();
        if inner.closed { Err(Error::Closed) } else { Ok(inner) }
    }

    fn with_range<R>(&self, number: u32, run: Run, act: impl FnOnce(&mut View, &mut Journal) -> R) -> Result<R> {
        let mut inner = self.open()?;
        let Inner { views, journal, .. } = &mut *inner;
        let view = views.get_mut(&number).ok_or(Error::NoView(number))?;
        if !run.fits(view.table.pages()) {
            return Err(Error::Range("the range is not inside of its view"));
        }
        Ok(act(view, journal))
    }
}

impl Drop for Space {
    /// Blocks may live on, and with them what has to be frozen at a fork: nothing else of it.
    fn drop(&mut self) {
        if !self.inner.is_held_here() {
            self.close();
        }
        if let Some(watch) = &self.watch {
            watch.end(); // and with it the warden
        }
    }
}

impl Inner {
    /// Maps a segment; its address.
    pub fn add_view(&mut self, number: u32, segment: Arc<Object>, pages: usize) -> Result<usize> {
        let size = shm::size(segment.as_fd()).map_err(|e| Error::System("size of the segment", e))?;
        if pages == 0 || pages > size / page_size() || pages > u32::MAX as usize {
            return Err(Error::Range("a view has at least one page and no more than its segment"));
        }
        if self.views.contains_key(&number) {
            return Err(Error::Taken(number));
        }
        let range = ViewRange::map_segment(segment.as_fd(), bytes(pages))
            .map_err(|e| Error::System("mapping the segment", e))?;
        let lease = self.lease.clone().ok_or(Error::Closed)?;
        let mut view = View::new(Memory::new(range, segment, lease), pages, self.generations.next());
        if let Some(tracker) = &self.tracker {
            tracker.watch_new(&mut view);
        }
        let address = view.address(0);
        self.views.insert(number, view);
        Ok(address)
    }

    /// Unmaps a view that no block lives in; false if one does, or if a forked child may share it.
    pub fn drop_view(&mut self, number: u32) -> Result<bool> {
        let view = self.views.get(&number).ok_or(Error::NoView(number))?;
        if view.shared || Arc::strong_count(&view.memory) > 1 {
            return Ok(false);
        }
        let view = self.views.remove(&number).expect("looked up above");
        let View { memory, table, .. } = view;
        drop(memory); // unmapped first, released then: I3
        let whole = Run { first: 0, count: table.pages() };
        pieces(
            whole,
            |page| table.state(page).is_switched(),
            |run, switched| {
                if switched {
                    self.journal.push(journal::Event { detail: 1, ..journal::Event::new(Kind::Released, number, run) });
                }
            },
        );
        Ok(true)
    }

    /// Pages by state.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts { mappings: self.mappings(), budget: self.budget, ..Counts::default() };
        for view in self.views.values() {
            counts.owned += view.table.count(State::Owned);
            counts.merged += view.table.count(State::Merged);
            counts.zero += view.table.count(State::Zero);
            counts.copied += view.table.count(State::Copied) + view.table.count(State::CopiedZero);
            counts.frozen += view.table.count(State::Frozen);
            if view.inherited {
                counts.inherited += view.table.pages() - view.table.count(State::Inherited);
            }
            counts.shared += if view.shared { view.table.pages() } else { 0 };
        }
        counts
    }

    /// Mappings that all views take.
    pub fn mappings(&self) -> usize {
        self.views.values().map(|view| view.table.mappings()).sum()
    }

    /// Pages of views that are private to this process.
    fn private(&self) -> usize {
        self.views.values().map(|view| view.table.pages() - view.table.count(State::Owned)).sum()
    }

    /// Ends everything but the views.
    pub fn shut(&mut self) {
        self.closed = true;
        self.asks_for_children = false;
        self.generations.forget();
        self.bell = None;
        // A child's copies of these belong to the parent's address space; closed, they cannot hold anything up there.
        self.barrier = None;
        self.pagemap = None;
        self.tracker = None;
        self.pools.clear();
        self.redo.queue.clear();
        // The views stay: blocks may live in them, and a fork must freeze those as well.
    }
}
