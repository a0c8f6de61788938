//! Every system call, each behind a function that says what it means. The only place with `unsafe` but `py::block`,
//! where Python asks for a buffer; the compiler refuses it elsewhere (`deny(unsafe_code)`).
//!
//! rustix makes the calls that cannot harm memory; it makes them itself, and so allocates nothing and takes no lock of the C
//! library's, which a handler of fork must not. The others are libc's.
//!
//! What is kept here is descriptors and mappings, each in an owned guard, the one value of a `ForkLock`, and a thread's
//! slice of time (`sched`). What a fork does to them is said at each type.

pub mod atfork;
pub mod caps;
pub mod doorbell;
pub mod event;
pub mod flock;
pub mod forklock;
pub mod limits;
pub mod made;
pub mod mmap;
pub mod object;
pub mod page_size;
pub mod pagemap;
#[cfg(feature = "python")]
pub mod pybuffer;
pub mod sched;
pub mod shm;
pub mod signals;
pub mod statvfs;
pub mod thread;
pub mod uffd;
pub mod zeroed;

use std::io;

/// Has this process killed, as the kernel or an operator does: nothing is cleared up.
#[cfg(feature = "faults")]
pub fn kill_this_process() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    loop {
        std::thread::park();
    }
}

/// Turns a system call's -1 into the errno.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
