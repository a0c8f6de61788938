//! A mutex that one thread can hold across fork(), and that survives the thread that holds it.
//!
//! A child of fork has one thread and a copy of every lock as it was. So the forking thread takes the lock before and lets
//! it go after, in the parent and in the child, on the same thread. The lock is one futex word without any table
//! behind it, so letting go in the child touches nothing that another thread could have left half done.
//!
//! ```text
//!   word     0 free   |   thread number of the holder, and a bit: others wait
//!   holder   its pthread_self, which is the same in a child of fork, where its number is another
//! ```
//!
//! A thread that would wait for itself is told. While a thread holds the lock, it takes no signals (`signals.rs` says why).
//!
//! What it guards is right whenever the lock is free: a holder that panics, or that ends in the middle (a seccomp filter
//! can kill a single thread), has its work completed or undone by `Recover`, by itself or by the next who wants the lock.

use super::check;
use super::signals::HeldBack;
use rustix::io::Errno;
use rustix::thread::futex;
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

/// For `wake`: all who wait.
pub const EVERYBODY: u32 = i32::MAX as u32;

/// Others wait for the lock.
const WAITERS: u32 = 1 << 31;

/// How long to wait before looking whether the holder is alive. It holds the lock for a fraction of a millisecond.
const PATIENCE: Duration = Duration::from_secs(1);

/// Something that can be put right after a thread that changed it has stopped in the middle.
pub trait Recover {
    /// Completes or undoes what is half done. Must not rely on anything that the holder has on its stack.
    fn recover(&mut self);
}

/// A mutex, see above.
pub struct ForkLock<T> {
    word: AtomicU32,
    holder: AtomicUsize,
    // Held by `hold`, across a fork.
    kept: AtomicBool,
    // A closure of `hold`, `with_kept` or `release` has the content at this moment: nobody else gets it, that closure included.
    lent: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached by the thread that holds the lock only: through a guard, of which there is one at a time,
// or inside of `hold`, `with_kept` and `release`, while there is none; of those, one at a time has it (`lent`).
unsafe impl<T: Send> Sync for ForkLock<T> {}

/// The lock, held by this thread.
pub struct Guard<'a, T: Recover> {
    lock: &'a ForkLock<T>,
    panicking: bool,
    // Ends after the lock is free.
    _signals: HeldBack,
    // It is let go on the thread that took it, whose number is in the word.
    _thread: PhantomData<*const ()>,
}

impl<T: Recover> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard is proof that the lock is held, by this thread, for as long as it lives.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: Recover> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above; and the guard is borrowed exclusively.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T: Recover> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.panicking {
            self.recover(); // a second panic in there ends the process: better than books that nobody can trust
        }
        self.lock.let_go();
    }
}

impl<T> ForkLock<T> {
    /// A free lock around `value`.
    pub const fn new(value: T) -> ForkLock<T> {
        let (word, holder) = (AtomicU32::new(0), AtomicUsize::new(0));
        let (kept, lent) = (AtomicBool::new(false), AtomicBool::new(false));
        ForkLock { word, holder, kept, lent, value: UnsafeCell::new(value) }
    }

    /// Whether nobody has the lock at this moment.
    pub fn is_free(&self) -> bool {
        self.word.load(Ordering::Acquire) == 0
    }

    /// Whether this thread holds it.
    pub fn is_held_here(&self) -> bool {
        // Relaxed: a thread sees what it wrote itself. Others that write may have had our pthread_self before us, if they
        // ended while they had the lock; but not our number, which is in doubt across a fork only.
        self.holder.load(Ordering::Relaxed) == this_thread()
            && (self.kept.load(Ordering::Relaxed) || self.word.load(Ordering::Relaxed) & !WAITERS == thread_number())
    }

    /// Takes the lock if the thread that holds it is gone.
    fn seize(&self) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        if word == 0 || !is_gone(word & !WAITERS) {
            return false;
        }
        // A thread that is gone lets nothing go any more: the word stays as it is until somebody does this.
        let mine = thread_number() | WAITERS;
        let seized = self.word.compare_exchange(word, mine, Ordering::Acquire, Ordering::Relaxed).is_ok();
        if seized {
            self.mark();
        }
        seized
    }

    /// This thread has the word; now the rest.
    fn mark(&self) {
        self.kept.store(false, Ordering::Relaxed);
        self.lent.store(false, Ordering::Relaxed); // to a thread that is gone, if to any
        self.holder.store(this_thread(), Ordering::Relaxed);
    }

    fn let_go(&self) {
        self.kept.store(false, Ordering::Relaxed);
        self.holder.store(0, Ordering::Relaxed);
        if self.word.swap(0, Ordering::Release) & WAITERS != 0 {
            wake(&self.word, 1);
        }
    }
}

