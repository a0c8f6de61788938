//! Turns and forks: while a thread talks to a server nobody forks, and while somebody forks nobody begins to talk.
//!
//! gRPC in the middle of a call does not survive fork(). So a session takes a turn for each call, and a thread that forks by Python's
//! hooks waits for the turns of others to end; turns that would begin meanwhile wait for the fork. A thread never waits for
//! itself: a finalizer may fork in the middle of its own thread's turn.
//!
//! Pure books: threads are numbers. They are kept in the registry of `fork`, whose lock every fork of the process holds, so a
//! child finds them whole.

/// See the head of this file.
#[derive(Default)]
pub struct Gate {
    turns: Vec<usize>,
    forks: Vec<usize>,
    past_hooks: bool,
}

impl Gate {
    /// Nobody is inside.
    pub const fn new() -> Gate {
        Gate { turns: Vec::new(), forks: Vec::new(), past_hooks: false }
    }

    /// Begins a turn; false while others fork.
    pub fn begin_turn(&mut self, thread: usize) -> bool {
        let may = self.forks.iter().all(|other| *other == thread);
        if may {
            self.turns.push(thread);
        }
        may
    }

    /// Ends one.
    pub fn end_turn(&mut self, thread: usize) {
        remove(&mut self.turns, thread);
    }

    /// A fork is to come.
    pub fn begin_fork(&mut self, thread: usize) {
        self.forks.push(thread);
    }

    /// Whether no other thread has a turn.
    pub fn may_fork(&self, thread: usize) -> bool {
        self.turns.iter().all(|other| *other == thread)
    }

    /// The fork is over, and this is the parent.
    pub fn end_fork(&mut self, thread: usize) {
        remove(&mut self.forks, thread);
    }

    /// This process is the child: of its threads there is that one.
    pub fn become_child(&mut self, thread: usize) {
        self.past_hooks |= !self.forks.contains(&thread);
        self.turns.clear();
        self.forks.clear();
    }

    /// Whether a fork on the way to this process came at a moment at which somebody may have had a turn.
    pub fn is_past_hooks(&self) -> bool {
        self.past_hooks
    }

    /// Whether a thread has a turn, or is in the middle of a fork: it must not wait for others who want one.
    pub fn is_inside(&self, thread: usize) -> bool {
        self.turns.contains(&thread) || self.forks.contains(&thread)
    }
}

fn remove(threads: &mut Vec<usize>, thread: usize) {
    if let Some(at) = threads.iter().position(|other| *other == thread) {
        threads.swap_remove(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forks_and_turns_exclude_each_other_but_not_a_thread_itself() {
        let mut gate = Gate::new();
        assert!(gate.begin_turn(1) && gate.begin_turn(2));
        gate.begin_fork(1);
        assert!(!gate.may_fork(1) && !gate.begin_turn(3) && gate.begin_turn(1));
        gate.end_turn(2);
        assert!(gate.may_fork(1) && gate.is_inside(1) && !gate.is_inside(3));
        gate.end_fork(1);
        assert!(gate.begin_turn(3));
    }

    #[test]
    fn a_child_knows_whether_its_fork_waited() {
        let mut gate = Gate::new();
        gate.begin_turn(2);
        gate.end_turn(2);
        gate.begin_fork(1);
        gate.become_child(1);
        assert!(!gate.is_past_hooks() && !gate.is_inside(1));
        gate.begin_turn(2);
        gate.become_child(1);
        assert!(gate.is_past_hooks() && gate.begin_turn(1));
        gate.begin_fork(1);
        gate.become_child(1);
        assert!(gate.is_past_hooks(), "for good");
    }
}
