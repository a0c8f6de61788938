//! A view: the address range over one segment, and the books about it.

use crate::arena::memory::Memory;
use crate::faults;
use crate::page::{Run, bytes, pieces};
use crate::space::books::agenda::Agenda;
use crate::space::books::journal::{Event, Journal};
use crate::space::books::traces::Traces;
use crate::space::books::view_table::ViewTable;
use crate::sys::shm;
use crate::wire::EventKind;
use std::os::fd::AsFd;
use std::sync::Arc;

/// A view.
pub struct View {
    /// The range.
    pub memory: Arc<Memory>,
    /// What each page maps.
    pub table: ViewTable,
    /// Memory of the parent's, which this process has taken over.
    pub inherited: bool,
    /// A forked child may map the same segment and frames: nothing is merged, adopted, punched or released.
    pub shared: bool,
    /// The first fork whose child has inherited it.
    pub since: u64,
    /// A segment page that is not mapped may hold old bytes (punching it failed): adopting zeros must write them.
    pub stale: bool,
    /// A pin kept pages from being merged or adopted: when it ends, the server is told.
    pub held_back: bool,
    /// When to look for written pages next.
    pub agenda: Agenda,
    /// What is known of writes to it, and of what was reported.
    pub traces: Traces,
    /// No page before this one is frozen.
    pub thawed: usize,
    /// During a fork: runs that were not frozen, and their bytes, of which the child makes memory of its own.
    pub copies: Vec<(Run, Vec<u8>)>,
    /// During a fork: runs that the child does not get, for lack of memory to copy them.
    pub withheld: Vec<Run>,
}

impl View {
    /// A view of a segment that nothing of was merged, from the fork with that number on.
    pub fn new(memory: Memory, pages: usize, since: u64) -> View {
        View::over(Arc::new(memory), ViewTable::new(pages), since)
    }

    /// A view of memory that maps what a table says.
    pub fn over(memory: Arc<Memory>, table: ViewTable, since: u64) -> View {
        let pages = table.pages();
        View {
            memory,
            table,
            inherited: false,
            shared: false,
            since,
            stale: false,
            held_back: false,
            agenda: Agenda::default(),
            traces: Traces::new(pages),
            thawed: 0,
            copies: Vec::new(),
            withheld: Vec::new(),
        }
    }

    /// The address of a page.
    pub fn address(&self, page: usize) -> usize {
        self.memory.range.at(bytes(page))
    }

    /// To be called when replacing the mapping of a run failed, while its segment pages hold its bytes.
    ///
    /// As a rule the kernel refuses before it changes anything, and the old mapping is there: false. If it failed after
    /// it had unmapped the old range, the range is mapped to the segment, which has the same bytes: true.
    pub fn ensure_mapped(&self, run: Run) -> bool {
        let range = &self.memory.range;
        let (offset, length) = (bytes(run.first), bytes(run.count));
        for _ in 0..1000 {
            if range.is_mapped(offset, length) {
                return false;
            }
            if range.map_shared(offset, length, self.memory.segment().as_fd()).is_ok() {
                return true;
            }
            std::thread::yield_now();
        }
        // A thread that touches the gap would crash, or write into a mapping that somebody else made there.
        eprintln!(
            "pagefold: the kernel unmapped memory and refuses to map it again; ending the process before bytes are lost"
        );
        std::process::abort();
    }

    /// Tells the server that pages may be merged again that could not for a while, so that it need not find out.
    pub fn include(&self, journal: &mut Journal, number: u32, run: Run) {
        let may = |page| !self.table.is_excluded(page) && !self.table.is_pinned(page);
        pieces(run, may, |part, may| {
            if may {
                journal.push(Event::new(EventKind::Included, number, part));
            }
        });
    }

    /// Gives a run's segment pages back, which nobody maps any more.
    pub fn punch(&mut self, run: Run) {
        let punched = faults::check("view.punch")
            .and_then(|()| shm::punch(self.memory.segment().as_fd(), bytes(run.first), bytes(run.count)));
        self.stale |= punched.is_err();
    }
}