impl<T: Recover + Send + 'static> ForkLock<T> {
    /// Takes the lock.
    ///
    /// # Panics
    /// If this thread holds it already: to wait for itself would be for ever.
    pub fn lock(&self) -> Guard<'_, T> {
        let signals = HeldBack::all();
        let seized = self.acquire();
        let mut guard = self.guard(signals);
        if seized {
            guard.recover();
        }
        guard
    }

    /// Takes the lock if the thread that holds it is gone, and puts right what that has left. Waits for nobody.
    pub fn take_over(&self) -> Option<Guard<'_, T>> {
        let signals = HeldBack::all();
        self.seize().then(|| {
            let mut guard = self.guard(signals);
            guard.recover();
            guard
        })
    }

    /// Takes the lock, hands its content to `prepare`, and keeps it for this thread until `release`, whatever `prepare`
    /// does: a child that was forked while another thread had the lock could never take it. The caller keeps the lock
    /// alive until then, and takes no signals.
    pub fn hold<R>(&self, prepare: impl FnOnce(&mut T) -> R) -> R {
        let seized = self.acquire();
        self.kept.store(true, Ordering::Relaxed);
        self.act(|value| {
            if seized {
                value.recover();
            }
            prepare(value)
        })
        .unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Hands over the content of a lock that this thread holds by `hold`; None if it does not, or if a closure of this
    /// thread has the content already: a crash handler that forks in the middle of one comes by here.
    pub fn with_kept<R>(&self, act: impl FnOnce(&mut T) -> R) -> Option<R> {
        if !self.is_kept_here() {
            return None;
        }
        Some(self.act(act).unwrap_or_else(|panic| resume_unwind(panic)))
    }

    /// Lets go what `hold` took on this thread, after handing its content to `last`, whatever that does; None if it
    /// holds nothing, or is in the middle of such a closure.
    pub fn release<R>(&self, last: impl FnOnce(&mut T) -> R) -> Option<R> {
        if !self.is_kept_here() {
            return None;
        }
        let result = self.act(last);
        self.let_go();
        Some(result.unwrap_or_else(|panic| resume_unwind(panic)))
    }

    fn is_kept_here(&self) -> bool {
        let kept = self.kept.load(Ordering::Relaxed) && self.is_held_here();
        if kept {
            // In a child the number of the parent's thread is nobody's, and would be taken for one that is gone.
            self.word.store(thread_number() | WAITERS, Ordering::Relaxed);
        }
        kept && !self.lent.load(Ordering::Relaxed)
    }

    /// Hands over the content of a lock that this thread keeps, and puts it right after a panic.
    fn act<R>(&self, act: impl FnOnce(&mut T) -> R) -> std::thread::Result<R> {
        let before = self.lent.swap(true, Ordering::Relaxed);
        assert!(!before, "the content of a lock was asked for twice at a time");
        // SAFETY: this thread holds the lock and has no guard: `hold` made none, and `acquire` refuses to make one while
        // it is held. Nobody has the content already: `lent` was false. Nor does anybody get it until `lent` is false again:
        // `act` is the only other place that makes a reference of it, and has just been shown to refuse.
        let value = unsafe { &mut *self.value.get() };
        let result = catch_unwind(AssertUnwindSafe(|| act(value)));
        if result.is_err() {
            // SAFETY: as above; the borrow that was handed out has ended.
            unsafe { &mut *self.value.get() }.recover();
        }
        self.lent.store(false, Ordering::Relaxed);
        result
    }

    /// Waits for the word. Whether it was a thread's that is gone, so that its work is to be put right.
    fn acquire(&self) -> bool {
        assert!(!self.is_held_here(), "pagefold was used by a thread that is in the middle of a fork");
        let me = thread_number();
        if self.word.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            self.mark();
            return false;
        }
        loop {
            let word = self.word.load(Ordering::Relaxed);
            // A thread that has waited cannot know whether others do, so it counts on it.
            if word == 0 {
                if self.word.compare_exchange(0, me | WAITERS, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    self.mark();
                    return false;
                }
                continue;
            }
            if word & WAITERS == 0
                && self.word.compare_exchange(word, word | WAITERS, Ordering::Relaxed, Ordering::Relaxed).is_err()
            {
                continue;
            }
            if !wait(&self.word, word | WAITERS, PATIENCE) && self.seize() {
                return true;
            }
        }
    }

    fn guard(&self, signals: HeldBack) -> Guard<'_, T> {
        Guard { lock: self, panicking: std::thread::panicking(), _signals: signals, _thread: PhantomData }
    }
}

