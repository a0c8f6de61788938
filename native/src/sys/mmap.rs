//! Mappings: a client's view over its segment, and a pool to read.
//!
//! ```text
//!   view  [ shared segment | private frames | private zero page | shared segment ]   one fixed address range
//!   pool  [ read-only, for comparing                                             ]   moves when the pool grows
//! ```
//!
//! All functions that replace a part of a view do it with one mmap(MAP_FIXED): a reader sees the old bytes or the new
//! mapping's, never a gap.

use super::object::Object;
use super::pagemap::{Pagemap, ZeroPage};
use super::{check, shm};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

/// An address range that is reserved for a view until it is dropped. After a fork each process owns its copy.
pub struct ViewRange {
    address: usize,
    bytes: usize,
}

impl ViewRange {
    /// Maps `bytes` of a segment, shared and writable, wherever there is room.
    pub fn map_segment(segment: BorrowedFd<'_>, bytes: usize) -> io::Result<ViewRange> {
        let address = map(ptr::null_mut(), bytes, RW, libc::MAP_SHARED, segment.as_raw_fd(), 0)?;
        let range = ViewRange { address, bytes };
        range.keep_small(0, bytes);
        Ok(range)
    }

    /// The address of byte `offset`.
    ///
    /// # Panics
    /// If the offset lies beyond the range.
    pub fn at(&self, offset: usize) -> usize {
        assert!(offset <= self.bytes, "offset {offset} beyond a view of {} bytes", self.bytes);
        self.address + offset
    }

    /// Whether other addresses all lie inside of it.
    pub fn covers(&self, address: usize, bytes: usize) -> bool {
        address.checked_sub(self.address).is_some_and(|at| at.saturating_add(bytes) <= self.bytes)
    }

    /// Maps a part to the segment itself, shared and writable.
    pub fn map_shared(&self, offset: usize, bytes: usize, segment: BorrowedFd<'_>) -> io::Result<()> {
        self.replace(offset, bytes, libc::MAP_SHARED, segment.as_raw_fd(), offset)?;
        self.keep_small(offset, bytes);
        Ok(())
    }

    /// Maps a part to the segment privately: each process keeps what it writes to itself.
    pub fn map_frozen(&self, offset: usize, bytes: usize, segment: BorrowedFd<'_>) -> io::Result<()> {
        self.replace(offset, bytes, libc::MAP_PRIVATE | libc::MAP_NORESERVE, segment.as_raw_fd(), offset)
    }

    /// Maps a part to frames, privately: a write copies.
    pub fn map_frames(&self, offset: usize, bytes: usize, pool: BorrowedFd<'_>, pool_offset: usize) -> io::Result<()> {
        // NORESERVE: a frame costs no commit charge until it is written, as the segment's page did not either.
        self.replace(offset, bytes, libc::MAP_PRIVATE | libc::MAP_NORESERVE, pool.as_raw_fd(), pool_offset)
    }

