//! Recounts everything and says the first difference. For tests and audits.

use crate::engine::books::Books;
use crate::engine::engine::Engine;
use crate::engine::tables::state::{ADOPT_QUEUED, ADOPT_SENT, HELD, LISTED, MAPPED, State};
use std::collections::{BTreeSet, HashMap};

type Checked = Result<(), String>;

fn expect(right: bool, text: &str) -> Checked {
    if right { Ok(()) } else { Err(text.into()) }
}

impl Engine {
    /// See the head of this file.
    pub fn check(&self) -> Checked {
        self.books.check()?;
        let untracked = self.books.unstable.len() - self.books.unstable.tracked();
        expect(self.scan.founded.is_empty() && self.scan.proposals.is_empty(), "a chunk was not concluded")?;
        match self.scan.pass {
            Some(pass) => expect(untracked as u64 <= pass.unshared, "unshared pages miscounted"),
            None => expect(untracked == 0 && self.scan.ahead.tables.is_empty(), "something is left of a finished pass"),
        }
    }
}

impl Books {
    fn check(&self) -> Checked {
        let mut users: HashMap<u32, (u32, u32)> = HashMap::new();
        let mut known = BTreeSet::new();
        for (key, member) in self.members.iter() {
            let (mut asking, mut adopting, mut queued, mut proposed) = (0, 0, 0, 0);
            for &id in &member.tables {
                let segment = self.tables.get(id).ok_or("tables and segments differ")?;
                let table = &segment.table;
                expect(segment.member == key && member.segment(segment.number) == Some(id), "a segment is whose?")?;
                table.check()?;
                known.insert(id);
                for page in 0..table.pages() {
                    let state = table.state(page);
                    if state.bit() & HELD != 0
                        && let Some(frame) = table.frame(page)
                    {
                        let (references, reservations) = users.entry(frame).or_default();
                        *(if state.bit() & MAPPED != 0 { references } else { reservations }) += 1;
                    }
                }
                asking += table.count_flag(ADOPT_QUEUED);
                adopting += table.count_flag(ADOPT_QUEUED | ADOPT_SENT);
                queued += table.count(State::Queued);
                proposed += table.count(State::Queued) + table.count(State::Proposed);
                expect(member.listening || table.count_flag(LISTED) == 0, "a departed client's page is listed")?;
            }
            expect(member.proposed == proposed, "proposals miscounted")?;
            expect((member.asking, member.adopting) == (asking, adopting), "adopts miscounted")?;
            expect(member.listening || (proposed, adopting) == (0, 0), "something is asked of a departed client")?;
            member.merges.check()?;
            let mut in_queue = 0;
            for run in member.merges.iter() {
                let table = self.tables.table(run.table);
                in_queue += run.pages.count;
                for page in run.pages.first..run.pages.end() {
                    let right = table.state(page) == State::Queued && table.frame(page) == run.frame_of(page);
                    expect(right, "a wrong entry in the queue")?;
                }
            }
            expect(in_queue == queued, "the queue and the tables differ")?;
        }
        self.frames.check(users)?;
        self.unstable.check(&self.tables)?;
        expect(self.tables.iter().all(|(id, _)| known.contains(&id)), "a segment that is nobody's")
    }
}
