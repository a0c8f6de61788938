//! Shared-memory objects, seen through their descriptors: size, holes, room. How they are made: `made`.

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, fstat, ftruncate, seek};
use rustix::io::{Errno, pread, pwritev, retry_on_intr};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};

/// The object's size in bytes.
pub fn size(object: BorrowedFd<'_>) -> io::Result<usize> {
    Ok(fstat(object)?.st_size.max(0) as usize)
}

/// The object's size and what the kernel has allocated to it, in bytes, at one moment.
pub fn extent(object: BorrowedFd<'_>) -> io::Result<(usize, usize)> {
    let found = fstat(object)?;
    Ok((found.st_size.max(0) as usize, found.st_blocks.max(0) as usize * 512))
}

/// Whether what is written to a hole of the object gets a huge page, and not a page: on a tmpfs with huge=always, say.
pub fn gives_huge_pages(object: BorrowedFd<'_>) -> bool {
    fstat(object).is_ok_and(|stat| stat.st_blksize.max(0) as usize > crate::page::page_size())
}

/// Whether the object belongs to the user that this process is now.
pub fn is_ours(object: BorrowedFd<'_>) -> bool {
    let user = rustix::process::geteuid().as_raw();
    fstat(object).is_ok_and(|stat| stat.st_uid == user)
}

/// Whether the object has a name.
pub fn is_linked(object: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(fstat(object)?.st_nlink > 0)
}

/// Gives the memory of a range back; it reads as zeros from then on. The size stays.
pub fn punch(object: BorrowedFd<'_>, offset: usize, bytes: usize) -> io::Result<()> {
    // Bytes of a file change, of which no reference exists: mappings of objects are reached by system calls, FFI and
    // volatile reads only. That nobody needs the bytes (I4) is a rule of the books, and not one of Rust's.
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(retry_on_intr(|| fallocate(object, mode, offset as u64, bytes as u64))?)
}

/// Sets memory aside for a range that is a hole; it goes on reading as zeros. A signal ends it: tmpfs begins again from the
/// start then, so the range is to be small. A part may be reserved if it fails.
pub fn reserve(object: BorrowedFd<'_>, offset: usize, bytes: usize) -> io::Result<()> {
    Ok(fallocate(object, FallocateFlags::empty(), offset as u64, bytes as u64)?)
}

/// Sets the object's size; what is added is a hole.
pub fn resize(object: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    Ok(retry_on_intr(|| ftruncate(object, bytes as u64))?)
}

/// Where the first memory is from `offset` on, None if there is nothing but a hole up to the end. Touches nothing.
pub fn next_data(object: BorrowedFd<'_>, offset: usize) -> io::Result<Option<usize>> {
    seek_to(object, SeekFrom::Data(offset as u64))
}

/// Whether there is memory in a range, without a lock that somebody else could hold. Memory that was reserved and never
/// written counts, where `next_data` takes it for a hole. None: this kernel does not tell (before 6.5, or a filter).
///
/// `next_data` waits for a process that writes to the object at this moment, and that takes as long as the writer wants.
pub fn is_present(object: BorrowedFd<'_>, offset: usize, bytes: usize) -> Option<bool> {
    const CACHESTAT: libc::c_long = 451; // as on all architectures
    let range = [offset as u64, bytes as u64];
    let mut pages = [0u64; 5]; // in the cache, dirty, under writeback, evicted (swapped out), evicted lately
    // SAFETY: the kernel reads the two numbers of the range and writes the five of the answer.
    let result = unsafe { libc::syscall(CACHESTAT, object.as_raw_fd(), range.as_ptr(), pages.as_mut_ptr(), 0) };
    (result == 0).then_some(pages[0] + pages[3] > 0)
}

/// Where the first hole is from `offset` on, which may be the end; None from the end on.
pub fn next_hole(object: BorrowedFd<'_>, offset: usize) -> io::Result<Option<usize>> {
    seek_to(object, SeekFrom::Hole(offset as u64))
}

