//! Forks: every space of the process is held and frozen before one, and let go of after it. What that means for a space, it
//! says itself (`ForkParticipant`, in `space/forks/freeze.rs`).
//!
//! ```text
//!   before      signals held back, the registry's lock, then for each space: its lock, a lease for the child, frozen
//!   in parent   each space goes on; its memory stays shared until the children are gone
//!   in child    each space is a copy of which only the bytes can be used
//! ```
//!
//! The C library calls these handlers for every fork() of the process, Python's and that of C code alike,
//! so nothing in here calls into Python or needs the GIL: the thread that forks may hold it, or not, or
//! have nothing to do with Python.
//!
//! **Lock order: registry, then spaces in the order in which they were made.** Every other thread holds the
//! registry while it takes no further lock, or one space and nothing else, for a window at most; and while
//! it does it needs neither the GIL nor any other lock. So the handler always gets them. A thread that
//! holds one of them takes no signals, hence no signal handler can fork there. Two ways to come in again
//! are left, and lead nowhere: a handler of somebody else's that forks in the middle of a fork finds
//! everything frozen already (`depth`), and a handler of a crash inside of pagefold itself finds that its
//! own thread holds a space, and leaves that one as it is: its child must exec.

mod gate;
pub(crate) mod generation;

use crate::error::{Error, Result};
use crate::fork::gate::Gate;
use crate::sys::atfork;
use crate::sys::forklock::{EVERYBODY, ForkLock, Recover, this_thread, wait, wake};
use crate::sys::signals::HeldBack;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Something of this process that has to be held and made ready before a fork, and let go of after it.
pub trait ForkParticipant: Send + Sync {
    /// Whether this thread has it in its hands already.
    fn is_held_here(&self) -> bool;

    /// A fork begins: holds it for this thread, and makes it ready.
    fn before_fork(&self);

    /// The fork is over, in the parent or in the child: lets it go.
    fn after_fork(&self, in_child: bool);

    /// Takes out what went wrong at the last fork.
    fn take_trouble(&self) -> Option<Error>;

    /// Whether a range of addresses lies in memory of a parent's.
    fn has_inherited(&self, address: usize, bytes: usize) -> bool;
}

struct Registry {
    participants: Vec<Weak<dyn ForkParticipant>>,
    hooked: bool,
    signals_held: bool,
    gate: Gate,
    // The fork under way
    held: Vec<Arc<dyn ForkParticipant>>,
    parent: u32,
    depth: usize,
    signals: Option<HeldBack>,
    process: u32,
}

impl Recover for Registry {
    /// A thread that forked is gone: the next that wants a space which it held takes that over.
    fn recover(&mut self) {
        self.held.clear();
        self.depth = 0;
        std::mem::forget(self.signals.take()); // of that thread
    }
}

impl Registry {
    fn hook(&mut self) -> Result<()> {
        if !self.hooked {
            // C libraries that hold a lock of their own while they call handlers do not call ours yet.
            atfork::register(before, after, after).map_err(|e| Error::System("registering what a fork needs", e))?;
            (self.hooked, self.process) = (true, atfork::process());
        }
        Ok(())
    }
}

static REGISTRY: ForkLock<Registry> = ForkLock::new(Registry {
    participants: Vec::new(),
    hooked: false,
    signals_held: false,
    gate: Gate::new(),
    held: Vec::new(),
    parent: 0,
    depth: 0,
    signals: None,
    process: 0,
});

/// Changes with the gate, for those who wait at it.
static GATE: AtomicU32 = AtomicU32::new(0);

/// A thread that waits at the gate looks again after this time.
const PATIENCE: Duration = Duration::from_secs(1);

thread_local! {
    static HELD: RefCell<Vec<HeldBack>> = const { RefCell::new(Vec::new()) };
}

/// Has somebody take part in forks, as long as it lives.
pub fn take_part(participant: Weak<dyn ForkParticipant>) -> Result<()> {
    let mut registry = REGISTRY.lock();
    registry.hook()?;
    registry.participants.retain(|participant| participant.strong_count() > 0);
    registry.participants.push(participant);
    Ok(())
}

/// Those of this process, those that it inherited among them.
fn participants() -> Vec<Arc<dyn ForkParticipant>> {
    REGISTRY.lock().participants.iter().filter_map(Weak::upgrade).collect()
}

/// Whether a range of addresses lies in memory of a parent's.
pub fn is_inherited(address: usize, bytes: usize) -> bool {
    participants().iter().any(|participant| participant.has_inherited(address, bytes))
}