    /// Maps a part to the zero page, privately: a write copies.
    pub fn map_zero(&self, offset: usize, bytes: usize) -> io::Result<()> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        self.replace(offset, bytes, flags, -1, 0)?;
        self.keep_small(offset, bytes);
        Ok(())
    }

    /// Where huge pages are "always" on, for anonymous memory or by the mount option of a tmpfs, a written byte would cost
    /// 2 MiB; and two ranges that differ in the flag could not become one mapping, so it is set on all. Without
    /// CONFIG_TRANSPARENT_HUGEPAGE it is EINVAL.
    fn keep_small(&self, offset: usize, bytes: usize) {
        // SAFETY: the range was mapped just now and lies inside of this view.
        let _ = unsafe { libc::madvise(self.at(offset) as *mut _, bytes, libc::MADV_NOHUGEPAGE) };
    }

    /// # Panics
    /// If a part is not wholly inside of the range.
    fn assert_holds(&self, offset: usize, bytes: usize) {
        assert!(is_inside(offset, bytes, self.bytes), "{bytes} bytes at {offset} are beyond a view of {}", self.bytes);
    }

    fn replace(&self, offset: usize, bytes: usize, flags: i32, fd: i32, fd_offset: usize) -> io::Result<()> {
        self.assert_holds(offset, bytes);
        let wanted = self.at(offset) as *mut libc::c_void;
        let got = map(wanted, bytes, RW, flags | libc::MAP_FIXED, fd, fd_offset)?;
        assert_eq!(got, wanted as usize, "MAP_FIXED maps where it is told");
        Ok(())
    }

    /// Which pages of a part that map the segment are in memory; of others, nothing is to be concluded. Reading one that is
    /// not would allocate it, or fail with SIGBUS if that is not possible.
    pub fn resident(&self, offset: usize, bytes: usize, segment: BorrowedFd<'_>) -> Vec<bool> {
        self.assert_holds(offset, bytes);
        resident(self.at(offset), bytes, segment, offset)
    }

    /// A copy of a part, made by the kernel; None if there is no memory for it, or the kernel refuses.
    ///
    /// It reads through the mapping, and so allocates what is a hole of a segment: for what cannot be had by `shm::read`.
    pub fn copy_out(&self, offset: usize, bytes: usize) -> Option<Vec<u8>> {
        self.assert_holds(offset, bytes);
        let mut copy = super::zeroed::zeroed::<u8>(bytes)?;
        let mut done = 0;
        while done < bytes {
            let to = libc::iovec { iov_base: copy[done..].as_mut_ptr().cast(), iov_len: bytes - done };
            let from = libc::iovec { iov_base: self.at(offset + done) as *mut _, iov_len: bytes - done };
            // SAFETY: the kernel writes at most `bytes - done` bytes to the rest of the vector, which nobody else has. It
            // reads the other range by itself, so a writer is no data race of ours, and a page that cannot be had (a full
            // tmpfs) is EFAULT, where a load would be SIGBUS.
            let n = unsafe { libc::process_vm_readv(libc::getpid(), &raw const to, 1, &raw const from, 1, 0) };
            match n {
                1.. => done += n as usize,
                _ if n < 0 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                _ => return None,
            }
        }
        Some(copy)
    }

    /// Writes a copy back. For a child that has just been forked, whose only thread this is.
    pub fn copy_in(&self, offset: usize, copy: &[u8]) {
        self.assert_holds(offset, copy.len());
        // SAFETY: the range is mapped and writable, apart from the copy, and nobody else is there to look at it.
        unsafe { std::ptr::copy_nonoverlapping(copy.as_ptr(), self.at(offset) as *mut u8, copy.len()) };
    }

    /// Leaves a part out of the next forks' children, or no longer. A child that touches what it was not given faults.
    pub fn set_inheritable(&self, offset: usize, bytes: usize, inheritable: bool) {
        self.assert_holds(offset, bytes);
        let advice = if inheritable { libc::MADV_DOFORK } else { libc::MADV_DONTFORK };
        // SAFETY: the range belongs to this view; the advice changes nothing in this process.
        unsafe { libc::madvise(self.at(offset) as *mut _, bytes, advice) };
    }

    /// Whether every page of a part is mapped, to whatever.
    pub fn is_mapped(&self, offset: usize, bytes: usize) -> bool {
        self.assert_holds(offset, bytes);
        // Not mincore, which filters of system calls forbid. MS_ASYNC has written nothing since Linux 2.6.19.
        // SAFETY: it looks at mappings only.
        let result = unsafe { libc::msync(self.at(offset) as *mut _, bytes, libc::MS_ASYNC) };
        result == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ENOMEM)
    }

    /// Whether the bytes of a part equal those at `other`, which is a mapping of at least `bytes` bytes.
    pub fn equals(&self, offset: usize, bytes: usize, other: &ReadMapping, other_offset: usize) -> bool {
        self.assert_holds(offset, bytes);
        assert!(is_inside(other_offset, bytes, other.bytes), "a compare beyond a mapping");
        let (a, b) = (self.at(offset), other.address + other_offset);
        // SAFETY: both ranges are mapped and readable for `bytes` (asserted above; a view is never unmapped in parts).
        // Other threads may write to the view; memcmp then sees one or the other byte, which the caller rules out by
        // holding writes. No Rust reference to the bytes is ever made.
        unsafe { libc::memcmp(a as *const _, b as *const _, bytes) == 0 }
    }

    /// Whether a part holds nothing but zeros.
    pub fn is_zero(&self, offset: usize, bytes: usize) -> bool {
        self.assert_holds(offset, bytes);
        assert!(offset.is_multiple_of(8) && bytes.is_multiple_of(8), "zeros are looked for by the word");
        let start = self.at(offset) as *const u64;
        // SAFETY: the range is mapped and readable, a view begins on a page, and both numbers are multiples of a word
        // (asserted). Volatile reads race with writers only where the caller does not hold writes, and any value is a valid u64.
        (0..bytes / 8).all(|i| unsafe { start.add(i).read_volatile() } == 0)
    }

    /// Reads a byte of every page of a part, so that each has an entry in the page table.
    pub fn touch(&self, offset: usize, bytes: usize) {
        self.assert_holds(offset, bytes);
        for at in (offset..offset + bytes).step_by(crate::page::page_size()) {
            // SAFETY: as in `is_zero`.
            let _ = unsafe { (self.at(at) as *const u8).read_volatile() };
        }
    }

    /// Has the kernel write `bytes` bytes of a file's beginning into a part, as read(2) into a buffer does.
    #[cfg(test)]
    pub fn load_for_test(&self, offset: usize, bytes: usize, file: BorrowedFd<'_>) {
        // SAFETY: the range is mapped and writable; tests look at it through raw pointers only.
        let n = unsafe { libc::pread(file.as_raw_fd(), self.at(offset) as *mut _, bytes, 0) };
        assert_eq!(n, bytes as isize);
    }

    /// Writes a part's bytes to the same place of a file. Returns how many bytes were written before an error.
    ///
    /// pwrite, not a store through a mapping: a full tmpfs is then ENOSPC and not SIGBUS.
    pub fn save(&self, offset: usize, bytes: usize, file: BorrowedFd<'_>) -> (usize, Option<io::Error>) {
        self.assert_holds(offset, bytes);
        if shm::gives_huge_pages(file) {
            allocate_small(offset, bytes, file);
        }
        let mut done = 0;
        while done < bytes {
            let from = self.at(offset + done) as *const libc::c_void;
            // SAFETY: the kernel reads at most `bytes - done` bytes from a range that is mapped (asserted above); it
            // reports a fault as EFAULT.
            let n = unsafe { libc::pwrite(file.as_raw_fd(), from, bytes - done, (offset + done) as libc::off_t) };
            match n {
                1.. => done += n as usize,
                0 => return (done, Some(io::Error::from_raw_os_error(libc::ENOSPC))),
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return (done, Some(error)),
                },
            }
        }
        (done, None)
    }
}

