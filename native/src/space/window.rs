//! The window: the short time in which writes to a few pages are held.
//!
//! ```text
//!   open    register the span, protect it          writers sleep from here (M3)
//!     ...   compare, map                           (M4, M5)
//!   end     unregister, wake                       (M6)
//! ```
//!
//! What was mapped anew inside has lost its registration with its mapping; if that is all, nothing is left to unregister.
//!
//! It ends when it is dropped, so on every path, panics included (I8); should its thread be killed, the warden sees to it.
//! If the kernel refuses to end it, the userfaultfd is closed, which wakes everybody.

use crate::error::{Error, Result};
use crate::faults;
use crate::space::books::histogram::Histogram;
use crate::space::warden::WindowActivity;
use crate::sys::sched::thread_time;
use crate::sys::uffd::{FEATURE_WP, FEATURE_WP_SHMEM, FEATURE_WP_UNPOPULATED, Scope, Uffd};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How writes are held, and what that cost so far.
pub struct Barrier {
    scope: Scope,
    wanted: u64,
    uffd: Option<Uffd>,
    bound: Duration,
    lasted: Histogram,
    over_bound: u64,
    longest_running: Duration,
    open: bool, // a window is
    activity: Arc<WindowActivity>,
}

impl Barrier {
    /// Opens the userfaultfd. `unpopulated` false leaves a newer kernel's feature unused.
    pub fn open(scope: Scope, unpopulated: bool, bound: Duration) -> Result<Barrier> {
        let wanted = FEATURE_WP | FEATURE_WP_SHMEM | if unpopulated { FEATURE_WP_UNPOPULATED } else { 0 };
        let uffd = open(scope, wanted)?;
        let (lasted, longest_running) = (Histogram::default(), Duration::ZERO);
        let (open, activity) = (false, Arc::default());
        Ok(Barrier { scope, wanted, uffd: Some(uffd), bound, lasted, over_bound: 0, longest_running, open, activity })
    }

    /// Whether untouched anonymous pages can be protected. If not, touch them first.
    pub fn holds_unpopulated(&self) -> bool {
        self.uffd.as_ref().is_some_and(|uffd| uffd.has(FEATURE_WP_UNPOPULATED))
    }

    /// Opens a window over a span of a view.
    pub fn window(&mut self, address: usize, bytes: usize) -> Result<Window<'_>> {
        if self.uffd.is_none() {
            self.uffd = Some(open(self.scope, self.wanted)?);
        }
        self.activity.stir();
        self.open = true;
        let (began, opened) = (thread_time(), Instant::now());
        // From here on the window's drop puts things right, whatever fails.
        let mut window = Window { barrier: self, address, bytes, switched: 0, began, opened, registered: false };
        let uffd = window.barrier.uffd.as_ref().expect("opened above");
        if let Err(e) = faults::check("window.register").and_then(|()| uffd.register(address, bytes)) {
            // It may have failed half-way. Only where somebody else has the range there is nothing of ours to undo.
            window.registered = e.raw_os_error() != Some(libc::EBUSY);
            return Err(Error::System("registering a window", e));
        }
        window.registered = true;
        let uffd = window.barrier.uffd.as_ref().expect("opened above");
        faults::check("window.protect")
            .and_then(|()| uffd.protect(address, bytes, true))
            .map_err(|e| Error::System("protecting a window", e))?;
        Ok(window)
    }

    /// What the warden looks at.
    pub fn activity(&self) -> Arc<WindowActivity> {
        self.activity.clone()
    }

    /// Ends the window that a thread which is gone has left open. Closing the userfaultfd takes all protection off and wakes
    /// everybody; the next window opens a new one.
    pub fn abandon(&mut self) {
        if std::mem::take(&mut self.open) {
            self.uffd = None;
        }
    }

    /// How long windows lasted.
    pub fn lasted(&self) -> &Histogram {
        &self.lasted
    }

    /// How many lasted longer than their bound.
    pub fn over_bound(&self) -> u64 {
        self.over_bound
    }

    /// The longest, without the time for which its thread was off the processor.
    pub fn longest_running(&self) -> Duration {
        self.longest_running
    }
}

fn open(scope: Scope, wanted: u64) -> Result<Uffd> {
    let (uffd, _) = Uffd::open(scope, wanted).map_err(|e| Error::System("userfaultfd", e))?;
    if uffd.has(FEATURE_WP) && uffd.has(FEATURE_WP_SHMEM) {
        Ok(uffd)
    } else {
        let absent = std::io::Error::from_raw_os_error(libc::ENOSYS);
        Err(Error::System("userfaultfd cannot write-protect shared memory (Linux 5.19 can)", absent))
    }
}

/// An open window.
pub struct Window<'a> {
    barrier: &'a mut Barrier,
    address: usize,
    bytes: usize,
    switched: usize,
    began: Duration, // in the thread's own time
    opened: Instant,
    // If not, somebody else's userfaultfd may have the range, and older kernels would take it from them.
    registered: bool,
}

impl Window<'_> {
    /// Whether its time is over: it takes up no further page.
    pub fn is_over(&self) -> bool {
        self.opened.elapsed() >= self.barrier.bound
    }

    /// So many bytes of it were mapped anew, each once.
    pub fn switched(&mut self, bytes: usize) {
        self.switched += bytes;
    }
}

