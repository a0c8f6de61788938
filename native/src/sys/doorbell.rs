//! A named POSIX semaphore, rung without touching its memory.
//!
//! sem_post stores to the semaphore; if its owner has truncated the file behind it, that is SIGBUS for the ringing process.
//! futex(FUTEX_WAKE_OP) does the same work inside the kernel, which answers EFAULT. It sets the value to 1 rather than
//! adding to it, so that rings coalesce. glibc keeps the value in the first 32-bit word on little-endian machines and
//! in the second on big-endian ones, and its waiters wait on that word.
//!
//! After a fork both processes have the mapping and share the semaphore.

use super::check;
use super::sched::clock;
use rustix::fs::{Mode, OFlags, fstat, open};
use std::ffi::CString;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

const WORD: usize = if cfg!(target_endian = "little") { 0 } else { 1 };
const FUTEX_WAKE_OP: libc::c_int = 5;
const FUTEX_OP_SET: u32 = 0;
const FUTEX_OP_CMP_EQ: u32 = 0;

unsafe extern "C" {
    // glibc 2.30; not in the libc crate. Monotonic time: a clock that is set back must not delay a ring.
    fn sem_clockwait(sem: *mut libc::sem_t, clock: libc::clockid_t, until: *const libc::timespec) -> libc::c_int;
}

/// An open doorbell.
pub struct Doorbell {
    address: usize,
    bytes: usize,
}

impl Doorbell {
    /// Opens the semaphore of this name, which has its leading slash. It has to belong to `owner`, if one is named: what
    /// was looked at by its name before may be another file by now.
    pub fn open(name: &str, owner: Option<u32>) -> io::Result<Doorbell> {
        let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why.to_owned());
        let bare = name.strip_prefix('/').ok_or_else(|| invalid("a doorbell's name begins with a slash"))?;
        if bare.is_empty() || bare.contains('/') {
            return Err(invalid("a doorbell's name has one slash, its first character"));
        }
        let path = CString::new(format!("/dev/shm/sem.{bare}")).map_err(|_| invalid("a doorbell's name has no NUL"))?;
        // NOFOLLOW: the name may be a hostile link. NONBLOCK: or a pipe.
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = open(&path, flags, Mode::empty())?;
        let stat = fstat(&fd)?;
        let bytes = size_of::<libc::sem_t>();
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG || (stat.st_size as usize) < bytes {
            return Err(invalid("this is no semaphore"));
        }
        if owner.is_some_and(|owner| owner != stat.st_uid) {
            return Err(io::Error::from_raw_os_error(libc::EACCES));
        }
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, prot, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Doorbell { address: at as usize, bytes })
    }

    /// Rings. False if the semaphore cannot be rung any more (its owner broke it).
    pub fn ring(&self) -> bool {
        let word = (self.address as *mut u32).wrapping_add(WORD);
        let operation = (FUTEX_OP_SET << 28) | (FUTEX_OP_CMP_EQ << 24) | (1 << 12);
        // SAFETY: both addresses are the word of our own mapping; the kernel accesses it and reports a fault as
        // EFAULT. The fourth argument is a count for this operation.
        let result = unsafe { libc::syscall(libc::SYS_futex, word, FUTEX_WAKE_OP, 1, 0usize, word, operation) };
        result >= 0
    }

    /// Waits until it rings, and takes the ring. False after `timeout`.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let mut until = clock(libc::CLOCK_MONOTONIC);
        let nanos = until.tv_nsec + libc::c_long::from(timeout.subsec_nanos() as i32);
        until.tv_sec += timeout.as_secs().min(1 << 30) as libc::time_t + nanos / 1_000_000_000;
        until.tv_nsec = nanos % 1_000_000_000;
        loop {
            // SAFETY: the mapping holds a semaphore that sem_open initialised, and lives as long as self.
            let result = unsafe { sem_clockwait(self.address as *mut _, libc::CLOCK_MONOTONIC, &until) };
            match check(result) {
                Ok(_) => return Ok(true),
                Err(error) => match error.raw_os_error() {
                    Some(libc::ETIMEDOUT) => return Ok(false),
                    Some(libc::EINTR) => {}
                    _ => return Err(error),
                },
            }
        }
    }
}

impl Drop for Doorbell {
    fn drop(&mut self) {
        // SAFETY: mapped by `open`; nobody waits on it, as waiting borrows self.
        unsafe { libc::munmap(self.address as *mut _, self.bytes) };
    }
}
