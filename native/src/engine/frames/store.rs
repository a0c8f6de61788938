//! The pool's file, as its owner sees it: frames are written once between being allocated and released; a released
//! frame is punched before its number is used again, so a frame reads as written and free frames cost no memory. The
//! file never shrinks.

use crate::engine::frames::allocator::Allocator;
use crate::page::{bytes, page_size};
use crate::sys::shm;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};

/// A pool whose size is more than so many times what it holds, and more than so many frames, is not taken over: a client can
/// make one up. One of a server's own that shrank so far is lost by that; its clients take their memory back, and merge anew.
const SPARSE: usize = 256;
const SMALL: usize = 1 << 16;

/// Pages of an object from before that are read at once.
const RECOVERED: usize = 64;

/// See the head of this file.
pub struct Store {
    fd: OwnedFd,
    numbers: Allocator,
}

impl Store {
    /// Takes over a descriptor, open for reading and writing, of an empty object, or of one to `recover`.
    /// `limit`: most frames, used or not.
    pub fn new(fd: OwnedFd, limit: u32) -> Store {
        Store { fd, numbers: Allocator::new(limit) }
    }

    /// Takes over what the object holds from before: the pages that are no holes are in use, and named to `each` with
    /// their bytes, in order.
    pub fn recover(&mut self, mut each: impl FnMut(u32, &[u8])) -> io::Result<()> {
        // One look: the object's owner may change its size at any moment, and books take memory by size.
        let (size, allocated) = shm::extent(self.fd.as_fd())?;
        let numbers = u32::try_from(size / page_size()).unwrap_or(u32::MAX);
        let plausible = SPARSE.saturating_mul(allocated / page_size()).saturating_add(SMALL);
        if numbers as usize > plausible || !self.numbers.recover(numbers) {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        let mut buffer = vec![0; bytes(RECOVERED)];
        let (mut at, all) = (0, bytes(numbers as usize));
        while at < all
            && let Some(data) = shm::next_data(self.fd.as_fd(), at)?.filter(|&data| data < all)
        {
            let end = shm::next_hole(self.fd.as_fd(), data)?.unwrap_or(data).min(all);
            if end <= data {
                at = data + page_size(); // it was punched meanwhile; a page is never looked at twice
                continue;
            }
            at = data;
            while at < end {
                let want = (end - at).min(buffer.len());
                let read = shm::read(self.fd.as_fd(), &mut buffer[..want], at)? / page_size();
                for (n, page) in buffer.chunks_exact(page_size()).take(read).enumerate() {
                    let frame = (at / page_size() + n) as u32;
                    self.numbers.take_frame(frame);
                    each(frame, page);
                }
                if read == 0 {
                    return Ok(()); // it was cut off meanwhile
                }
                at += bytes(read);
            }
        }
        Ok(())
    }

    /// Takes a free frame number, `near` itself if that is free; otherwise one with room for a run behind it.
    pub fn allocate(&mut self, near: Option<u32>) -> io::Result<u32> {
        let frame = match near.filter(|&frame| self.numbers.is_free(frame)) {
            Some(frame) => frame,
            None => self.start_of_run()?,
        };
        self.numbers.take_frame(frame);
        Ok(frame)
    }

    /// Writes frames that were allocated and never written, `pages` to neighbours from `first` on.
    ///
    /// Returns how many were written whole before it failed, and why it did.
    pub fn write(&mut self, first: u32, pages: &[&[u8]]) -> (usize, Option<io::Error>) {
        let mut written = 0;
        while written < pages.len() {
            // A frame that was written in part is written again, whole: bytes are the same.
            let slices: Vec<IoSlice<'_>> = pages[written..].iter().map(|page| IoSlice::new(page)).collect();
            match shm::write(self.fd.as_fd(), &slices, bytes(first as usize + written)) {
                Ok(count) if count >= page_size() => written += count / page_size(),
                // tmpfs takes what fits; that even a page does not is its way to be full.
                Ok(_) => return (written, Some(io::Error::from_raw_os_error(libc::ENOSPC))),
                Err(error) => return (written, Some(error)),
            }
        }
        (written, None)
    }

    /// Gives a frame up; `flush` gives its memory back. A batch that is full is flushed here.
    ///
    /// The number stays out of use until it has been punched. Should the kernel refuse that, it is tried again.
    pub fn release(&mut self, frame: u32) {
        if self.numbers.release(frame) {
            let _ = self.flush();
        }
    }

    /// Punches the frames released so far, neighbours with one call.
    pub fn flush(&mut self) -> io::Result<()> {
        let mut waiting = self.numbers.take_released();
        let mut done = Ok(());
        while let Some(&first) = waiting.last() {
            let follows = |(n, frame): (usize, &u32)| *frame == first + n as u32;
            let count = waiting.iter().rev().enumerate().take_while(|&pair| follows(pair)).count();
            done = shm::punch(self.fd.as_fd(), bytes(first as usize), bytes(count));
            if done.is_err() {
                break;
            }
            waiting.truncate(waiting.len() - count);
            self.numbers.give_back(first, count as u32);
        }
        self.numbers.put_back(waiting);
        done
    }

    /// Numbers of frames in use, in order.
    pub fn used(&self) -> Vec<u32> {
        self.numbers.used().collect()
    }

    /// Which numbers are in use, and which are free. For audits.
    pub fn numbers(&self) -> &Allocator {
        &self.numbers
    }

    /// The first frame from here on with memory behind it. For audits.
    pub fn next_data(&self, frame: u32) -> Option<u32> {
        let found = shm::next_data(self.fd.as_fd(), bytes(frame as usize)).ok()??;
        u32::try_from(found / page_size()).ok()
    }

    /// Reads a frame. Whether there was all of it. For audits.
    pub fn read(&self, frame: u32, buffer: &mut [u8]) -> bool {
        shm::read(self.fd.as_fd(), buffer, bytes(frame as usize)).is_ok_and(|read| read == buffer.len())
    }

    pub fn bookkeeping_bytes(&self) -> usize {
        self.numbers.bookkeeping_bytes()
    }

    /// Counts again, and looks whether free frames are holes.
    pub fn check(&self) -> Result<(), String> {
        self.numbers.check()?;
        let size = shm::size(self.fd.as_fd()).map_err(|error| format!("size of the pool: {error}"))?;
        if size != bytes(self.numbers.numbers() as usize) {
            return Err("the pool's file has another size than the books".into());
        }
        let mut page = 0;
        while let Ok(Some(offset)) = shm::next_data(self.fd.as_fd(), bytes(page)) {
            let frame = offset / page_size();
            if self.numbers.is_free(frame as u32) {
                return Err(format!("memory behind the free frame {frame}"));
            }
            page = frame + 1;
        }
        Ok(())
    }

    fn start_of_run(&mut self) -> io::Result<u32> {
        if !self.numbers.has_long_gap() && !self.grow()? && !self.numbers.has_gap() {
            self.flush()?;
        }
        self.numbers.start_of_run().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))
    }

    fn grow(&mut self) -> io::Result<bool> {
        let Some(numbers) = self.numbers.growth() else { return Ok(false) };
        shm::resize(self.fd.as_fd(), bytes(numbers as usize))?;
        self.numbers.grow(numbers);
        Ok(true)
    }
}
