//! What clients report. Every event is checked against the books before it changes them: a client can only answer what
//! it was asked, and only about pages of its own. The journal that events are taken from is written under the client's
//! own lock, so an event that does not fit is a lie or a bug, never a race.

use crate::engine::books::Books;
use crate::engine::error::{Result, Violation};
use crate::engine::ids::{MemberKey, TableId};
use crate::engine::tables::segment::Segment;
use crate::engine::tables::state::{MAPPED, PENDING, READING, REFUSED, State, UNHELD, UNWANTED, WRITTEN};
use crate::page::{Run, bytes};
use crate::wire::{DISCARDED, DeclineReason, EventKind, GIVEN_BACK, MAY_BE_WRITTEN, ZERO_POOL};

/// Bytes that the books may take because of what is said of single pages, besides as many as these pages have: clients
/// may say what they like of memory that they do not have.
const CLAIMS: usize = 4 << 20;
/// So many pages of a frame that was there before the books count as memory.
const SHARING: usize = 16;

/// Passes after which a page is proposed, or asked for, once more, when the client could not do it.
const RETRY_PASSES: u64 = 8;

/// Events of one client, oldest first: columns of equal length, as the client wrote them.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "they are the fields of Events in memory.proto")]
pub struct Columns {
    pub kind: Vec<i64>,
    pub segment: Vec<i64>,
    pub first: Vec<i64>,
    pub count: Vec<i64>,
    pub pool: Vec<i64>,
    pub frame: Vec<i64>,
    pub detail: Vec<i64>,
}

impl Columns {
    fn are_equal(&self) -> bool {
        let others = [&self.segment, &self.first, &self.count, &self.pool, &self.frame, &self.detail];
        others.iter().all(|column| column.len() == self.kind.len())
    }
}

/// One event, of pages that exist.
struct Event {
    key: MemberKey,
    id: TableId,
    segment: i64,
    run: Run,
    pool: i64,
    frame: i64,
    detail: i64,
}

impl Event {
    fn misfit(&self) -> Violation {
        Violation::State(self.segment, self.run.first as i64, self.run.count as i64)
    }
}

impl Books {
    /// Books what a client reported. Events before one that does not fit are booked, it and the rest are not.
    pub fn apply(&mut self, client: i64, events: &Columns) -> Result<()> {
        let key = self.members.key(client)?;
        if !events.are_equal() {
            return Err(Violation::Columns.into());
        }
        if !self.members.get(key).listening {
            return Err(Violation::Departed.into());
        }
        let (mut claims, mut most) = (self.claims(), CLAIMS);
        for n in 0..events.kind.len() {
            let (segment, first, count) = (events.segment[n], events.first[n], events.count[n]);
            let id = self.members.get(key).segment(segment).ok_or(Violation::Segment(segment))?;
            let run = usize::try_from(first).ok().zip(usize::try_from(count).ok());
            let run = run.map(|(first, count)| Run { first, count });
            let run = run.filter(|run| run.fits(self.tables.table(id).pages()));
            let run = run.ok_or(Violation::Outside(segment, first, count))?;
            let (pool, frame, detail) = (events.pool[n], events.frame[n], events.detail[n]);
            let before = self.claims_of(key, id);
            let kind = EventKind::numbered(events.kind[n]).ok_or(Violation::Kind(events.kind[n]))?;
            self.book(kind, &Event { key, id, segment, run, pool, frame, detail })?;
            claims = (claims + self.claims_of(key, id)).saturating_sub(before);
            if claims > most {
                (claims, most) = self.check_claims()?;
            }
        }
        Ok(())
    }

    /// What the books take because of what is said of single pages, and what they may take; in bytes.
    fn check_claims(&mut self) -> std::result::Result<(usize, usize), Violation> {
        let most = CLAIMS + self.backing();
        if self.claims() > most {
            self.tables.compact();
        }
        let claims = self.claims();
        if claims > most { Err(Violation::Claims(claims, most)) } else { Ok((claims, most)) }
    }

    fn claims(&self) -> usize {
        let members: usize = self.members.iter().map(|(_, member)| member.claims()).sum();
        self.tables.claims() + self.calendar.claims() + members
    }

    /// The part of `claims` that an event may change.
    fn claims_of(&self, key: MemberKey, id: TableId) -> usize {
        self.tables.table(id).claims() + self.calendar.claims() + self.members.get(key).claims()
    }