/// Takes out what went wrong at the last fork.
pub fn troubles() -> Vec<Error> {
    participants().iter().filter_map(|participant| participant.take_trouble()).collect()
}

/// From here on the thread that forks takes no signals until all of a fork is over: gRPC stops its threads before one and
/// starts them again after it, in handlers of its own, and they are to begin with all signals blocked. Handlers that are
/// registered later enclose those registered before; so this is to be called when gRPC is there.
pub fn hold_signals() -> Result<()> {
    let mut registry = REGISTRY.lock();
    if !registry.signals_held {
        atfork::register(hold, let_go, let_go).map_err(|e| Error::System("registering what a fork needs", e))?;
        registry.signals_held = true;
    }
    Ok(())
}

extern "C" fn hold() {
    let signals = HeldBack::all();
    let _ = HELD.try_with(|held| held.borrow_mut().push(signals)); // unless this thread is ending
}

extern "C" fn let_go() {
    let signals = HELD.try_with(|held| held.borrow_mut().pop());
    drop(signals); // with the list free: a handler that has waited may fork, and comes to `hold`
}

/// Waits until nobody else forks, and keeps others from it until `end_turn`, on the same thread.
pub fn begin_turn() {
    at_gate(|gate| gate.begin_turn(this_thread()));
}

/// Others may fork again.
pub fn end_turn() {
    change_gate(|gate| gate.end_turn(this_thread()));
}

/// Waits until nobody else has a turn, and keeps others from beginning one until this thread has forked.
pub fn before_hook() {
    // The child of a program without any space is to find out as well that it is one. If there is no memory for that, there
    // is none for a child either.
    let _ = REGISTRY.lock().hook();
    change_gate(|gate| gate.begin_fork(this_thread()));
    at_gate(|gate| gate.may_fork(this_thread()));
}

/// The fork is over, in the parent. (A child has found out by itself.)
pub fn after_hook() {
    change_gate(|gate| gate.end_fork(this_thread()));
}

/// Whether this thread has a turn or is in the middle of a fork, so that it must not wait for others.
pub fn is_in_the_middle() -> bool {
    REGISTRY.is_held_here() || REGISTRY.lock().gate.is_inside(this_thread())
}

/// Whether no fork on the way to this process came in the middle of anybody's turn.
pub fn can_attach() -> bool {
    let registry = REGISTRY.lock();
    !registry.gate.is_past_hooks() && (!registry.hooked || registry.process == atfork::process())
}

fn at_gate(mut pass: impl FnMut(&mut Gate) -> bool) {
    loop {
        let seen = GATE.load(Ordering::SeqCst);
        if pass(&mut REGISTRY.lock().gate) {
            return;
        }
        wait(&GATE, seen, PATIENCE);
    }
}

fn change_gate(change: impl FnOnce(&mut Gate)) {
    change(&mut REGISTRY.lock().gate);
    GATE.fetch_add(1, Ordering::SeqCst);
    wake(&GATE, EVERYBODY);
}

extern "C" fn before() {
    if REGISTRY.is_held_here() {
        REGISTRY.with_kept(|registry| registry.depth += 1);
        return;
    }
    let signals = HeldBack::all();
    REGISTRY.hold(|registry| {
        registry.signals = Some(signals);
        registry.parent = atfork::process();
        registry.depth = 1;
        for participant in registry.participants.iter().filter_map(Weak::upgrade) {
            if !participant.is_held_here() {
                // Held and put right, whatever went wrong; to unwind into the C library would end the process.
                let _ = catch_unwind(AssertUnwindSafe(|| participant.before_fork()));
                registry.held.push(participant);
            }
        }
    });
}

/// In the parent, or in the child. Which of them it is, the process's number says: a child that was forked
/// in the middle of a fork goes on with what its parent began, and is called as the parent.
extern "C" fn after() {
    let state = REGISTRY.with_kept(|registry| {
        registry.depth -= 1;
        (registry.depth == 0, registry.parent != atfork::process())
    });
    let Some((true, is_child)) = state else { return };
    let signals = REGISTRY.release(|registry| {
        for participant in std::mem::take(&mut registry.held) {
            let _ = catch_unwind(AssertUnwindSafe(|| participant.after_fork(is_child)));
        }
        if is_child {
            registry.process = atfork::process();
            registry.gate.become_child(this_thread());
        }
        registry.signals.take()
    });
    drop(signals); // with every lock free
}
