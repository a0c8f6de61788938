//! The books of a domain: clients, their segments' page tables, and who holds which frame.
//!
//! Pages that must rest (they keep breaking, or the client declined them) leave the scan by their state, and stand in
//! the calendar under the time at which they come back. What events do is in `events`, adopts are in `adopts`, the
//! scan is in `scan`.

mod adopts;
mod calendar;
pub mod events;
pub mod members;
pub mod queues;

use crate::engine::books::calendar::Calendar;
use crate::engine::books::members::Members;
use crate::engine::books::queues::Merge;
use crate::engine::error::{Error, Result};
use crate::engine::frames::Frames;
use crate::engine::frames::unstable::Unstable;
use crate::engine::ids::{MemberKey, TableId};
use crate::engine::report::{Left, Options, SegmentCounts};
use crate::engine::tables::Tables;
use crate::engine::tables::segment::Segment;
use crate::engine::tables::state::{LISTED, MAPPED, PENDING, State};
use crate::engine::tables::table::PageTable;
use crate::page::Run;
use std::os::fd::OwnedFd;

/// See the head of this file.
pub struct Books {
    pub members: Members,
    pub tables: Tables,
    pub unstable: Unstable,
    pub frames: Frames,
    pub calendar: Calendar,
    pub options: Options,
    /// The digest of a page of zeros.
    pub zero_digest: u64,
    /// The pool's number in the protocol.
    pub pool: i64,
    pub unmerging: bool,
    pub merged: u64,
    pub broken: u64,
    pub declined: u64,
}

impl Books {
    pub fn new(frames: Frames, options: Options, zero_digest: u64, pool: u16) -> Books {
        Books {
            members: Members::default(),
            tables: Tables::default(),
            unstable: Unstable::default(),
            frames,
            calendar: Calendar::default(),
            options,
            zero_digest,
            pool: pool.into(),
            unmerging: false,
            merged: 0,
            broken: 0,
            declined: 0,
        }
    }

    // Clients and segments

    /// Takes over a descriptor that is open for reading. The scan comes to the segment in the next pass.
    pub fn add_segment(&mut self, client: i64, number: i64, fd: OwnedFd, pages: usize, tracked: bool) -> Result<()> {
        let key = self.members.key(client)?;
        let member = self.members.get_mut(key);
        if member.segment(number).is_some() || !member.listening || pages == 0 {
            return Err(Error::SegmentRefused(client, number));
        }
        let base = self.tables.place_for(pages)?;
        let table = PageTable::new(pages, tracked)?;
        let id = self.tables.add(Segment::new(key, number, base, fd, table));
        member.add_segment(number, id);
        Ok(())
    }

    /// False, and nothing is done, if one of its pages still maps a frame or has a proposal outstanding.
    pub fn drop_segment(&mut self, client: i64, number: i64) -> Result<bool> {
        let key = self.members.key(client)?;
        let id = self.members.get(key).segment(number).ok_or(Error::NoSegment(number))?;
        let table = self.tables.table(id);
        if [State::Proposed, State::Merged, State::Zero, State::Copied].iter().any(|state| table.count(*state) > 0) {
            return Ok(false);
        }
        self.cancel_queued(key, Some(id));
        self.members.get_mut(key).remove_segment(number);
        self.forget(id);
        Ok(true)
    }

    /// The client will not answer again. Its proposals outstanding count as if they were carried out.
    pub fn depart_client(&mut self, client: i64) -> Result<()> {
        let key = self.members.key(client)?;
        if !self.members.get(key).listening {
            return Ok(());
        }
        self.cancel_queued(key, None);
        for id in self.table_ids(key) {
            let whole = self.tables.table(id).whole();
            self.unstable.remove(&mut self.tables, id, whole);
            let mut at = 0;
            while let Some(run) = self.tables.table(id).next_of(at, whole.end(), State::Proposed.bit()) {
                at = run.end();
                self.commit(id, run);
            }
            self.answer_adopt(key, id, whole);
        }
        let member = self.members.get_mut(key);
        member.proposed = 0;
        member.listening = false;
        Ok(())
    }

