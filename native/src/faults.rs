//! Named points at which a test can have something go wrong. In a build without the feature `faults` they are nothing.
//!
//! A point lies beside a system call: there the kernel has changed something that the books do not show yet, or may
//! refuse. `check` is for points that have a way to fail, `hit` for the others.
//!
//! Armed from Python (`arm_fault`), or by an environment variable that is read at the first point:
//!
//! ```text
//!   PAGEFOLD_FAULTS=merge.mapped=panic@3,window.protect=error:12,merge.held=kill@2+
//!                   point        kind  third time        errno             from the second time on
//! ```

/// Every point, and whether it can fail with an error.
pub const POINTS: &[(&str, bool)] = &[
    ("tracker.let_go", false), // the tracker no longer has the span, and the window not yet
    ("window.register", true),
    ("window.protect", true), // registered, not protected
    ("merge.held", false),    // M3 is done
    ("merge.map", true),      // M4 is done
    ("merge.mapped", false),  // M5 is done, and nothing knows of it
    ("window.end", true),     // M6 begins
    ("window.wake", true),    // unregistered; writers still sleep
    ("tracker.take_back", false),
    ("view.punch", true), // M7
    ("adopt.held", false),
    ("adopt.save", true),
    ("adopt.map", true), // the bytes are in the segment, and nobody maps them
    ("adopt.mapped", false),
    ("discard.map", true),
    ("discard.mapped", false),
    ("discard.punch", true),
    ("freeze.map", true),
    ("freeze.read", true), // what was not frozen is to be copied
    ("freeze.mapped", false),
    ("thaw.held", false),
    ("thaw.save", true),
    ("thaw.map", true),
    ("thaw.mapped", false),
    ("harvest.copies", true),
    ("harvest.look", true),
    ("harvest.looked", false), // the kernel protects again what it has told us of
    ("tracker.watch", true),
    ("arena.make", true),
    ("arena.map", true), // the object is made
    ("arena.reserve", true),
    ("engine.founded", false), // the frame is written, and nobody knows of it
];

#[cfg(not(feature = "faults"))]
mod points {
    /// Nothing happens here.
    #[inline(always)]
    pub fn check(_point: &'static str) -> std::io::Result<()> {
        Ok(())
    }

    /// Nothing happens here.
    #[inline(always)]
    pub fn hit(_point: &'static str) {}
}

#[cfg(feature = "faults")]
mod points {
    use super::POINTS;
    use crate::sys::forklock::end_thread;
    use std::collections::BTreeMap;
    use std::io;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Mutex, Once, PoisonError};
    use std::time::Duration;

