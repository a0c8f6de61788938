//! Making shared-memory objects of this process's own.
//!
//! Names are what `pagefold_proto.shm_names` says: `/pagefold-s-<32 hex>`, and a shared flock for as long as anybody refers to the
//! object. A sweep may come between creating and locking: hence the look whether it is still linked, and then another try.

use super::flock;
use super::shm::{is_linked, resize};
use rustix::fs::{MemfdFlags, Mode, SealFlags, fchmod, fcntl_add_seals, memfd_create};
use rustix::io::{Errno, retry_on_intr};
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::shm::{self, OFlags};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// A sweep has to hit the instant between two system calls; this many times in a row it is no accident.
const ATTEMPTS: usize = 100;

/// For their owner alone.
const OWNERS: Mode = Mode::RUSR.union(Mode::WUSR);

/// The size is fixed for good: nobody who opens the object can make a store to it SIGBUS. And nobody can add
/// F_SEAL_FUTURE_WRITE, with which pages could no longer be given back.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// A new name for a segment: 128 random bits.
pub fn new_name() -> io::Result<String> {
    let mut random = [0u8; 16];
    let got = retry_on_intr(|| getrandom(&mut random, GetRandomFlags::empty()))?;
    assert_eq!(got, random.len(), "getrandom gives small requests whole");
    Ok(random.iter().fold("/pagefold-s-".into(), |name, byte| format!("{name}{byte:02x}")))
}

/// A POSIX shared-memory object of so many bytes under a new name. They read as zeros and cost nothing.
pub fn named(bytes: usize) -> io::Result<(String, OwnedFd)> {
    for _ in 0..ATTEMPTS {
        let name = new_name()?;
        let fd = match shm::open(&name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, OWNERS) {
            Err(Errno::EXIST) => continue,
            opened => opened?, // close-on-exec, as always
        };
        let made = flock::share(&fd).and_then(|()| {
            let linked = is_linked(fd.as_fd())?;
            if linked {
                mode(&fd)?;
                resize(fd.as_fd(), bytes)?;
            }
            Ok(linked)
        });
        match made {
            Ok(true) => return Ok((name, fd)),
            Ok(false) => {}
            Err(error) => {
                unlink(&name);
                if error.kind() != io::ErrorKind::WouldBlock {
                    return Err(error);
                } // else a sweep has just locked it, to find out whose it is
            }
        }
    }
    Err(io::Error::from_raw_os_error(libc::EAGAIN))
}

/// A memfd of so many bytes, whose size is fixed. It shows as /memfd:pagefold-s-..., by which the server knows it.
pub fn unnamed(bytes: usize) -> io::Result<(String, OwnedFd)> {
    let name = new_name()?;
    let make = |flags| memfd_create(&name[1..], MemfdFlags::CLOEXEC | flags);
    // Not executable, and sealed against becoming so (Linux 6.3); vm.memfd_noexec=2 refuses any other. It allows sealing.
    let fd = make(MemfdFlags::NOEXEC_SEAL).or_else(|error| match error {
        Errno::INVAL => make(MemfdFlags::ALLOW_SEALING),
        _ => Err(error),
    })?;
    mode(&fd)?;
    resize(fd.as_fd(), bytes)?;
    fcntl_add_seals(&fd, SEALS)?;
    Ok((name, fd))
}

/// Takes a name away; it is fine if it is gone already.
pub fn unlink(name: &str) {
    let _ = shm::unlink(name);
}

/// For its owner alone, whatever the umask.
fn mode(fd: &OwnedFd) -> io::Result<()> {
    Ok(fchmod(fd, OWNERS)?)
}