    /// The client's whole process family is dead.
    pub fn remove_client(&mut self, client: i64) -> Result<()> {
        self.depart_client(client)?;
        let key = self.members.key(client)?;
        let tables = self.members.remove(key).tables;
        for id in tables {
            let end = self.tables.table(id).pages();
            let mut at = 0;
            while let Some(run) = self.tables.table(id).next_of(at, end, MAPPED) {
                at = run.end();
                self.drop_references(id, run);
            }
            self.forget(id);
        }
        Ok(())
    }

    /// Whose a segment is.
    pub fn member_of(&self, id: TableId) -> MemberKey {
        self.tables.segment(id).member
    }

    /// Segments of clients that may answer, in the order in which they came.
    pub fn scannable(&self) -> Vec<TableId> {
        let listening = self.members.iter().filter(|(_, member)| member.listening);
        listening.flat_map(|(_, member)| member.tables.iter().copied()).collect()
    }

    pub fn can_be_scanned(&self, id: TableId) -> bool {
        self.tables.get(id).is_some_and(|segment| self.members.get(segment.member).listening)
    }

    pub fn table_ids(&self, key: MemberKey) -> Vec<TableId> {
        self.members.get(key).tables.iter().copied().collect()
    }

    fn forget(&mut self, id: TableId) {
        let whole = self.tables.table(id).whole();
        self.unstable.remove(&mut self.tables, id, whole);
        self.tables.remove(id);
    }

    // Proposals and references

    /// M8: proposals were carried out.
    pub fn commit(&mut self, id: TableId, run: Run) {
        let table = self.tables.table_mut(id);
        for page in run.first..run.end() {
            match table.frame(page) {
                Some(frame) => {
                    table.set_state(page, State::Merged);
                    self.frames.commit(frame);
                }
                None => table.set_state(page, State::Zero),
            }
        }
    }

    /// Proposals came to nothing.
    pub fn cancel(&mut self, id: TableId, run: Run) {
        self.let_go(id, run, Frames::cancel);
    }

    /// I3: the mappings are proven gone.
    pub fn drop_references(&mut self, id: TableId, run: Run) {
        self.let_go(id, run, Frames::drop_reference);
    }

    fn let_go(&mut self, id: TableId, run: Run, give_up: fn(&mut Frames, u32)) {
        for page in run.first..run.end() {
            let table = self.tables.table_mut(id);
            match table.frame(page) {
                None => table.let_go(page, self.zero_digest),
                Some(frame) => {
                    let digest = self.frames.digest(frame);
                    table.let_go(page, digest);
                    give_up(&mut self.frames, frame);
                    self.offer(frame, digest);
                }
            }
        }
        self.tables.table_mut(id).own(run);
    }

    /// A frame was let go of. If it had been full, there is room now for a page that may be listed for lack of it.
    fn offer(&mut self, frame: u32, digest: u64) {
        if self.frames.users(frame) + 1 != self.options.max_page_sharing {
            return;
        }
        if let Some((id, page)) = self.unstable.find(&self.tables, digest)
            && self.tables.table(id).tracked
        {
            self.unstable.read_again(&mut self.tables, id, Run { first: page, count: 1 });
        }
    }

    /// Everybody who mapped frames of a pool that was taken over has said so, or is gone: what nobody claimed is released.
    pub fn release_unclaimed(&mut self) {
        for frame in self.frames.take_unclaimed() {
            let digest = self.frames.digest(frame);
            self.frames.cancel(frame);
            self.offer(frame, digest);
        }
    }

    /// Takes back what was proposed and not yet taken, for one segment or all of a client's.
    pub fn cancel_queued(&mut self, key: MemberKey, id: Option<TableId>) {
        let removed: Vec<Merge> = self.members.get_mut(key).merges.remove(id);
        for run in removed {
            self.cancel(run.table, run.pages);
            self.members.get_mut(key).proposed -= run.pages.count;
        }
    }

    /// How many more pages may be proposed to a client.
    pub fn room(&self, key: MemberKey) -> usize {
        self.options.max_outstanding.saturating_sub(self.members.get(key).proposed)
    }

