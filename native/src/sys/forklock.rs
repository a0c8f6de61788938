//! A mutex that one thread can hold across fork().
//!
//! A child of fork has one thread and a copy of every lock as it was. So whoever forks takes the lock before and lets
//! it go after, in the parent and in the child, on the same thread. std's mutex is a futex word without any table
//! behind it, so letting go in the child touches nothing that another thread could have left half done.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A mutex, see above.
pub struct ForkLock<T>(Mutex<T>);

thread_local! {
    static HELD: RefCell<Vec<Held>> = const { RefCell::new(Vec::new()) };
}

struct Held {
    // Order matters: fields are dropped in order of declaration, so the guard goes before what it guards.
    _guard: Box<dyn Sized0>,
    _lock: Arc<dyn Send + Sync>,
    key: usize,
}

/// Anything; only its drop is wanted.
trait Sized0 {}
impl<T> Sized0 for T {}

impl<T: Send + 'static> ForkLock<T> {
    /// A free lock around `value`.
    pub fn new(value: T) -> ForkLock<T> {
        ForkLock(Mutex::new(value))
    }

    /// Takes the lock. A panic of an earlier holder does not matter: the books are changed after each step succeeded.
    ///
    /// # Panics
    /// If this thread holds it across a fork: to wait for itself would be for ever.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        assert!(!self.is_held_here(), "pagefold was used in a fork hook, by the thread that forks");
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this thread holds it across a fork.
    pub fn is_held_here(&self) -> bool {
        let key = std::ptr::from_ref(self) as usize;
        HELD.with_borrow(|all| all.iter().any(|held| held.key == key))
    }

    /// Takes the lock, hands its content to `prepare`, and keeps it for this thread until `release`.
    pub fn hold<R>(self: &Arc<Self>, prepare: impl FnOnce(&mut T) -> R) -> R {
        let mut guard = self.lock();
        let result = prepare(&mut guard);
        // SAFETY: only the lifetime changes. The guard borrows from the mutex inside of the Arc, and `Held` keeps a
        // clone of that Arc and drops the guard first.
        let guard: MutexGuard<'static, T> = unsafe { std::mem::transmute(guard) };
        let lock: Arc<dyn Send + Sync> = self.clone();
        let held = Held { _guard: Box::new(guard), _lock: lock, key: Arc::as_ptr(self) as usize };
        HELD.with_borrow_mut(|all| all.push(held));
        result
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_until_released() {
        let lock = Arc::new(ForkLock::new(1));
        lock.hold(|n| *n += 1);
        assert!(lock.0.try_lock().is_err());
        lock.release();
        lock.release();
        assert_eq!(*lock.lock(), 2);
    }
}
