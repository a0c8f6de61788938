//! userfaultfd in write-protect mode: how writes are held.
//!
//! Nobody reads events from it. A writer that meets a protected page sleeps in the kernel until the window that
//! protected it ends and wakes it, and then tries again. If the descriptor is closed, the kernel wakes everybody.
//! A forked child has the descriptor but not the registrations.

use super::check;
use super::object::Object;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

// From <linux/userfaultfd.h>; libc has no ioctls of it.
const UFFD_USER_MODE_ONLY: libc::c_int = 1;
const UFFD_API: u64 = 0xAA;
const UFFDIO_API: libc::c_ulong = 0xC018_AA3F;
const UFFDIO_REGISTER: libc::c_ulong = 0xC020_AA00;
const UFFDIO_UNREGISTER: libc::c_ulong = 0x8010_AA01;
const UFFDIO_WAKE: libc::c_ulong = 0x8010_AA02;
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xC018_AA06;
const USERFAULTFD_IOC_NEW: libc::c_ulong = 0xAA00;
const MODE_WP: u64 = 1 << 1; // UFFDIO_REGISTER_MODE_WP
const WRITEPROTECT_MODE_WP: u64 = 1 << 0;

/// Write-protection at all.
pub const FEATURE_WP: u64 = 1 << 0;
/// Write-protection of shared memory.
pub const FEATURE_WP_SHMEM: u64 = 1 << 12;
/// Write-protection of anonymous pages that were never touched.
pub const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
/// The kernel resolves write-protection itself.
pub const FEATURE_WP_ASYNC: u64 = 1 << 15;

/// Whose writes a userfaultfd holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The program's and those that the kernel makes for it.
    Full,
    /// The program's only; a system call that writes gets EFAULT.
    UserMode,
}

/// Where a userfaultfd came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// userfaultfd(2).
    Syscall,
    /// /dev/userfaultfd, whose file mode decides who may.
    Device,
}

/// A userfaultfd, its API agreed upon.
pub struct Uffd {
    fd: Object,
    features: u64,
}

impl Uffd {
    /// Opens one with those of `wanted` features that the kernel has.
    pub fn open(scope: Scope, wanted: u64) -> io::Result<(Uffd, Source)> {
        let (probe, _) = new(scope)?;
        let available = agree(&probe, 0)?; // an API call without features tells which there are; a second is refused
        let (fd, source) = new(scope)?;
        let features = available & wanted;
        agree(&fd, features)?;
        Ok((Uffd { fd: Object::keep(fd), features }, source))
    }

    /// The features that the kernel offers.
    pub fn available(scope: Scope) -> io::Result<(u64, Source)> {
        let (probe, source) = new(scope)?;
        Ok((agree(&probe, 0)?, source))
    }

    /// Whether a feature was agreed upon.
    pub fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Makes a range one whose writes can be held. Splits mappings at its ends.
    pub fn register(&self, address: usize, bytes: usize) -> io::Result<()> {
        #[repr(C)]
        struct Register {
            range: Range,
            mode: u64,
            ioctls: u64,
        }
        let mut argument = Register { range: Range::new(address, bytes), mode: MODE_WP, ioctls: 0 };
        self.ioctl(UFFDIO_REGISTER, &mut argument)
    }

    /// Holds writes to a registered range from now on, or lets them go and wakes who waits.
    pub fn protect(&self, address: usize, bytes: usize, hold: bool) -> io::Result<()> {
        #[repr(C)]
        struct WriteProtect {
            range: Range,
            mode: u64,
        }
        let mode = if hold { WRITEPROTECT_MODE_WP } else { 0 };
        loop {
            let mut argument = WriteProtect { range: Range::new(address, bytes), mode };
            match self.ioctl(UFFDIO_WRITEPROTECT, &mut argument) {
                // EAGAIN: the mappings of this process are being changed by somebody else at this moment (a fork).
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::hint::spin_loop(),
                done => return done,
            }
        }
    }

    /// Undoes `register` and takes protection off. Wakes nobody: see `wake`.
    pub fn unregister(&self, address: usize, bytes: usize) -> io::Result<()> {
        self.ioctl(UFFDIO_UNREGISTER, &mut Range::new(address, bytes))
    }

    /// Wakes writers that wait for a range; they try again.
    pub fn wake(&self, address: usize, bytes: usize) -> io::Result<()> {
        self.ioctl(UFFDIO_WAKE, &mut Range::new(address, bytes))
    }

    fn ioctl<T>(&self, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
        // SAFETY: each request above is passed the structure that its number encodes; the kernel reads and writes only
        // that. The ranges named belong to views, which outlive the call; changing protection changes no bytes.
        check(unsafe { libc::ioctl(self.fd.as_fd().as_raw_fd(), request as _, argument as *mut T) }).map(drop)
    }
}

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

impl Range {
    fn new(address: usize, bytes: usize) -> Range {
        Range { start: address as u64, len: bytes as u64 }
    }
}

fn agree(fd: &OwnedFd, features: u64) -> io::Result<u64> {
    #[repr(C)]
    struct Api {
        api: u64,
        features: u64,
        ioctls: u64,
    }
    let mut argument = Api { api: UFFD_API, features, ioctls: 0 };
    // SAFETY: UFFDIO_API takes this structure and fills it.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API as _, &mut argument) })?;
    Ok(argument.features)
}

fn new(scope: Scope) -> io::Result<(OwnedFd, Source)> {
    // CLOEXEC: no program that we start has a say in our faults. NONBLOCK: reads, if anybody made one, would not hang.
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let mode = if scope == Scope::UserMode { UFFD_USER_MODE_ONLY } else { 0 };
    // SAFETY: userfaultfd takes flags only.
    let by_syscall = check(unsafe { libc::syscall(libc::SYS_userfaultfd, flags | mode) as libc::c_int });
    match by_syscall {
        // SAFETY: the kernel made the descriptor just now.
        Ok(fd) => Ok((unsafe { OwnedFd::from_raw_fd(fd) }, Source::Syscall)),
        Err(refused) if scope == Scope::Full => match from_device(flags) {
            Ok(fd) => Ok((fd, Source::Device)),
            Err(_) => Err(refused),
        },
        Err(refused) => Err(refused),
    }
}

fn from_device(flags: libc::c_int) -> io::Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd")?;
    // SAFETY: USERFAULTFD_IOC_NEW takes flags by value and returns a descriptor.
    let fd = check(unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW as _, flags) })?;
    // SAFETY: the kernel made the descriptor just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
