//! What the server is to be told of segments: which there are, and which there are no more.

use crate::arena::Announced;
use crate::space::Space;

impl Space {
    /// Takes out the segments that were added since the last call: they are to be announced.
    pub fn added(&self) -> Vec<Announced> {
        std::mem::take(&mut self.inner.lock().arena.added)
    }

    /// Takes out those that were dropped. The events about them are in the journal.
    pub fn dropped(&self) -> Vec<Announced> {
        std::mem::take(&mut self.inner.lock().arena.dropped)
    }

    /// Whether there are segments to take out: that were added, and that were dropped.
    pub fn news(&self) -> (bool, bool) {
        let inner = self.inner.lock();
        (!inner.arena.added.is_empty(), !inner.arena.dropped.is_empty())
    }

    /// All segments that were taken out are announced.
    pub fn announced(&self) {
        let inner = self.inner.lock();
        if inner.arena.added.is_empty() {
            inner.arena.announced.set();
        }
    }

    /// Lets go of a segment's name and descriptor. Its memory goes with its last mapping.
    pub fn discard_object(&self, number: u32) {
        if !self.inner.is_held_here() {
            self.inner.lock().arena.objects.remove(&number);
        }
    }

    /// Has the session look, if there is something to tell.
    pub(crate) fn ring_if_news(&self) {
        let inner = self.inner.lock();
        if let Some(bell) = &inner.bell
            && !(inner.arena.added.is_empty() && inner.arena.dropped.is_empty())
        {
            bell.ring();
        }
    }
}