impl Drop for ViewRange {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map_segment`, and only parts of it were replaced since. No reference to its bytes
        // was ever made: addresses are handed out as numbers, and who makes a pointer of one (`pybuffer::fill`, an unsafe
        // function) has to keep this range.
        unsafe { libc::munmap(self.address as *mut _, self.bytes) };
    }
}

/// An object on whose open file description a lock is held.
///
/// The lock lasts as long as anybody refers to the description: by a descriptor or by a mapping. A forked child inherits
/// both, but one that becomes a daemon closes all its descriptors, while it goes on mapping frames; hence the mapping.
pub struct Lease {
    address: usize,
    _fd: Object,
}

impl Lease {
    /// Holds on to the description behind a descriptor.
    pub fn hold(fd: OwnedFd) -> io::Result<Lease> {
        let page = crate::page::page_size();
        // No access: the object may be empty, and nobody is to look at it.
        let address = map(ptr::null_mut(), page, libc::PROT_NONE, libc::MAP_SHARED, fd.as_raw_fd(), 0)?;
        Ok(Lease { address, _fd: Object::keep(fd) })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // SAFETY: mapped by `hold`, never handed out, never replaced.
        unsafe { libc::munmap(self.address as *mut _, crate::page::page_size()) };
    }
}

/// A read-only, shared mapping of the beginning of a file.
pub struct ReadMapping {
    address: usize,
    bytes: usize,
}

impl ReadMapping {
    /// Maps `bytes` of `file`, which is at least so long.
    pub fn map(file: BorrowedFd<'_>, bytes: usize) -> io::Result<ReadMapping> {
        let address = map(ptr::null_mut(), bytes, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)?;
        Ok(ReadMapping { address, bytes })
    }

    /// A page of zeros to compare with.
    pub fn zeros(bytes: usize) -> io::Result<ReadMapping> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        Ok(ReadMapping { address: map(ptr::null_mut(), bytes, libc::PROT_READ, flags, -1, 0)?, bytes })
    }

    /// Which pages of a part of `file` are in memory; see `ViewRange::resident`.
    pub fn resident(&self, offset: usize, bytes: usize, file: BorrowedFd<'_>) -> Vec<bool> {
        assert!(offset <= self.bytes && bytes <= self.bytes - offset, "a read beyond a mapping");
        resident(self.address + offset, bytes, file, offset)
    }

    /// Reads a byte of every page of a part, so that reading more of it faults no more. To read one that is not there would
    /// allocate it, or be SIGBUS where that is not possible.
    pub fn touch(&self, offset: usize, bytes: usize) {
        assert!(offset <= self.bytes && bytes <= self.bytes - offset, "a read beyond a mapping");
        for at in (offset..offset + bytes).step_by(crate::page::page_size()) {
            // SAFETY: the range is mapped and readable, its pages are there, and any value read is a valid u8.
            let _ = unsafe { ((self.address + at) as *const u8).read_volatile() };
        }
    }

    /// How many bytes it covers.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for ReadMapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, never handed out, never replaced.
        unsafe { libc::munmap(self.address as *mut _, self.bytes) };
    }
}

/// What mincore says, and where it would not tell, what the object says of its holes.
///
/// It tells nobody but the owner (and who may write: of a pool, nobody) what of a file is in memory: everybody else hears
/// that all of it is. A program that has become another user since it connected does not own its objects any more. Where a
/// filter forbids mincore (systemd's @system-service does) it tells nobody anything. To ask for holes costs 5 % of a merge,
/// so the owner does not. Asked before and after, as another thread may be changing that.
fn resident(address: usize, bytes: usize, object: BorrowedFd<'_>, offset: usize) -> Vec<bool> {
    let ours = shm::is_ours(object);
    let (mut present, told) = mincore(address, bytes);
    if !(told && ours && shm::is_ours(object)) {
        shm::strike_holes(object, offset, &mut present);
    }
    present
}

/// What the kernel says, and whether it does: if it does not, all of it may be there.
fn mincore(address: usize, bytes: usize) -> (Vec<bool>, bool) {
    let mut present = vec![0u8; bytes.div_ceil(crate::page::page_size())];
    // SAFETY: mincore looks at page tables and caches only, and fills one byte a page of the vector, which has so many.
    let failed = unsafe { libc::mincore(address as *mut _, bytes, present.as_mut_ptr()) } != 0;
    let errno = io::Error::last_os_error().raw_os_error();
    // These are the kernel's own refusals: nothing counts as present then. Whatever else there is comes from a filter.
    let kernels = [libc::ENOMEM, libc::EAGAIN, libc::EFAULT, libc::EINVAL].map(Some).contains(&errno);
    if failed {
        present.fill(u8::from(!kernels));
    }
    (present.into_iter().map(|byte| byte & 1 != 0).collect(), !failed)
}

/// Has the kernel allocate single pages to a file that a write would give huge ones. Where that cannot be (there is no
/// room, say) nothing has happened, and the write will tell.
fn allocate_small(offset: usize, bytes: usize, file: BorrowedFd<'_>) {
    let Ok(address) = map(ptr::null_mut(), bytes, RW, libc::MAP_SHARED, file.as_raw_fd(), offset) else { return };
    // SAFETY: the range was mapped just now, and nobody else knows it. Populating it touches no byte, and is an error where
    // a store would be SIGBUS.
    unsafe {
        libc::madvise(address as *mut _, bytes, libc::MADV_NOHUGEPAGE);
        libc::madvise(address as *mut _, bytes, libc::MADV_POPULATE_WRITE);
        libc::munmap(address as *mut _, bytes);
    }
}

/// Whether the kernel populates what it maps, unasked (mlockall with MCL_FUTURE): a frame that is mapped privately is a copy
/// at once then. Found out by mapping a page.
pub fn populates(pagemap: &Pagemap) -> bool {
    match ReadMapping::zeros(crate::page::page_size()) {
        Ok(page) => pagemap.copies(page.address, 1, ZeroPage::IsCopy).is_ok_and(|found| !found.runs.is_empty()),
        Err(error) => error.raw_os_error() == Some(libc::EAGAIN), // more than RLIMIT_MEMLOCK allows
    }
}

/// Whether `bytes` bytes at `offset` are inside of a range of `size`; no sum of them wraps.
fn is_inside(offset: usize, bytes: usize, size: usize) -> bool {
    offset <= size && bytes <= size - offset
}

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

fn map(at: *mut libc::c_void, bytes: usize, prot: i32, flags: i32, fd: i32, offset: usize) -> io::Result<usize> {
    // SAFETY: without MAP_FIXED the kernel picks free addresses; with it, `replace` has checked that the range lies in
    // a view that this process reserved for such replacement.
    let address = unsafe { libc::mmap(at, bytes, prot, flags, fd, offset as libc::off_t) };
    if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(address as usize) }
}

/// The most mappings a process may have; 65530 where the kernel does not say.
pub fn max_map_count() -> usize {
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
    text.trim().parse().unwrap_or(65530)
}

/// Duplicates a descriptor that the caller keeps, close-on-exec.
pub fn duplicate(fd: i32) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: fcntl with a number that is no open descriptor fails with EBADF.
    let copy = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: the kernel made the descriptor just now, and nobody else knows it.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(copy) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    fn view(pages: usize) -> (OwnedFd, ViewRange) {
        let segment = shm::anonymous();
        let bytes = pages * crate::page::page_size();
        shm::resize(segment.as_fd(), bytes).unwrap();
        let range = ViewRange::map_segment(segment.as_fd(), bytes).unwrap();
        (segment, range)
    }

    fn is_refused<R>(act: impl FnOnce() -> R) -> bool {
        catch_unwind(AssertUnwindSafe(act)).is_err()
    }

    #[test]
    fn no_sum_that_wraps_passes_for_a_part() {
        // Release builds wrap: offset + bytes was small, and the check passed.
        let (segment, range) = view(2);
        let page = crate::page::page_size();
        let other = ReadMapping::zeros(page).unwrap();
        for (offset, bytes) in [(8, usize::MAX - 7), (page, usize::MAX - page + 1), (0, 2 * page + 8), (3 * page, 0)] {
            let fd = segment.as_fd();
            assert!(is_refused(|| range.is_zero(offset, bytes)), "is_zero {offset} {bytes}");
            assert!(is_refused(|| range.equals(offset, bytes, &other, 0)), "equals {offset} {bytes}");
            assert!(is_refused(|| range.touch(offset, bytes)), "touch {offset} {bytes}");
            assert!(is_refused(|| range.save(offset, bytes, fd)), "save {offset} {bytes}");
            assert!(is_refused(|| range.copy_out(offset, bytes)), "copy_out {offset} {bytes}");
            assert!(is_refused(|| range.resident(offset, bytes, fd)), "resident {offset} {bytes}");
            assert!(is_refused(|| range.map_shared(offset, bytes, fd)), "map_shared {offset} {bytes}");
            assert!(is_refused(|| range.map_zero(offset, bytes)), "map_zero {offset} {bytes}");
            assert!(is_refused(|| range.is_mapped(offset, bytes)), "is_mapped {offset} {bytes}");
        }
        assert!(is_refused(|| range.equals(0, 8, &other, usize::MAX - 3)), "beyond the other mapping");
        assert!(is_refused(|| range.equals(0, page + 1, &other, 0)), "beyond the other mapping");
        assert!(is_refused(|| range.is_zero(4, 8)) && is_refused(|| range.is_zero(0, 12)), "by the word");
    }

    #[test]
    fn a_copy_has_the_bytes() {
        let (segment, range) = view(2);
        let page = crate::page::page_size();
        shm::write(segment.as_fd(), &[io::IoSlice::new(b"here")], page - 2).unwrap();
        let copy = range.copy_out(page - 4, 8).unwrap();
        assert_eq!(copy, b"\0\0here\0\0");
        assert_eq!(range.copy_out(0, 0), Some(Vec::new()));
    }
}
