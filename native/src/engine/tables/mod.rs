//! All segments of a domain, by numbers that are never used again.
//!
//! So a number that is kept (in a queue, in the calendar) after its segment was dropped finds nothing.

mod column;
mod places;
pub mod segment;
pub mod state;
pub mod table;
mod values;

use crate::engine::error::{Error, Result};
use crate::engine::ids::TableId;
use crate::engine::tables::places::Places;
use crate::engine::tables::segment::Segment;
use crate::engine::tables::state::State;
use crate::engine::tables::table::PageTable;
use std::collections::BTreeMap;

/// See the head of this file.
#[derive(Default)]
pub struct Tables {
    segments: BTreeMap<TableId, Segment>,
    places: Places,
    made: u64,
}

impl Tables {
    /// A range of places for a segment of so many pages.
    pub fn place_for(&self, pages: usize) -> Result<u32> {
        self.places.find(pages).ok_or(Error::NoPlace)
    }

    pub fn add(&mut self, segment: Segment) -> TableId {
        self.made += 1;
        let id = TableId(self.made);
        self.places.take_places(segment.base, segment.table.pages(), id);
        self.segments.insert(id, segment);
        id
    }

    /// Forgets a segment, of which nothing is listed any more, and closes its descriptor.
    pub fn remove(&mut self, id: TableId) {
        if let Some(segment) = self.segments.remove(&id) {
            self.places.give_back(segment.base);
        }
    }

    pub fn get(&self, id: TableId) -> Option<&Segment> {
        self.segments.get(&id)
    }

    /// A segment that is there.
    pub fn segment(&self, id: TableId) -> &Segment {
        &self.segments[&id]
    }

    /// The table of a segment that is there.
    pub fn table(&self, id: TableId) -> &PageTable {
        &self.segments[&id].table
    }

    /// The table of a segment that is there.
    pub fn table_mut(&mut self, id: TableId) -> &mut PageTable {
        &mut self.segments.get_mut(&id).expect("the segment is there").table
    }

    /// What all columns take because pages differ, or something is known of them, in bytes.
    pub fn claims(&self) -> usize {
        self.segments.values().map(|segment| segment.table.claims()).sum()
    }

    /// Lets go of what can be done without.
    pub fn compact(&mut self) {
        self.segments.values_mut().for_each(|segment| segment.table.compact());
    }

    pub fn locate(&self, place: u32) -> (TableId, usize) {
        self.places.locate(place)
    }

    pub fn iter(&self) -> impl Iterator<Item = (TableId, &Segment)> {
        self.segments.iter().map(|(id, segment)| (*id, segment))
    }

    pub fn ids(&self) -> Vec<TableId> {
        self.segments.keys().copied().collect()
    }

    /// Pages in a state.
    pub fn count(&self, state: State) -> usize {
        self.segments.values().map(|segment| segment.table.count(state)).sum()
    }

    /// Pages in a set of states.
    pub fn count_in(&self, states: u16) -> usize {
        State::ALL.into_iter().filter(|state| states & state.bit() != 0).map(|state| self.count(state)).sum()
    }
}