    // Rest

    /// Keeps owned pages out of the scan for some passes. Those that are excluded stay that.
    pub fn rest(&mut self, id: TableId, run: Run, state: State, passes: u64) {
        let table = self.tables.table_mut(id);
        let mut at = run.first;
        while let Some(owned) = table.next_of(at, run.end(), State::Owned.bit()) {
            at = owned.end();
            table.set_states(owned, state);
        }
        self.calendar.schedule(id, run, state, passes);
    }

    /// Ends a rest, for those pages of a run that are still in the state in which it began.
    ///
    /// OWNED pages of tracked segments found no frame, and are to be read once more.
    pub fn wake(&mut self, id: TableId, run: Run, state: State) {
        if self.tables.get(id).is_none() {
            return;
        }
        let table = self.tables.table_mut(id);
        let mut at = run.first;
        while let Some(found) = table.next_of(at, run.end(), state.bit()) {
            at = found.end();
            table.own(found);
        }
    }

    /// A pass is over: brings back the pages that have rested.
    pub fn advance_clock(&mut self) {
        for (id, run, state) in self.calendar.advance() {
            if state == State::Copied {
                self.ask_again(id, run);
            } else {
                self.wake(id, run, state);
            }
        }
    }

    /// A tracked page is to be read once more in the next pass.
    pub fn set_pending(&mut self, id: TableId, page: usize) {
        self.tables.table_mut(id).set_flag(Run { first: page, count: 1 }, PENDING);
    }

    // Counts

    /// One segment's pages by state.
    pub fn segment_counts(&self, client: i64, number: i64) -> Result<SegmentCounts> {
        let member = self.members.get(self.members.key(client)?);
        let table = self.tables.table(member.segment(number).ok_or(Error::NoSegment(number))?);
        Ok(SegmentCounts {
            merged: table.count(State::Merged),
            zero: table.count(State::Zero),
            copied: table.count(State::Copied),
            proposed: table.count(State::Queued) + table.count(State::Proposed),
        })
    }

    /// Pages of the client that map frames (copies not counted: they read their own bytes), and pages proposed to it.
    pub fn merged_pages(&self, client: i64) -> Result<(usize, usize)> {
        let member = self.members.get(self.members.key(client)?);
        let tables = member.tables.iter().map(|id| self.tables.table(*id));
        Ok((tables.map(|t| t.count(State::Merged) + t.count(State::Zero)).sum(), member.proposed))
    }

    /// Pages of the client that were to be merged and are not, by what keeps them.
    pub fn left(&self, client: i64) -> Result<Left> {
        let member = self.members.get(self.members.key(client)?);
        let count = |state: State| member.tables.iter().map(|id| self.tables.table(*id).count(state)).sum();
        Ok(Left {
            over_budget: count(State::OverBudget),
            refused: count(State::Refused),
            pinned: count(State::Pinned),
            failed: count(State::Failed),
            forked: count(State::Forked),
            copied: count(State::Copied),
            waiting: count(State::Waiting),
        })
    }

    /// Pages of the client that are known and like no other, or not wanted.
    pub fn apart(&self, client: i64) -> Result<usize> {
        let member = self.members.get(self.members.key(client)?);
        let tables = member.tables.iter().map(|id| self.tables.table(*id));
        Ok(tables.map(|table| table.count(State::Excluded) + table.count_flag(LISTED)).sum())
    }

    /// Tracked pages that became due for reading after the pass began.
    pub fn count_due(&self) -> usize {
        let tables = self.scannable().into_iter().map(|id| self.tables.table(id));
        tables.filter(|table| table.tracked).map(PageTable::count_due).sum()
    }

    /// Clients for which something is queued.
    pub fn queued(&self) -> Vec<i64> {
        self.members.iter().filter(|(_, member)| member.is_queued()).map(|(_, member)| member.number).collect()
    }

    /// Pages proposed or to be adopted, of which the answer is not in.
    pub fn outstanding(&self) -> usize {
        self.members.iter().map(|(_, member)| member.proposed + member.adopting).sum()
    }
}