/// The end of a window. If it does not come to its own end (the kernel refuses, or there is a panic) the userfaultfd goes.
struct Ending<'a> {
    uffd: &'a mut Option<Uffd>,
    ended: bool,
}

impl Ending<'_> {
    fn end(&mut self, address: usize, bytes: usize, switched: usize) -> io::Result<()> {
        let Some(uffd) = &self.uffd else { return Ok(()) };
        // The kernel passes over parts that were mapped anew; if those are all, nothing is left to unregister.
        let unregister = || if switched == bytes { Ok(()) } else { uffd.unregister(address, bytes) };
        let freed = faults::check("window.end").and_then(|()| unregister());
        let freed = freed.or_else(|_| uffd.protect(address, bytes, false));
        let woken = faults::check("window.wake").and_then(|()| uffd.wake(address, bytes));
        freed.and(woken)
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if !self.ended {
            *self.uffd = None;
        }
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        if !self.registered {
            self.barrier.open = false;
            return;
        }
        let mut ending = Ending { uffd: &mut self.barrier.uffd, ended: false };
        ending.ended = ending.end(self.address, self.bytes, self.switched).is_ok();
        drop(ending);
        self.barrier.open = false;
        let lasted = self.opened.elapsed();
        self.barrier.lasted.record(lasted);
        self.barrier.over_bound += u64::from(lasted > self.barrier.bound);
        if lasted > self.barrier.longest_running {
            let running = thread_time().saturating_sub(self.began).min(lasted);
            self.barrier.longest_running = self.barrier.longest_running.max(running);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::bytes;
    use crate::sys::mmap::ViewRange;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::fs::FileExt;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::mpsc;

    const BOUND: Duration = Duration::from_micros(250);

    fn segment(pages: usize) -> OwnedFd {
        let path = format!("/dev/shm/pagefold-test-{}-{:?}", std::process::id(), std::thread::current().id());
        let file = std::fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.set_len(bytes(pages) as u64).unwrap();
        file.into()
    }

    fn barrier() -> Option<Barrier> {
        let barrier = Barrier::open(Scope::Full, true, BOUND);
        if barrier.is_err() {
            eprintln!("skipped: this user gets no userfaultfd");
        }
        barrier.ok()
    }

    /// A thread that writes into the range through a system call; tells when it is about to, and when it has.
    fn writer(range: &'static ViewRange) -> (mpsc::Receiver<()>, std::thread::JoinHandle<()>) {
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let source = segment(1);
            let source = std::fs::File::from(source);
            source.write_all_at(&[7; 8], 0).unwrap();
            tell.send(()).unwrap();
            range.load_for_test(0, 8, source.as_fd());
            tell.send(()).unwrap();
        });
        (told, thread)
    }

    fn is_blocked(told: &mpsc::Receiver<()>) -> bool {
        told.recv().unwrap();
        told.recv_timeout(Duration::from_millis(100)).is_err()
    }

    #[test]
    fn i8_a_panic_inside_ends_the_window() {
        let Some(mut barrier) = barrier() else { return };
        let segment = segment(4);
        let range: &'static ViewRange = Box::leak(Box::new(ViewRange::map_segment(segment.as_fd(), bytes(4)).unwrap()));
        let mut writing = None;
        let result = catch_unwind(AssertUnwindSafe(|| {
            let _window = barrier.window(range.at(0), bytes(4)).unwrap();
            let (told, thread) = writer(range);
            assert!(is_blocked(&told), "a write inside of a window is held");
            writing = Some((told, thread));
            panic!("on purpose");
        }));
        assert!(result.is_err());
        let (told, thread) = writing.unwrap();
        told.recv_timeout(Duration::from_secs(5)).expect("the writer goes on");
        thread.join().unwrap();
        assert_eq!(barrier.lasted().total(), 1);
        assert_eq!(barrier.over_bound(), 1);
    }

    #[test]
    fn i8_a_window_that_cannot_be_opened_holds_nobody() {
        let Some(mut barrier) = barrier() else { return };
        let segment = segment(4);
        let range: &'static ViewRange = Box::leak(Box::new(ViewRange::map_segment(segment.as_fd(), bytes(4)).unwrap()));
        // Another userfaultfd has the range: registering fails.
        let (other, _) = Uffd::open(Scope::Full, FEATURE_WP | FEATURE_WP_SHMEM).unwrap();
        other.register(range.at(0), bytes(4)).unwrap();
        assert!(barrier.window(range.at(0), bytes(4)).is_err());
        other.unregister(range.at(0), bytes(4)).unwrap();
        let (told, thread) = writer(range);
        assert!(!is_blocked(&told));
        thread.join().unwrap();
    }

    #[test]
    fn i8_a_lost_userfaultfd_lets_writers_go_and_is_opened_again() {
        let Some(mut barrier) = barrier() else { return };
        let segment = segment(4);
        let range: &'static ViewRange = Box::leak(Box::new(ViewRange::map_segment(segment.as_fd(), bytes(4)).unwrap()));
        let window = barrier.window(range.at(0), bytes(4)).unwrap();
        let (told, thread) = writer(range);
        assert!(is_blocked(&told));
        window.barrier.uffd = None; // closes it
        told.recv_timeout(Duration::from_secs(5)).expect("the kernel wakes who waits");
        drop(window);
        thread.join().unwrap();
        drop(barrier.window(range.at(0), bytes(4)).expect("there is a new one"));
    }
}
