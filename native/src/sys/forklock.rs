//! A mutex that one thread can hold across fork(), and that survives the thread that holds it.
//!
//! A child of fork has one thread and a copy of every lock as it was. So whoever forks takes the lock before and lets
//! it go after, in the parent and in the child, on the same thread. The lock is one futex word without any table
//! behind it, so letting go in the child touches nothing that another thread could have left half done.
//!
//! ```text
//!   word   0 free   |   thread number of the holder, and a bit: others wait
//! ```
//!
//! What it guards is right whenever the lock is free: a holder that panics, or that ends in the middle (a seccomp filter
//! can kill a single thread), has its work completed or undone by `Recover`, by itself or by the next who wants the lock.

use super::check;
use std::cell::{RefCell, UnsafeCell};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Others wait for the lock.
const WAITERS: u32 = 1 << 31;

/// How long to wait before looking whether the holder is alive. It holds the lock for a fraction of a millisecond.
const PATIENCE: Duration = Duration::from_secs(1);

/// Something that can be put right after whoever changed it has stopped in the middle.
pub trait Recover {
    /// Completes or undoes what is half done. Must not rely on anything that the holder has on its stack.
    fn recover(&mut self);
}

/// A mutex, see above.
pub struct ForkLock<T> {
    word: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached through a guard only, of which there is one at a time.
unsafe impl<T: Send> Sync for ForkLock<T> {}

thread_local! {
    static HELD: RefCell<Vec<Held>> = const { RefCell::new(Vec::new()) };
}

struct Held {
    // Order matters: fields are dropped in order of declaration, so the guard goes before what it guards.
    _guard: Box<dyn Anything>,
    _lock: Arc<dyn Send + Sync>,
    key: usize,
}

/// Anything; only its drop is wanted.
trait Anything {}
impl<T> Anything for T {}

/// The lock, held by this thread.
pub struct Guard<'a, T: Recover> {
    lock: &'a ForkLock<T>,
    panicking: bool,
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
        if self.lock.word.swap(0, Ordering::Release) & WAITERS != 0 {
            wake(&self.lock.word, 1);
        }
    }
}

impl<T: Recover + Send + 'static> ForkLock<T> {
    /// A free lock around `value`.
    pub fn new(value: T) -> ForkLock<T> {
        ForkLock { word: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    /// Takes the lock.
    ///
    /// # Panics
    /// If this thread holds it across a fork: to wait for itself would be for ever.
    pub fn lock(&self) -> Guard<'_, T> {
        assert!(!self.is_held_here(), "pagefold was used in a fork hook, by the thread that forks");
        let me = thread_number();
        if self.word.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            return self.guard();
        }
        loop {
            let word = self.word.load(Ordering::Relaxed);
            // Whoever has waited cannot know whether others do, so it counts on it.
            if word == 0 {
                if self.word.compare_exchange(0, me | WAITERS, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    return self.guard();
                }
                continue;
            }
            if word & WAITERS == 0
                && self.word.compare_exchange(word, word | WAITERS, Ordering::Relaxed, Ordering::Relaxed).is_err()
            {
                continue;
            }
            if !wait(&self.word, word | WAITERS, PATIENCE)
                && let Some(guard) = self.take_over()
            {
                return guard;
            }
        }
    }

    /// Takes the lock if the thread that holds it is gone, and puts right what that has left. Waits for nobody.
    pub fn take_over(&self) -> Option<Guard<'_, T>> {
        let word = self.word.load(Ordering::Relaxed);
        if word == 0 || !is_gone(word & !WAITERS) {
            return None;
        }
        // A thread that is gone lets nothing go any more: the word stays as it is until somebody does this.
        let mine = thread_number() | WAITERS;
        self.word.compare_exchange(word, mine, Ordering::Acquire, Ordering::Relaxed).ok()?;
        let mut guard = self.guard();
        guard.recover();
        Some(guard)
    }

    /// Whether nobody has the lock at this moment.
    pub fn is_free(&self) -> bool {
        self.word.load(Ordering::Acquire) == 0
    }

    /// Whether this thread holds it across a fork.
    pub fn is_held_here(&self) -> bool {
        let key = std::ptr::from_ref(self) as usize;
        HELD.with_borrow(|all| all.iter().any(|held| held.key == key))
    }

    /// Takes the lock, hands its content to `prepare`, and keeps it for this thread until `release`, whatever `prepare`
    /// does: a child that was forked while another thread had the lock could never take it.
    pub fn hold<R>(self: &Arc<Self>, prepare: impl FnOnce(&mut T) -> R) -> R {
        let mut guard = self.lock();
        let result = catch_unwind(AssertUnwindSafe(|| prepare(&mut guard)));
        if result.is_err() {
            guard.recover();
        }
        // SAFETY: only the lifetime changes. The guard borrows from the lock inside of the Arc, and `Held` keeps a
        // clone of that Arc and drops the guard first.
        let guard: Guard<'static, T> = unsafe { std::mem::transmute(guard) };
        let lock: Arc<dyn Send + Sync> = self.clone();
        let held = Held { _guard: Box::new(guard), _lock: lock, key: Arc::as_ptr(self) as usize };
        HELD.with_borrow_mut(|all| all.push(held));
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Lets go what `hold` took on this thread; nothing if it holds nothing.
    pub fn release(self: &Arc<Self>) {
        let key = Arc::as_ptr(self) as usize;
        let mine = HELD.with_borrow_mut(|all| {
            let at = all.iter().position(|held| held.key == key)?;
            Some(all.swap_remove(at))
        });
        drop(mine);
    }

    fn guard(&self) -> Guard<'_, T> {
        Guard { lock: self, panicking: std::thread::panicking(), _thread: PhantomData }
    }
}

/// This thread's number. Asked every time: a child of fork has the same thread-local values and another number.
fn thread_number() -> u32 {
    // SAFETY: takes no arguments and touches no memory.
    unsafe { libc::gettid() as u32 }
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
    let time = libc::timespec { tv_sec: timeout.as_secs() as _, tv_nsec: timeout.subsec_nanos() as _ };
    // SAFETY: the word lives through the call, and the kernel only compares it; the timeout is read.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            value,
            &raw const time,
        )
    };
    result == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ETIMEDOUT)
}

/// Wakes so many of those who wait for the word to change.
pub fn wake(word: &AtomicU32, count: i32) {
    // SAFETY: a futex is named by its address; the kernel touches no memory for this.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, count) };
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
    use std::sync::mpsc;

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
        assert!(!lock.is_free());
        lock.release();
        lock.release();
        assert!(lock.is_free());
        let books = lock.lock();
        assert_eq!((books.entries, books.recovered), (1, 0));
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
        let held = lock.clone();
        let result = catch_unwind(AssertUnwindSafe(|| held.hold(|_| panic!("on purpose"))));
        assert!(result.is_err());
        assert!(!lock.is_free());
        lock.release();
        assert_eq!(lock.lock().recovered, 1);
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
        assert!(lock.take_over().is_none(), "whoever has it is alive");
        drop(books);
    }
}
