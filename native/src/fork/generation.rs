//! Generations: how a parent knows whether children of its forks are still there.
//!
//! ```text
//!   fork 1          lease A   <-- held by child 1, and by its children     views made before fork 1 wait for A, B and C
//!   fork 2          lease B   <-- held by child 2                          views made between 1 and 2 wait for B and C
//!   forks 3, 4, ... lease C   <-- held by children 3, 4, ...               newer views wait for nobody
//! ```
//!
//! A lease is held by a descriptor and by a mapping (a child that becomes a daemon closes its descriptors),
//! and goes with the child, however that ends. Children that only exec hold it for as long as that takes. A
//! fork for which no lease can be had counts as living for ever, which costs memory and is safe.

use crate::error::{Error, Result};
use crate::sys::flock;
use crate::sys::mmap::Lease;
use crate::sys::object::Object;
use std::os::fd::AsFd;

/// Leases at a time: each costs a descriptor. With so many, further forks join the newest.
const MOST: usize = 16;

struct Generation {
    last: u64,             // the last fork that it stands for
    probe: Option<Object>, // an open of its own, to look at the lease with; None: living for ever
}

/// The generations of which a child may be alive, oldest first.
#[derive(Default)]
pub struct Generations {
    living: Vec<Generation>,
    forks: u64,
}

impl Generations {
    /// The number of the next fork, for what is made now.
    pub fn next(&self) -> u64 {
        self.forks + 1
    }

    /// A fork begins: the lease that its child is to hold.
    pub fn begin(&mut self) -> Result<Lease> {
        self.forks += 1;
        let last = self.forks;
        let many = self.living.len() >= MOST;
        if let Some(newest) = self.living.last_mut().filter(|_| many) {
            newest.last = last;
            let Some(probe) = &newest.probe else { return Err(unavailable()) };
            return lease(probe).inspect_err(|_| newest.probe = None);
        }
        let begun = flock::object().map_err(system).and_then(|object| {
            let probe = flock::reopen(&object).map_err(system)?;
            Ok((lease(&object)?, Object::keep(probe)))
        });
        let (lease, probe) = match begun {
            Ok((lease, probe)) => (Ok(lease), Some(probe)),
            Err(error) => (Err(error), None),
        };
        self.living.push(Generation { last, probe });
        lease
    }

    /// Forgets those of which all children are gone.
    pub fn drop_gone(&mut self) {
        self.living.retain(|generation| generation.probe.as_ref().is_none_or(|probe| !flock::is_free(probe)));
    }

    /// Whether a child may be alive of the fork with that number, or of a later one.
    pub fn any_since(&self, fork: u64) -> bool {
        self.living.iter().any(|generation| generation.last >= fork)
    }

    /// Nobody will ask any more.
    pub fn forget(&mut self) {
        self.living.clear();
    }
}

/// A lease on an object, with an open of its own.
fn lease(object: &impl AsFd) -> Result<Lease> {
    let given = flock::reopen(object).map_err(system)?;
    flock::share(&given).map_err(system)?;
    Lease::hold(given).map_err(system)
}

fn system(error: std::io::Error) -> Error {
    Error::System("a lease for a forked child", error)
}

fn unavailable() -> Error {
    system(std::io::Error::from_raw_os_error(libc::EMFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_views_wait_for_more_children() {
        let mut generations = Generations::default();
        let old = generations.next();
        let first = generations.begin().unwrap();
        let new = generations.next();
        let second = generations.begin().unwrap();
        drop(second);
        generations.drop_gone();
        assert!(generations.any_since(old) && !generations.any_since(new));
        drop(first);
        generations.drop_gone();
        assert!(!generations.any_since(old));
    }

    #[test]
    fn many_children_take_few_descriptors_and_are_waited_for_all_the_same() {
        let mut generations = Generations::default();
        let mut leases: Vec<Lease> = (0..10 * MOST).map(|_| generations.begin().unwrap()).collect();
        assert_eq!(generations.living.len(), MOST);
        let last = leases.pop().unwrap();
        leases.truncate(MOST - 1);
        leases.clear();
        generations.drop_gone();
        assert!(generations.any_since(1) && generations.any_since(10 * MOST as u64));
        drop(last);
        generations.drop_gone();
        assert!(!generations.any_since(1));
    }
}
