//! A client's share of the address space: its views, the pools they map, and the means to hold writes.
//!
//! One lock guards it all, taken after every lock of the Python side and held for one window, or one look at a view, at
//! most. Nothing in here calls into Python, so no window can wait for the GIL, whose holder may be waiting for the window.
//! A second lock, over the list of freed extents, is taken by blocks as they die, never across a system call.

pub mod books;
pub mod ending;
mod forks;
pub(crate) mod headroom;
mod inner;
pub(crate) mod operations;
mod pool;
mod redo;
mod tracker;
pub(crate) mod view;
mod warden;
mod window;

use crate::arena::Arena;
use crate::arena::freed::Freed;
use crate::arena::room::Room;
use crate::error::{Error, Result};
use crate::fork;
use crate::fork::generation::Generations;
use crate::page::{Run, page_size};
use crate::space::books::flags::Flags;
use crate::space::books::journal::{Event as JournalEvent, Journal};
use crate::space::headroom::Headroom;
use crate::space::inner::Inner;
use crate::space::redo::Redo;
use crate::space::tracker::Tracker;
use crate::space::view::View;
use crate::space::warden::WindowActivity;
use crate::space::window::Barrier;
use crate::sys::doorbell::Doorbell;
use crate::sys::event::Event;
use crate::sys::forklock::{ForkLock, Guard};
use crate::sys::mmap::{Lease, ReadMapping};
use crate::sys::object::Lent;
use crate::sys::pagemap::Pagemap;
use crate::sys::uffd::Scope;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
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

/// A space.
pub struct Space {
    pub(crate) inner: Arc<ForkLock<Inner>>,
    flags: Arc<Flags>,
    freed: Arc<Freed>,
    activity: Option<Arc<WindowActivity>>,
    announced: Arc<Event>,
    /// Whether the session tells the server of new segments: else nobody waits for that.
    pub reachable: AtomicBool,
    pub(crate) memory_room: Mutex<Option<(Instant, Option<Room>)>>,
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
            zeros: ReadMapping::zeros(page_size()).map_err(|e| Error::System("mapping a page of zeros", e))?,
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
        let activity = inner.barrier.as_ref().map(Barrier::activity);
        let space = Space {
            flags: inner.flags.clone(),
            announced: inner.arena.announced.clone(),
            inner: Arc::new(ForkLock::new(inner)),
            freed: Arc::default(),
            activity,
            reachable: AtomicBool::new(true),
            memory_room: Mutex::default(),
        };
        if let Some(activity) = &space.activity {
            warden::start(Arc::downgrade(&space.inner), activity.clone())
                .map_err(|e| Error::System("starting a thread", e))?;
        }
        let participant: Weak<ForkLock<Inner>> = Arc::downgrade(&space.inner);
        fork::take_part(participant)?;
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

    /// The session, which is rung when there is something to tell, or children to wait for.
    pub fn attend(&self, bell: Arc<Doorbell>) {
        self.inner.lock().bell = Some(bell);
    }

    /// What a block holds on to so that forks freeze its memory, whatever becomes of the space.
    pub(crate) fn keeper(&self) -> Arc<dyn Send + Sync> {
        self.inner.clone()
    }

    /// Notes a descriptor that Python keeps, so that a child closes its copy.
    pub fn lend(&self, fd: i32) {
        self.inner.lock().lent.insert(fd, Lent::note(fd));
    }

    /// Takes at most `limit` events out.
    pub fn drain(&self, limit: usize) -> Vec<JournalEvent> {
        self.inner.lock().journal.drain(limit)
    }

    /// Events in the journal.
    pub fn pending(&self) -> usize {
        self.inner.lock().journal.len()
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

    pub(crate) fn with_range<R>(
        &self,
        number: u32,
        run: Run,
        act: impl FnOnce(&mut View, &mut Journal) -> R,
    ) -> Result<R> {
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
        if let Some(activity) = &self.activity {
            activity.end(); // and with it the warden
        }
    }
}