    /// The memory that the books are about, in bytes: of segments, of frames (which many pages may share), and what was
    /// merged of it.
    fn backing(&self) -> usize {
        let pages = |segment: &Segment| bytes(segment.table.genuine()) + segment.allocated();
        let segments: usize = self.tables.iter().map(|(_, segment)| pages(segment)).sum();
        segments + SHARING * bytes(self.frames.shared)
    }

    fn book(&mut self, kind: EventKind, event: &Event) -> std::result::Result<(), Violation> {
        match kind {
            EventKind::Merged => self.book_merged(event),
            EventKind::Declined => self.book_declined(event),
            EventKind::Copied => self.book_copied(event),
            EventKind::Released => self.book_released(event),
            EventKind::NotAdopted => {
                self.book_not_adopted(event);
                Ok(())
            }
            EventKind::Excluded => {
                self.book_excluded(event);
                Ok(())
            }
            EventKind::Included => {
                self.book_included(event);
                Ok(())
            }
            EventKind::Written => self.book_written(event),
            EventKind::Resumed => self.book_resumed(event),
        }
    }

    fn expect_states(&self, event: &Event, states: u16) -> std::result::Result<(), Violation> {
        if self.tables.table(event.id).only(event.run, states) { Ok(()) } else { Err(event.misfit()) }
    }

    /// Unless exactly this was proposed, and taken, it is a violation.
    fn expect_proposal(&self, event: &Event) -> std::result::Result<(), Violation> {
        self.expect_states(event, State::Proposed.bit())?;
        let table = self.tables.table(event.id);
        let right =
            (event.run.first..event.run.end()).zip(event.frame..).all(|(page, frame)| match table.frame(page) {
                Some(held) => event.pool == self.pool && i64::from(held) == frame,
                None => event.pool == i64::from(ZERO_POOL),
            });
        if right { Ok(()) } else { Err(Violation::Frames(event.run.first as i64, event.run.count as i64)) }
    }

    fn book_merged(&mut self, event: &Event) -> std::result::Result<(), Violation> {
        self.expect_proposal(event)?;
        self.commit(event.id, event.run);
        self.members.get_mut(event.key).proposed -= event.run.count;
        self.merged += event.run.count as u64;
        if self.unmerging {
            self.ask_adopt(event.key, event.id, event.run);
        }
        Ok(())
    }

    fn book_declined(&mut self, event: &Event) -> std::result::Result<(), Violation> {
        self.expect_proposal(event)?;
        let (id, run) = (event.id, event.run);
        self.cancel(id, run);
        self.members.get_mut(event.key).proposed -= run.count;
        self.declined += run.count as u64;
        match DeclineReason::numbered(event.detail) {
            Some(DeclineReason::Changed) if event.pool == i64::from(ZERO_POOL) => self.leave_zeros(id, run),
            // As it will be reported, too late for this proposal.
            Some(DeclineReason::Changed) if self.tables.table(id).tracked => {
                self.tables.table_mut(id).set_flag(run, WRITTEN)
            }
            Some(DeclineReason::Changed) => self.tables.table_mut(id).forget_digests(run),
            Some(DeclineReason::Budget) => {
                self.rest(id, run, State::OverBudget, RETRY_PASSES);
                self.members.get_mut(event.key).add_over_budget(id, run);
            }
            Some(DeclineReason::Pinned) => self.rest(id, run, State::Pinned, RETRY_PASSES),
            Some(DeclineReason::Failed) => self.rest(id, run, State::Failed, RETRY_PASSES),
            Some(DeclineReason::Forked) => self.rest(id, run, State::Forked, RETRY_PASSES),
            _ => self.rest(id, run, State::Refused, RETRY_PASSES),
        }
        Ok(())
    }

    /// Pages that read as zeros are not to be had: memory that is reserved and was never written, as a rule. What was
    /// written is reported, or found to be of another content.
    fn leave_zeros(&mut self, id: TableId, run: Run) {
        if self.tables.table(id).tracked {
            self.tables.table_mut(id).clear_flag(run, PENDING);
        } else {
            self.rest(id, run, State::Waiting, RETRY_PASSES);
        }
    }

    fn book_copied(&mut self, event: &Event) -> std::result::Result<(), Violation> {
        self.expect_states(event, State::Merged.bit() | State::Zero.bit())?;
        let table = self.tables.table_mut(event.id);
        table.set_states(event.run, State::Copied);
        if self.options.smart_scan {
            table.count_breaks(event.run);
        }
        self.broken += event.run.count as u64;
        self.ask_adopt(event.key, event.id, event.run);
        Ok(())
    }

