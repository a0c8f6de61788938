//! A mutex that one thread can hold across fork().
//!
//! A child of fork has one thread and a copy of every lock as it was. So whoever forks takes the lock
//! before and lets it go after, in the parent and in the child, on the same thread. std's mutex is a futex
//! word without any table behind it, so letting go in the child touches nothing that another thread could
//! have left half done.
//!
//! The lock knows who holds it, by pthread_self, which is the same in the child: a thread that would wait
//! for itself is told. While a thread holds it, it takes no signals (`signals.rs` says why).

use super::signals::HeldBack;
use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A mutex, see above.
pub struct ForkLock<T: 'static> {
    // Looked at by the holder only. Declared, and so dropped, before what it borrows from.
    kept: UnsafeCell<Option<MutexGuard<'static, T>>>,
    // pthread_self of the thread that has it; 0 if nobody.
    holder: AtomicUsize,
    mutex: Mutex<T>,
}

// SAFETY: what the mutex guards is reached through the mutex, which needs `T: Send`. `kept` is reached by the thread
// that holds the mutex only (`is_held_here`), which is also the thread that put the guard there.
unsafe impl<T: Send + 'static> Sync for ForkLock<T> {}
// SAFETY: as above; a lock that moves is borrowed by nobody, so it is not held, and `kept` is empty.
unsafe impl<T: Send + 'static> Send for ForkLock<T> {}

/// The lock, held by this thread.
pub struct Guard<'a, T: 'static> {
    // In the order in which they end.
    _vacate: Vacate<'a>,
    guard: MutexGuard<'a, T>,
    _signals: HeldBack,
}

/// Says at its end that nobody holds the lock.
struct Vacate<'a>(&'a AtomicUsize);

impl Drop for Vacate<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<T: Send + 'static> ForkLock<T> {
    /// A free lock around `value`.
    pub const fn new(value: T) -> ForkLock<T> {
        ForkLock { kept: UnsafeCell::new(None), holder: AtomicUsize::new(0), mutex: Mutex::new(value) }
    }

    /// Takes the lock. A panic of an earlier holder does not matter: the books are changed after each step
    /// succeeded.
    ///
    /// # Panics
    /// If this thread holds it already: to wait for itself would be for ever.
    pub fn lock(&self) -> Guard<'_, T> {
        let signals = HeldBack::all();
        let guard = self.take();
        Guard { _vacate: Vacate(&self.holder), guard, _signals: signals }
    }

    /// Whether this thread holds it.
    pub fn is_held_here(&self) -> bool {
        // Relaxed: a thread sees what it wrote itself, and nobody else writes its number.
        self.holder.load(Ordering::Relaxed) == this_thread()
    }

    /// Takes the lock, hands its content to `prepare`, and keeps it for this thread until `release`. The
    /// caller keeps the lock alive until then, and takes no signals.
    pub fn hold<R>(&self, prepare: impl FnOnce(&mut T) -> R) -> R {
        let mut guard = self.take();
        let result = prepare(&mut guard);
        // SAFETY: only the lifetime changes: the guard stays inside of what it borrows from, and is dropped first. No
        // other thread looks at `kept`, since this one holds the lock.
        unsafe { *self.kept.get() = Some(std::mem::transmute::<MutexGuard<'_, T>, MutexGuard<'static, T>>(guard)) };
        result
    }

    /// Hands over the content of a lock that this thread holds by `hold`; None if it does not.
    pub fn with_kept<R>(&self, act: impl FnOnce(&mut T) -> R) -> Option<R> {
        if !self.is_held_here() {
            return None;
        }
        // SAFETY: this thread holds the lock, so nobody else looks at `kept`; `act` cannot reach it.
        unsafe { &mut *self.kept.get() }.as_mut().map(|guard| act(guard))
    }

    /// Lets go what `hold` took on this thread, after handing its content to `last`; None if it holds
    /// nothing.
    pub fn release<R>(&self, last: impl FnOnce(&mut T) -> R) -> Option<R> {
        let result = self.with_kept(last)?;
        // SAFETY: as in `with_kept`, which has found a guard here.
        let guard = unsafe { &mut *self.kept.get() }.take();
        self.holder.store(0, Ordering::Relaxed);
        drop(guard);
        Some(result)
    }

    fn take(&self) -> MutexGuard<'_, T> {
        assert!(!self.is_held_here(), "pagefold was used by a thread that is in the middle of a fork");
        let guard = self.mutex.lock().unwrap_or_else(PoisonError::into_inner);
        self.holder.store(this_thread(), Ordering::Relaxed);
        guard
    }
}

fn this_thread() -> usize {
    // SAFETY: cannot fail, and touches nothing. It is an address or a number, never 0.
    unsafe { libc::pthread_self() as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_until_released() {
        let lock = ForkLock::new(1);
        lock.hold(|n| *n += 1);
        assert!(lock.mutex.try_lock().is_err() && lock.is_held_here());
        assert_eq!(lock.with_kept(|n| *n), Some(2));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert!(!lock.is_held_here() && lock.with_kept(|n| *n).is_none() && lock.release(|_| ()).is_none())
            });
        });
        assert_eq!(lock.release(|n| *n), Some(2));
        assert_eq!(lock.release(|n| *n), None);
        assert_eq!(*lock.lock(), 2);
        assert!(!lock.is_held_here());
    }

    #[test]
    #[should_panic(expected = "in the middle of a fork")]
    fn a_thread_does_not_wait_for_itself() {
        let lock = ForkLock::new(1);
        let _guard = lock.lock();
        let _ = lock.lock();
    }
}
