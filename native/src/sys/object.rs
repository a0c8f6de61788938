//! A descriptor that is kept for long, in a process of somebody else's.
//!
//! Programs close descriptors that they do not know (daemon libraries close all of them), and the number is another file's
//! soon after. To write, map or close by that number would damage that file. So each use looks first whether the number
//! still is the object that it was, by device, inode and kind. What is left is the instant between look and use, in a
//! program that closes and opens descriptors in another thread just then.

use rustix::fs::{FileType, fstat};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// No process has a descriptor with this number: the kernel's most (fs.nr_open) is 64 below it. Every call fails with EBADF.
const NOBODYS: i32 = i32::MAX;

/// Device, inode, kind of file.
type Identity = (u64, u64, FileType);

/// A kept descriptor. A forked child has a copy of its own.
pub struct Object {
    fd: ManuallyDrop<OwnedFd>,
    identity: Option<Identity>,
}

impl Object {
    /// Takes a descriptor over.
    pub fn keep(fd: OwnedFd) -> Object {
        let identity = identify(fd.as_fd());
        Object { fd: ManuallyDrop::new(fd), identity }
    }

    /// The number, for others to open the object by.
    pub fn number(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// Whether the number still is this object.
    pub fn is_there(&self) -> bool {
        self.identity.is_some() && identify(self.fd.as_fd()) == self.identity
    }
}

impl AsFd for Object {
    /// The descriptor; once its number is somebody else's, one with which every call fails (EBADF).
    fn as_fd(&self) -> BorrowedFd<'_> {
        if self.is_there() {
            return self.fd.as_fd();
        }
        // SAFETY: it is not -1. It is not open, and so no file of anybody's is reached by it: the kernel answers EBADF.
        unsafe { BorrowedFd::borrow_raw(NOBODYS) }
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        if self.is_there() {
            // SAFETY: this is the only drop, and the field is not used after it.
            unsafe { ManuallyDrop::drop(&mut self.fd) };
        }
    }
}

/// A number that somebody else in this process keeps open for the object. A child of fork has a copy of it that nobody there
/// knows of, and that would hold the object's locks.
pub struct Lent {
    number: i32,
    identity: Option<Identity>,
}

impl Lent {
    /// Notes a number.
    pub fn note(number: i32) -> Lent {
        Lent { number, identity: identify_number(number) }
    }

    /// In a child: closes the copy, if it still is that object.
    pub fn close(self) {
        if self.identity.is_some() && identify_number(self.number) == self.identity {
            // SAFETY: the number is open, for the object that it was noted for; the keeper of it is in another process.
            unsafe { libc::close(self.number) };
        }
    }
}

fn identify(fd: BorrowedFd<'_>) -> Option<Identity> {
    let stat = fstat(fd).ok()?;
    Some((stat.st_dev, stat.st_ino, FileType::from_raw_mode(stat.st_mode)))
}

fn identify_number(number: i32) -> Option<Identity> {
    // SAFETY: it is not -1. It is looked at for one call, which fails if it is not open, and changes nothing if it is.
    (number >= 0).then(|| unsafe { BorrowedFd::borrow_raw(number) }).and_then(identify)
}

#[cfg(test)]
mod tests {
    use super::super::shm;
    use super::*;

    #[test]
    fn a_number_that_is_another_files_now_is_neither_used_nor_closed() {
        let object = Object::keep(shm::anonymous());
        let number = object.as_fd().as_raw_fd();
        assert!(object.is_there() && shm::resize(object.as_fd(), 4096).is_ok());
        let other = shm::anonymous();
        // SAFETY: dup2 is told two numbers that are open in this test.
        assert_eq!(unsafe { libc::dup2(other.as_raw_fd(), number) }, number);
        assert!(!object.is_there());
        assert_eq!(shm::resize(object.as_fd(), 4096).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(shm::size(other.as_fd()).unwrap(), 0);
        drop(object);
        assert!(identify_number(number).is_some(), "it is somebody else's to close");
        // SAFETY: the number was made by this test's dup2, and nobody else has it.
        unsafe { libc::close(number) };
    }

    #[test]
    fn a_kept_descriptor_is_closed_with_it() {
        let object = Object::keep(shm::anonymous());
        let number = object.as_fd().as_raw_fd();
        let before = identify_number(number);
        drop(object);
        assert_ne!(identify_number(number), before);
    }
}