    fn book_released(&mut self, event: &Event) -> std::result::Result<(), Violation> {
        self.expect_states(event, MAPPED)?;
        let (key, id, run) = (event.key, event.id, event.run);
        self.answer_adopt(key, id, run);
        let mut broken = Vec::new();
        let mut at = run.first;
        while let Some(found) = self.tables.table(id).next_of(at, run.end(), State::Copied.bit()) {
            at = found.end();
            broken.push(found);
        }
        self.drop_references(id, run);
        if event.detail == i64::from(DISCARDED) {
            self.tables.table_mut(id).forget_breaks(run); // what comes here next has another story
        } else if self.options.smart_scan {
            for found in broken {
                let mut at = found.first;
                while at < found.end() {
                    let (alike, breaks) = self.tables.table(id).next_breaks(at, found.end());
                    at = alike.end();
                    self.rest(id, alike, State::Waiting, 1 << breaks);
                }
            }
        }
        for (other, declined) in self.members.get_mut(key).take_over_budget() {
            self.wake(other, declined, State::OverBudget); // there is room for mappings now
        }
        Ok(())
    }

    fn book_not_adopted(&mut self, event: &Event) {
        // If nobody asked, there is nothing to ask for again.
        if self.answer_adopt(event.key, event.id, event.run) > 0 {
            self.calendar.schedule(event.id, event.run, State::Copied, RETRY_PASSES);
        }
    }

    fn book_excluded(&mut self, event: &Event) {
        self.unstable.remove(&mut self.tables, event.id, event.run);
        self.tables.table_mut(event.id).set_flag(event.run, UNWANTED);
        self.own_those(event, UNHELD);
    }

    fn book_included(&mut self, event: &Event) {
        self.tables.table_mut(event.id).clear_flag(event.run, UNWANTED);
        self.own_those(event, REFUSED | State::Excluded.bit());
    }

    fn own_those(&mut self, event: &Event, states: u16) {
        let table = self.tables.table_mut(event.id);
        let mut at = event.run.first;
        while let Some(found) = table.next_of(at, event.run.end(), states) {
            at = found.end();
            table.own(found);
        }
    }

    fn book_written(&mut self, event: &Event) -> std::result::Result<(), Violation> {
        if event.detail == i64::from(GIVEN_BACK) {
            self.book_given_back(event);
            return Ok(());
        }
        if !self.tables.table(event.id).tracked {
            return Err(Violation::Untracked);
        }
        self.unstable.remove(&mut self.tables, event.id, event.run);
        let flag = if event.detail == i64::from(MAY_BE_WRITTEN) { PENDING } else { WRITTEN };
        self.tables.table_mut(event.id).set_flag(event.run, flag);
        Ok(())
    }

    /// What comes here next has another story.
    fn book_given_back(&mut self, event: &Event) {
        self.unstable.remove(&mut self.tables, event.id, event.run);
        self.own_those(event, REFUSED | State::Waiting.bit());
        let table = self.tables.table_mut(event.id);
        table.forget_breaks(event.run);
        for flag in [WRITTEN, PENDING, READING] {
            table.clear_flag(event.run, flag);
        }
    }

    /// A client has come back from before these books, and maps frames of the pool that was taken over.
    fn book_resumed(&mut self, event: &Event) -> std::result::Result<(), Violation> {
        self.expect_states(event, State::Owned.bit())?;
        let misfit = || Violation::Resumed(event.run.first as i64, event.run.count as i64, event.frame);
        let frames = event.frame..event.frame.checked_add(event.run.count as i64).ok_or_else(misfit)?;
        let is_used = |frame: i64| u32::try_from(frame).is_ok_and(|frame| self.frames.is_used(frame));
        if event.pool != i64::from(ZERO_POOL) && (event.pool != self.pool || !frames.clone().all(is_used)) {
            return Err(misfit());
        }
        self.unstable.remove(&mut self.tables, event.id, event.run);
        let first = (event.pool != i64::from(ZERO_POOL)).then_some(event.frame as u32);
        self.tables.table_mut(event.id).resume(event.run, first);
        if first.is_some() {
            frames.for_each(|frame| self.frames.resume(frame as u32));
        }
        if self.unmerging {
            self.ask_adopt(event.key, event.id, event.run);
        }
        Ok(())
    }
}