/// This thread, as its children know it too: it is the same in a child of fork.
pub fn this_thread() -> usize {
    // SAFETY: cannot fail, and touches nothing. It is an address or a number, never 0.
    unsafe { libc::pthread_self() as usize }
}

/// This thread's number. Asked every time: a child of fork has the same thread-local values and another number.
fn thread_number() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get() as u32
}

/// Whether a thread of this process is gone. Of the first thread of a process its number stays, as a zombie.
fn is_gone(thread: u32) -> bool {
    // SAFETY: signal 0 is sent to nobody; numbers that are no thread of ours fail.
    let there = check(unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, 0) as libc::c_int });
    if there.is_err_and(|error| error.raw_os_error() == Some(libc::ESRCH)) {
        return true;
    }
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap_or_default();
    // The state comes after the name, which may have brackets and spaces in it.
    stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with(['Z', 'X']))
}

/// Waits while the word is `value`. False if it still was after `timeout`.
pub fn wait(word: &AtomicU32, value: u32, timeout: Duration) -> bool {
    let time = futex::Timespec { tv_sec: timeout.as_secs() as _, tv_nsec: timeout.subsec_nanos() as _ };
    futex::wait(word, futex::Flags::PRIVATE, value, Some(&time)) != Err(Errno::TIMEDOUT)
}

/// Wakes so many of those who wait for the word to change.
pub fn wake(word: &AtomicU32, count: u32) {
    let _ = futex::wake(word, futex::Flags::PRIVATE, count); // fails for bad addresses only
}

