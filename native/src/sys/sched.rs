//! The scheduler: beginning short work at the beginning of a time slice.
//!
//! Whoever is preempted inside of a window holds writers for as long as somebody else's slice lasts: several milliseconds
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

/// Processor time of this thread. There is no kernel that has no such clock.
pub fn thread_time() -> Duration {
    // SAFETY: timespec is plain data, filled by clock_gettime.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
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
