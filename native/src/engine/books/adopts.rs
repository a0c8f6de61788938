//! What clients are asked: pages to adopt, and the instructions that they take.

use crate::engine::books::Books;
use crate::engine::books::queues::Instructions;
use crate::engine::error::Result;
use crate::engine::ids::{MemberKey, TableId};
use crate::engine::tables::state::{ADOPT_QUEUED, ADOPT_SENT, MAPPED, State};
use crate::page::Run;

impl Books {
    /// Queues pages for adoption, but for those that are asked for already.
    pub fn ask_adopt(&mut self, key: MemberKey, id: TableId, run: Run) {
        let (table, member) = (self.tables.table_mut(id), self.members.get_mut(key));
        let mut at = run.first;
        while let Some(found) = table.next_unflagged(at, run.end(), ADOPT_QUEUED | ADOPT_SENT) {
            at = found.end();
            table.set_flag(found, ADOPT_QUEUED);
            member.adopts.add_run(id, found);
            member.asking += found.count;
            member.adopting += found.count;
        }
    }

    /// Pages are asked for no longer: they were released, or cannot be adopted now. How many were asked for.
    pub fn answer_adopt(&mut self, key: MemberKey, id: TableId, run: Run) -> usize {
        let (table, member) = (self.tables.table_mut(id), self.members.get_mut(key));
        let queued = table.clear_flag(run, ADOPT_QUEUED);
        let sent = table.clear_flag(run, ADOPT_SENT);
        member.asking -= queued;
        member.adopting -= queued + sent;
        if member.asking == 0 {
            member.adopts.clear();
        }
        queued + sent
    }

    /// A failed adopt is tried once more, unless there is no reason for it any more.
    pub fn ask_again(&mut self, id: TableId, run: Run) {
        let Some(key) = self.tables.get(id).map(|segment| segment.member) else { return };
        if !self.members.find(key).is_some_and(|member| member.listening) {
            return;
        }
        let wanted = if self.unmerging { MAPPED } else { State::Copied.bit() };
        self.ask_adopt_of(key, id, run, wanted);
    }

    fn ask_adopt_of(&mut self, key: MemberKey, id: TableId, run: Run, states: u16) {
        let mut at = run.first;
        while let Some(found) = self.tables.table(id).next_of(at, run.end(), states) {
            at = found.end();
            self.ask_adopt(key, id, found);
        }
    }

    /// On: queues every merged page for adoption and proposes nothing. Adopts that are queued when it ends are still made.
    pub fn unmerge(&mut self, on: bool) {
        self.unmerging = on;
        if !on {
            return;
        }
        let listening: Vec<MemberKey> =
            self.members.iter().filter(|(_, member)| member.listening).map(|(key, _)| key).collect();
        for key in listening {
            self.cancel_queued(key, None);
            for id in self.table_ids(key) {
                self.ask_adopt_of(key, id, self.tables.table(id).whole(), MAPPED);
            }
        }
    }

    /// Takes out what is queued for a client: merges of at most so many pages, and adopts of as many.
    pub fn take_instructions(&mut self, client: i64, pages: usize) -> Result<Instructions> {
        let key = self.members.key(client)?;
        let member = self.members.get_mut(key);
        let mut told = Instructions::default();
        for run in member.merges.take_runs(pages) {
            self.tables.table_mut(run.table).set_states(run.pages, State::Proposed);
            let segment = self.tables.segment(run.table).number;
            told.merges.push((segment, run.pages.first, run.pages.count, run.frame.map_or(-1, i64::from)));
        }
        for (id, run) in member.adopts.take_runs(pages) {
            let Some(segment) = self.tables.get(id).map(|segment| segment.number) else { continue };
            let table = self.tables.table_mut(id);
            let mut at = run.first;
            while let Some(found) = table.next_flagged(at, run.end(), ADOPT_QUEUED) {
                at = found.end();
                table.clear_flag(found, ADOPT_QUEUED);
                table.set_flag(found, ADOPT_SENT);
                member.asking -= found.count;
                told.adopts.push((segment, found.first, found.count));
            }
        }
        told.more = member.is_queued();
        Ok(told)
    }
}