    /// What happens.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Kind {
        /// The system call fails with this errno.
        Error(i32),
        /// The thread panics.
        Panic,
        /// The process is killed by SIGKILL.
        Kill,
        /// The process aborts.
        Abort,
        /// The thread ends on the spot, without unwinding.
        Exit,
        /// The thread sleeps for so many milliseconds.
        Delay(u32),
    }

    /// A fault that waits for its point.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Fault {
        /// What happens.
        pub kind: Kind,
        /// The point is passed so many times before.
        pub skip: u32,
        /// Then it happens so many times.
        pub times: u32,
    }

    #[derive(Default)]
    struct Armory {
        armed: BTreeMap<&'static str, Fault>,
        passed: BTreeMap<&'static str, u64>,
    }

    // A fork may copy it locked; a child that meets a point then waits for ever. For tests that is good enough, and they
    // disarm before they fork.
    static ARMORY: Mutex<Armory> = Mutex::new(Armory { armed: BTreeMap::new(), passed: BTreeMap::new() });
    static START: Once = Once::new();
    // Nothing was armed yet: then a point costs two loads, so that a development build measures as a wheel does.
    static ACTIVE: AtomicBool = AtomicBool::new(false);

    /// A fault at a point.
    ///
    /// # Errors
    /// There is no such point, or it cannot fail.
    pub fn arm(point: &str, fault: Fault) -> Result<(), String> {
        let Some((name, fails)) = POINTS.iter().find(|(name, _)| *name == point) else {
            return Err(format!("no fault point is called {point:?}"));
        };
        if matches!(fault.kind, Kind::Error(_)) && !fails {
            return Err(format!("{name} has no way to fail with an error"));
        }
        START.call_once(|| ());
        with(|armory| armory.armed.insert(name, fault));
        ACTIVE.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Takes all faults away.
    pub fn disarm() {
        with(|armory| armory.armed.clear());
    }

    /// How often a point was passed since something was armed for the first time.
    pub fn passed(point: &str) -> u64 {
        with(|armory| armory.passed.get(point).copied().unwrap_or(0))
    }

    /// `kind[:argument][@first[+]]`, as in the environment variable.
    ///
    /// # Errors
    /// It is none of that form.
    pub fn parse(text: &str) -> Result<Fault, String> {
        let refused = || format!("{text:?} is no fault: write kind[:argument][@first[+]]");
        let (what, when) = text.split_once('@').unwrap_or((text, "1"));
        let (first, times) = when.strip_suffix('+').map_or((when, 1), |first| (first, u32::MAX));
        let first: u32 = first.parse().ok().filter(|first| *first > 0).ok_or_else(refused)?;
        let (kind, argument) = what.split_once(':').unwrap_or((what, ""));
        let kind = match (kind, argument) {
            ("error", errno) => Kind::Error(errno.parse().map_err(|_| refused())?),
            ("delay", millis) => Kind::Delay(millis.parse().map_err(|_| refused())?),
            ("panic", "") => Kind::Panic,
            ("kill", "") => Kind::Kill,
            ("abort", "") => Kind::Abort,
            ("exit", "") => Kind::Exit,
            _ => return Err(refused()),
        };
        Ok(Fault { kind, skip: first - 1, times })
    }

    /// A point that can fail.
    ///
    /// # Errors
    /// The armed one.
    pub fn check(point: &'static str) -> io::Result<()> {
        START.call_once(read_environment);
        if !ACTIVE.load(Ordering::Relaxed) {
            return Ok(());
        }
        let due = with(|armory| {
            *armory.passed.entry(point).or_default() += 1;
            let fault = armory.armed.get_mut(point)?;
            if fault.skip > 0 {
                fault.skip -= 1;
                return None;
            }
            fault.times = fault.times.checked_sub(1)?;
            Some(fault.kind)
        });
        match due {
            None => Ok(()),
            Some(Kind::Error(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Kind::Panic) => panic!("a fault was armed at {point}"),
            Some(Kind::Kill) => crate::sys::kill_this_process(),
            Some(Kind::Abort) => std::process::abort(),
            Some(Kind::Exit) => end_thread(),
            Some(Kind::Delay(millis)) => {
                std::thread::sleep(Duration::from_millis(u64::from(millis)));
                Ok(())
            }
        }
    }

    /// A point that cannot fail.
    pub fn hit(point: &'static str) {
        debug_assert!(POINTS.contains(&(point, false)), "{point} is not listed as one that cannot fail");
        let _ = check(point);
    }

    fn with<R>(act: impl FnOnce(&mut Armory) -> R) -> R {
        act(&mut ARMORY.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn read_environment() {
        let Ok(all) = std::env::var("PAGEFOLD_FAULTS") else { return };
        for one in all.split(',').filter(|one| !one.is_empty()) {
            let (point, fault) = one.split_once('=').unwrap_or((one, ""));
            let known = POINTS.iter().find(|(name, _)| *name == point);
            match (known, parse(fault)) {
                (Some((name, _)), Ok(fault)) => {
                    with(|armory| armory.armed.insert(name, fault));
                    ACTIVE.store(true, Ordering::Relaxed);
                }
                _ => {
                    // A test that believes a fault armed which is not would pass for nothing.
                    eprintln!("pagefold: PAGEFOLD_FAULTS: {one:?} is no fault at a known point");
                    std::process::abort();
                }
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn faults_are_read_from_text() {
            assert_eq!(parse("panic"), Ok(Fault { kind: Kind::Panic, skip: 0, times: 1 }));
            assert_eq!(parse("error:12@3"), Ok(Fault { kind: Kind::Error(12), skip: 2, times: 1 }));
            assert_eq!(parse("delay:5@2+"), Ok(Fault { kind: Kind::Delay(5), skip: 1, times: u32::MAX }));
            for wrong in ["", "error", "panic@0", "panic:3", "exit@", "delay:x", "burn"] {
                assert!(parse(wrong).is_err(), "{wrong}");
            }
        }

        #[test]
        fn a_point_fails_when_its_time_has_come_and_only_then() {
            arm("freeze.map", parse("error:5@2").unwrap()).unwrap();
            assert!(check("freeze.map").is_ok());
            assert_eq!(check("freeze.map").unwrap_err().raw_os_error(), Some(5));
            assert!(check("freeze.map").is_ok());
            assert!(arm("merge.held", parse("error:5").unwrap()).is_err(), "it cannot fail");
            assert!(arm("nowhere", parse("panic").unwrap()).is_err());
        }
    }
}

pub use points::*;
