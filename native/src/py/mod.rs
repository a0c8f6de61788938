//! The thin layer that Python sees. Its manual is `native/python/pagefold_core/_native.pyi`.
//!
//! Everything that takes a lock, makes a system call or may wait for a window runs with the GIL released.

mod arena;
mod block;
mod calls;
mod doorbell;
mod ending;
mod engine;
#[cfg(feature = "faults")]
mod faults;
mod features;
mod files;
mod fork;
mod handle;
mod settles;
mod space;
mod thread;

use pyo3::prelude::*;

#[pymodule]
mod _native {
    #[cfg(feature = "faults")]
    #[pymodule_export]
    use super::arena::pretend_room;
    #[pymodule_export]
    use super::arena::{Arena, NotBacked, Pin, Segment, make_object, memory_room, span, spare_pages};
    #[pymodule_export]
    use super::block::Block;
    #[pymodule_export]
    use super::doorbell::Doorbell;
    #[pymodule_export]
    use super::ending::{Ending, Lifeline, end_all};
    #[pymodule_export]
    use super::engine::Engine;
    #[cfg(feature = "faults")]
    #[pymodule_export]
    use super::faults::{arm_fault, disarm_faults, fault_points, faults_passed};
    #[pymodule_export]
    use super::features::{Features, probe};
    #[pymodule_export]
    use super::files::punch_hole;
    #[pymodule_export]
    use super::fork::{
        Turn, after_fork_in_parent, before_fork, can_attach, fork_troubles, hold_signals_over_forks, is_inherited,
    };
    #[pymodule_export]
    use super::handle::Space;
    #[pymodule_export]
    use super::settles::{Settles, Waiting};
    #[pymodule_export]
    use super::space::{Counts, Events, WindowStats};
    #[pymodule_export]
    use super::thread::{Answer, Work, call, can_start, start_act};

    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("PAGE_SIZE", crate::page::page_size())
    }
}