/// The file offset that this moves is used by nobody: reads and writes name theirs.
fn seek_to(object: BorrowedFd<'_>, place: SeekFrom) -> io::Result<Option<usize>> {
    match seek(object, place) {
        Ok(found) => Ok(Some(found as usize)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Marks pages from `offset` on as absent that have no memory; all of them where that cannot be found out.
pub fn strike_holes(object: BorrowedFd<'_>, offset: usize, present: &mut [bool]) {
    let page = crate::page::page_size();
    let mut at = 0;
    while at < present.len() {
        // Both ends are rounded so that a page counts as absent if any part of it is.
        let Ok(Some(hole)) = next_hole(object, offset + at * page) else { return present[at..].fill(false) };
        let first = ((hole - offset) / page).min(present.len());
        let data = next_data(object, hole).ok().flatten().unwrap_or(usize::MAX);
        let end = data.saturating_sub(offset).div_ceil(page).clamp(first, present.len());
        present[first..end].fill(false);
        at = end.max(at + 1);
    }
}

/// Whether the page at `offset` has memory, and is no hole.
pub fn is_data(object: BorrowedFd<'_>, offset: usize) -> io::Result<bool> {
    Ok(next_data(object, offset)? == Some(offset))
}

/// The bytes of a range in pieces, in order: where each begins, how many bytes it has, and those bytes; none for a hole.
/// Holes are not touched, so nothing is allocated and a full tmpfs is no fault. A piece starts and ends on a page.
///
/// # Errors
/// The object cannot be read, or there is no memory for a copy.
pub fn pieces(object: BorrowedFd<'_>, offset: usize, bytes: usize) -> io::Result<Vec<(usize, usize, Vec<u8>)>> {
    let end = offset + bytes;
    let (mut found, mut at) = (Vec::new(), offset);
    while at < end {
        let data = next_data(object, at)?.map_or(end, |data| data.min(end));
        if data > at {
            found.push((at, data - at, Vec::new()));
            at = data;
            continue;
        }
        let hole = next_hole(object, at)?.map_or(end, |hole| hole.min(end));
        let mut copy = super::zeroed::zeroed::<u8>(hole - at).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut done = 0;
        while done < copy.len() {
            match read(object, &mut copy[done..], at + done)? {
                0 => break, // the object ends here, and the rest reads as zeros
                n => done += n,
            }
        }
        found.push((at, hole - at, copy));
        at = hole;
    }
    Ok(found)
}

/// Reads at `offset` without touching holes. Returns how many bytes: fewer at the end of the object.
pub fn read(object: BorrowedFd<'_>, buffer: &mut [u8], offset: usize) -> io::Result<usize> {
    Ok(retry_on_intr(|| pread(object, &mut *buffer, offset as u64))?)
}

/// Writes at most 1024 slices one behind the other from `offset` on. Returns how many bytes: fewer when memory runs out.
pub fn write(object: BorrowedFd<'_>, slices: &[IoSlice<'_>], offset: usize) -> io::Result<usize> {
    Ok(retry_on_intr(|| pwritev(object, slices, offset as u64))?)
}

/// An object without a name, for tests.
#[cfg(test)]
pub fn anonymous() -> std::os::fd::OwnedFd {
    rustix::fs::memfd_create(c"test", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd_create")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn presence_is_told_without_waiting_for_a_writer() {
        let page = crate::page::page_size();
        let object = anonymous();
        resize(object.as_fd(), 1 << 40).unwrap();
        write(object.as_fd(), &[IoSlice::new(&vec![7; page])], 1 << 39).unwrap();
        if is_present(object.as_fd(), 0, page).is_none() {
            return; // the kernel is older
        }
        let told = |offset: usize, bytes: usize| is_present(object.as_fd(), offset, bytes);
        assert_eq!((told(0, 1 << 39), told(0, (1 << 39) + page)), (Some(false), Some(true)));
        assert_eq!((told(1 << 39, page), told((1 << 39) + page, 1 << 39)), (Some(true), Some(false)));
    }

    #[test]
    fn pieces_tell_data_from_holes_and_allocate_nothing() {
        // What was pinned at a fork was copied through its mapping: 64 MiB of holes became 64 MiB of memory.
        let page = crate::page::page_size();
        let object = anonymous();
        resize(object.as_fd(), 1 << 26).unwrap();
        write(object.as_fd(), &[IoSlice::new(&vec![7; page])], 2 * page).unwrap();
        let file = std::fs::File::from(object.try_clone().unwrap());
        let before = file.metadata().unwrap().blocks();
        let found = pieces(object.as_fd(), page, 8 * page).unwrap();
        assert_eq!(found, [(page, page, vec![]), (2 * page, page, vec![7; page]), (3 * page, 6 * page, vec![])]);
        assert_eq!(pieces(object.as_fd(), 0, 1 << 26).unwrap().len(), 3);
        assert_eq!(file.metadata().unwrap().blocks(), before);
        assert_eq!(pieces(object.as_fd(), 0, 0).unwrap(), []);
    }
}
