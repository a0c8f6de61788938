//! Making shared-memory objects of this process's own.
//!
//! Names are what `pagefold_proto.shm_names` says: `/pagefold-s-<32 hex>`, and a shared flock for as long as anybody refers to the
//! object. A sweep may come between creating and locking: hence the look whether it is still linked, and then another try.

use super::flock;
use super::shm::{self, resize};
use super::{check, retry};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// A sweep has to hit the instant between two system calls; this many times in a row it is no accident.
const ATTEMPTS: usize = 100;

/// Not executable, and sealed against becoming so (Linux 6.3); vm.memfd_noexec=2 refuses any other. It allows sealing.
const MFD_NOEXEC_SEAL: libc::c_uint = 0x8;

/// The size is fixed for good: nobody who opens the object can make a store to it SIGBUS. And nobody can add
/// F_SEAL_FUTURE_WRITE, with which pages could no longer be given back.
const SEALS: libc::c_int = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

/// A new name for a segment: 128 random bits.
pub fn new_name() -> io::Result<String> {
    let mut random = [0u8; 16];
    let got = retry(|| {
        // SAFETY: the kernel writes at most 16 bytes to an array of 16.
        let got = unsafe { libc::getrandom(random.as_mut_ptr().cast(), random.len(), 0) };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    })?;
    assert_eq!(got, random.len(), "getrandom gives small requests whole");
    Ok(random.iter().fold("/pagefold-s-".into(), |name, byte| format!("{name}{byte:02x}")))
}

/// A POSIX shared-memory object of so many bytes under a new name. They read as zeros and cost nothing.
pub fn named(bytes: usize) -> io::Result<(String, OwnedFd)> {
    for _ in 0..ATTEMPTS {
        let name = new_name()?;
        let path = CString::new(name.as_str()).expect("digits");
        // SAFETY: the name is a C string that lives through the call.
        let opened = check(unsafe {
            libc::shm_open(path.as_ptr(), libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC, 0o600)
        });
        let fd = match opened {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            // SAFETY: the kernel made the descriptor just now, and nobody else knows it.
            opened => unsafe { OwnedFd::from_raw_fd(opened?) },
        };
        let made = flock::share(&fd).and_then(|()| {
            let linked = shm::is_linked(fd.as_fd())?;
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
    let shown = CString::new(&name[1..]).expect("digits");
    // SAFETY: the name is a C string that lives through the call.
    let make = |flags| check(unsafe { libc::memfd_create(shown.as_ptr(), libc::MFD_CLOEXEC | flags) });
    let fd = make(MFD_NOEXEC_SEAL).or_else(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => make(libc::MFD_ALLOW_SEALING),
        _ => Err(error),
    })?;
    // SAFETY: the kernel made the descriptor just now, and nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    mode(&fd)?;
    resize(fd.as_fd(), bytes)?;
    // SAFETY: takes numbers.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, SEALS) })?;
    Ok((name, fd))
}

/// Takes a name away; it is fine if it is gone already.
pub fn unlink(name: &str) {
    if let Ok(path) = CString::new(name) {
        // SAFETY: the name is a C string that lives through the call.
        unsafe { libc::shm_unlink(path.as_ptr()) };
    }
}

/// For its owner alone, whatever the umask.
fn mode(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: takes numbers.
    check(unsafe { libc::fchmod(fd.as_raw_fd(), 0o600) }).map(drop)
}
