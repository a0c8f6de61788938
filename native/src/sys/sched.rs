//! The scheduler: beginning short work at the beginning of a time slice.
//!
//! A thread that is preempted inside of a window holds writers for as long as somebody else's slice lasts: several milliseconds
//! where the clock ticks 250 times a second. The kernel does not say how much of a slice is left. But a thread that was off
//! the processor has a new one when it comes back, so it is enough to notice that, and to step aside now and then.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// What may be used of a slice before short work begins in it. A window is about as long, and together they are well below
/// the shortest slice (0.7 ms on one processor, more on several).
const FRESH: Duration = Duration::from_micros(250);

/// A thread that was away for longer than this was off the processor, and not just in the kernel.
const AWAY: Duration = Duration::from_micros(20);

/// What a thread knows of its slice.
#[derive(Clone, Copy)]
struct Slice {
    looked: Instant,
    cpu: Duration,   // of the thread, then
    began: Duration, // the thread's time when the slice began, at the earliest
}

thread_local! {
    static SLICE: Cell<Option<Slice>> = const { Cell::new(None) };
}

/// Returns at the beginning of a slice, or close to it. Lets others run first if need be; costs nothing if there are none.
pub fn begin_slice() {
    let cpu = thread_time();
    let looked = Instant::now();
    let began = match SLICE.get() {
        Some(last) if looked - last.looked <= cpu.saturating_sub(last.cpu) + AWAY => last.began,
        _ => cpu, // it was away
    };
    let mut slice = Slice { looked, cpu, began };
    if cpu.saturating_sub(began) > FRESH {
        rustix::thread::sched_yield();
        let cpu = thread_time();
        slice = Slice { looked: Instant::now(), cpu, began: cpu };
    }
    SLICE.set(Some(slice));
}

/// Processor time of this thread.
pub fn thread_time() -> Duration {
    let time = clock(libc::CLOCK_THREAD_CPUTIME_ID);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// What a clock says that every kernel has.
pub fn clock(clock: libc::clockid_t) -> libc::timespec {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills the structure, which lives through the call.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_used_up_by_work_and_renewed_by_absence() {
        begin_slice();
        let first = SLICE.get().unwrap();
        let start = thread_time();
        while thread_time() - start < 2 * FRESH {}
        begin_slice();
        let second = SLICE.get().unwrap();
        assert!(second.began > first.began, "it stepped aside");
        std::thread::sleep(Duration::from_millis(5));
        begin_slice();
        assert!(SLICE.get().unwrap().began > second.began, "it was away");
    }
}