/// Ends this thread at once, without unwinding or clearing anything up, as a seccomp filter does.
#[cfg(any(test, feature = "faults"))]
pub fn end_thread() -> ! {
    // SAFETY: no code of this thread runs after it, so nothing that it leaves behind is used by it.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, mpsc};

    #[derive(Default)]
    struct Books {
        entries: u32,
        total: u32,
        recovered: u32,
    }

    impl Recover for Books {
        fn recover(&mut self) {
            self.recovered += 1;
            self.total = self.entries;
        }
    }

    fn books() -> Arc<ForkLock<Books>> {
        Arc::new(ForkLock::new(Books::default()))
    }

    #[test]
    fn held_until_released() {
        let lock = books();
        lock.hold(|books| books.entries += 1);
        assert!(!lock.is_free() && lock.is_held_here());
        assert_eq!(lock.with_kept(|books| books.entries), Some(1));
        std::thread::scope(|scope| {
            let lock = &lock;
            scope.spawn(move || {
                assert!(!lock.is_held_here() && lock.with_kept(|_| ()).is_none() && lock.release(|_| ()).is_none());
            });
        });
        assert_eq!(lock.release(|books| books.entries), Some(1));
        assert_eq!(lock.release(|_| ()), None);
        assert!(lock.is_free() && !lock.is_held_here());
        let books = lock.lock();
        assert_eq!((books.entries, books.recovered), (1, 0));
        assert!(lock.is_held_here() && lock.with_kept(|_| ()).is_none(), "a guard's lock is not kept");
    }

    #[test]
    fn a_closure_that_has_the_content_cannot_have_it_twice() {
        // A safe program that nested these calls read memory that it had freed.
        let lock = ForkLock::new(Names(vec!["first".into()]));
        lock.hold(|names| {
            let first = &names.0[0];
            assert!(lock.with_kept(|names| names.0.clear()).is_none());
            assert!(lock.release(|names| names.0.clear()).is_none());
            assert_eq!(first, "first");
        });
        let seen = lock.with_kept(|names| (lock.with_kept(|_| ()).is_none(), names.0[0].clone()));
        assert_eq!(seen, Some((true, "first".into())));
        assert!(!lock.is_free(), "a refused release lets nothing go");
        let caught = catch_unwind(AssertUnwindSafe(|| lock.with_kept(|_| panic!("on purpose"))));
        assert!(caught.is_err());
        assert_eq!(lock.with_kept(|names| names.0.len()), Some(1), "a panic gives the content back");
        assert!(lock.release(|_| lock.with_kept(|_| ()).is_none()).unwrap() && lock.is_free());
    }

    struct Names(Vec<String>);

    impl Recover for Names {
        fn recover(&mut self) {}
    }

    #[test]
    #[should_panic(expected = "in the middle of a fork")]
    fn a_thread_does_not_wait_for_itself() {
        let lock = books();
        let _guard = lock.lock();
        let _ = lock.lock();
    }

    #[test]
    fn one_at_a_time() {
        let lock = books();
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let lock = lock.clone();
                std::thread::spawn(move || {
                    for _ in 0..20_000 {
                        let mut books = lock.lock();
                        books.entries += 1;
                        assert_eq!(books.entries, books.total + 1);
                        books.total += 1;
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(lock.lock().total, 80_000);
        assert!(lock.is_free());
    }

    #[test]
    #[ignore = "a race, on purpose: tools/stress_rust sees by it that the sanitizer finds one"]
    fn a_race_that_is_planted() {
        let lock = books();
        let race = |lock: &ForkLock<Books>| {
            for _ in 0..1000 {
                lock.acquire();
                // SAFETY: none. The lock is let go of below without a release, so the next one need not see this.
                unsafe { (*lock.value.get()).entries += 1 };
                lock.holder.store(0, Ordering::Relaxed);
                if lock.word.swap(0, Ordering::Relaxed) & WAITERS != 0 {
                    wake(&lock.word, 1);
                }
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| race(&lock));
            scope.spawn(|| race(&lock));
        });
    }

    #[test]
    fn a_panic_is_put_right_before_the_lock_is_free() {
        let lock = books();
        let other = lock.clone();
        let ended = std::thread::spawn(move || {
            other.lock().entries += 1;
            panic!("on purpose");
        });
        assert!(ended.join().is_err());
        let other = lock.clone();
        let ended = std::thread::spawn(move || {
            let mut books = other.lock();
            books.entries += 1;
            panic!("on purpose");
        });
        assert!(ended.join().is_err());
        let books = lock.lock();
        assert_eq!((books.entries, books.total, books.recovered), (2, 2, 1));
    }

    #[test]
    fn a_panic_while_it_is_prepared_for_a_fork_keeps_it_held() {
        let lock = books();
        let result = catch_unwind(AssertUnwindSafe(|| lock.hold(|_| panic!("on purpose"))));
        assert!(result.is_err());
        assert!(!lock.is_free());
        let result = catch_unwind(AssertUnwindSafe(|| lock.release(|_| panic!("on purpose"))));
        assert!(result.is_err());
        assert!(lock.is_free());
        assert_eq!(lock.lock().recovered, 2);
    }

    #[test]
    fn a_lock_that_is_kept_is_taken_over_too() {
        let lock = books();
        let other = lock.clone();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            other.hold(|books| books.entries += 1);
            tell.send(()).unwrap();
            end_thread();
        });
        told.recv().unwrap();
        lock.hold(|books| assert_eq!((books.entries, books.recovered), (1, 1)));
        assert!(lock.release(|_| ()).is_some() && lock.is_free());
    }

    #[test]
    fn the_lock_of_a_thread_that_is_gone_is_taken_over_and_put_right() {
        let lock = books();
        let other = lock.clone();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            let mut books = other.lock();
            books.entries += 1;
            tell.send(()).unwrap();
            end_thread();
        });
        told.recv().unwrap();
        let books = lock.lock();
        assert_eq!((books.entries, books.total, books.recovered), (1, 1, 1));
        drop(books);
        assert!(lock.take_over().is_none(), "nobody has it");
        let books = lock.lock();
        assert!(lock.take_over().is_none(), "its holder is alive");
        drop(books);
    }
}
