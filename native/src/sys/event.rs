//! Something that happens once and that threads wait for. One futex word: no lock, so a fork finds nothing half done.

use super::forklock::{EVERYBODY, wait, wake};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Why waiting ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// It has happened.
    Set,
    /// It has not, in all that time.
    TimedOut,
    /// A signal was handled by this thread: it may have to see to that, and goes on waiting.
    Interrupted,
}

/// See the head of this file.
#[derive(Default)]
pub struct Event {
    word: AtomicU32,
}

impl Event {
    /// It has happened.
    pub fn set(&self) {
        self.word.store(1, Ordering::Release);
        wake(&self.word, EVERYBODY);
    }

    /// It is to happen again.
    pub fn clear(&self) {
        self.word.store(0, Ordering::Release);
    }

    /// Whether it has happened.
    pub fn is_set(&self) -> bool {
        self.word.load(Ordering::Acquire) != 0
    }

    /// Waits for it.
    pub fn wait(&self, timeout: Duration) -> Waited {
        let end = Instant::now() + timeout;
        let left = |now: Instant| end.saturating_duration_since(now);
        let changed = self.is_set() || wait(&self.word, 0, left(Instant::now()));
        if self.is_set() {
            Waited::Set
        } else if changed && !left(Instant::now()).is_zero() {
            Waited::Interrupted
        } else {
            Waited::TimedOut
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn it_is_waited_for_and_happens() {
        let event = Arc::new(Event::default());
        assert_eq!(event.wait(Duration::ZERO), Waited::TimedOut);
        assert_eq!(event.wait(Duration::from_millis(2)), Waited::TimedOut);
        let other = event.clone();
        let thread = std::thread::spawn(move || while other.wait(Duration::from_secs(60)) != Waited::Set {});
        event.set();
        thread.join().unwrap();
        assert_eq!(event.wait(Duration::ZERO), Waited::Set);
        event.clear();
        assert!(!event.is_set());
    }
}
