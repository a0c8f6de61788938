//! The end of a session, seen from both sides: by its thread, which is asked to end, and by the threads that wait for that.
//!
//! A client holds on to its session by a lifeline, and when that is let go of, on whatever way, the session ends by itself:
//! at once, or when the last of its memory goes.

use crate::sys::atfork;
use crate::sys::doorbell::Doorbell;
use crate::sys::event::Event;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// See the head of this file. In a forked child it is the parent's, and nothing is done.
pub struct Ending {
    bell: Arc<Doorbell>,
    process: u32,
    /// It is to end.
    pub stopping: Event,
    /// It is to end when no memory of it is in use any more: nobody has its client.
    pub outlives: AtomicBool,
    /// It has said goodbye, and has nothing left.
    pub finished: Event,
}

impl Ending {
    /// Of a session that is rung by that bell.
    pub fn new(bell: Arc<Doorbell>) -> Ending {
        Ending {
            bell,
            process: atfork::process(),
            stopping: Event::default(),
            outlives: AtomicBool::new(false),
            finished: Event::default(),
        }
    }

    /// Whether this process is the session's.
    pub fn is_here(&self) -> bool {
        self.process == atfork::process()
    }

    /// Asks it to go on for as long as memory is in use.
    pub fn outlive(&self) {
        if self.is_here() {
            self.outlives.store(true, Ordering::Release);
            self.bell.ring();
        }
    }

    /// Asks it to end. Takes no lock, and waits for nothing.
    pub fn stop(&self) {
        if self.is_here() {
            self.stopping.set();
            self.bell.ring();
        }
    }
}
