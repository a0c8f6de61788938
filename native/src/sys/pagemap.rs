//! Which pages of a private mapping this process has written: /proc/self/pagemap.
//!
//! A page that the kernel copied on write is anonymous; one that still maps a frame is a file's, and one that maps the
//! zero page is that. PAGEMAP_SCAN (Linux 6.7) answers in ranges at about 1.5 ns a page; before it the entries are
//! read one by one. The descriptor belongs to the process that opened it: after a fork a child must not use it.

use super::object::Object;
use super::{check, shm};
use crate::page::{Run, page_size};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

const PAGEMAP_SCAN: libc::c_ulong = 0xC060_6610;
const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
const PAGE_IS_WPALLOWED: u64 = 1 << 0;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;

const ENTRY_PRESENT: u64 = 1 << 63;
const ENTRY_SWAPPED: u64 = 1 << 62;
const ENTRY_FILE: u64 = 1 << 61;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// This process's pagemap.
pub struct Pagemap {
    file: Object,
    scan: bool,
}

/// Whether a page that maps the zero page counts as a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroPage {
    /// It does: in a mapping of a file, only the kernel's KSM can have put it there, in place of a copy.
    IsCopy,
    /// It does not: it was merged with the zero page.
    IsNone,
}

/// Pages that may be private copies.
pub struct Copies {
    /// Runs of pages, counted from the address that was asked for.
    pub runs: Vec<Run>,
    /// False where untouched zero pages may be among them: the caller looks at the bytes.
    pub exact: bool,
}

impl Pagemap {
    /// Opens it; `allow_scan` false leaves PAGEMAP_SCAN unused.
    pub fn open(allow_scan: bool) -> io::Result<Pagemap> {
        let file = File::open("/proc/self/pagemap")?;
        let mut pagemap = Pagemap { file: Object::keep(file.into()), scan: allow_scan };
        if allow_scan {
            // Ask about the page of a local variable; kernels without the ioctl say ENOTTY.
            let here = std::ptr::from_ref(&pagemap) as usize & !(page_size() - 1);
            pagemap.scan = pagemap.scan_ranges(here, 1, ZeroPage::IsNone).is_ok();
        }
        Ok(pagemap)
    }

    /// Whether PAGEMAP_SCAN is used.
    pub fn scans(&self) -> bool {
        self.scan
    }

    /// Which of `pages` pages from `address` on are private copies.
    pub fn copies(&self, address: usize, pages: usize, zero: ZeroPage) -> io::Result<Copies> {
        if self.scan {
            Ok(Copies { runs: self.scan_ranges(address, pages, zero)?, exact: true })
        } else {
            Ok(Copies { runs: self.read_entries(address, pages)?, exact: false })
        }
    }

    /// Which of `pages` pages from `address` on were written since the last such question, where an asynchronous
    /// userfaultfd is registered; protects them, so that the next question finds what is written from now on.
    ///
    /// Pages that were never touched are not among them, and stay unprotected: to touch one is to write it.
    pub fn written(&self, address: usize, pages: usize) -> io::Result<Vec<Run>> {
        let query = ScanArgument {
            flags: PM_SCAN_WP_MATCHING,
            category_mask: PAGE_IS_WPALLOWED | PAGE_IS_WRITTEN,
            // Without this, untouched pages count as written where their page table is there.
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_WRITTEN,
            ..ScanArgument::default()
        };
        self.scan(address, pages, query)
    }

    fn scan_ranges(&self, address: usize, pages: usize, zero: ZeroPage) -> io::Result<Vec<Run>> {
        let others = match zero {
            ZeroPage::IsCopy => PAGE_IS_FILE,
            ZeroPage::IsNone => PAGE_IS_FILE | PAGE_IS_PFNZERO,
        };
        let query = ScanArgument {
            // neither a file's page nor (as a rule) the zero page ...
            category_inverted: others,
            category_mask: others,
            // ... but there. A page that is being migrated counts as swapped, and so does one that a window
            // protects and that was never touched.
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_PRESENT,
            ..ScanArgument::default()
        };
        self.scan(address, pages, query)
    }

    fn scan(&self, address: usize, pages: usize, query: ScanArgument) -> io::Result<Vec<Run>> {
        let mut regions = [Region::default(); 512]; // never empty: an empty vector has crashed kernels
        let end = (address + pages * page_size()) as u64;
        let mut start = address as u64;
        let mut runs: Vec<Run> = Vec::new();
        while start < end {
            let mut argument = ScanArgument {
                size: size_of::<ScanArgument>() as u64,
                start,
                end,
                vec: regions.as_mut_ptr() as u64,
                vec_len: regions.len() as u64,
                ..query
            };
            // SAFETY: the argument is the structure that the number encodes, and its vector is `regions`, of just that
            // length, alive for the call. What flags may change is protection that the kernel takes off by itself.
            let found = check(unsafe { libc::ioctl(self.file.as_fd().as_raw_fd(), PAGEMAP_SCAN as _, &mut argument) })?;
            for region in &regions[..found as usize] {
                let first = (region.start as usize - address) / page_size();
                let count = (region.end - region.start) as usize / page_size();
                match runs.last_mut() {
                    Some(last) if last.end() == first => last.count += count,
                    _ => runs.push(Run { first, count }),
                }
            }
            if argument.walk_end <= start {
                break; // no progress: nothing more to be had
            }
            start = argument.walk_end;
        }
        Ok(runs)
    }

    fn read_entries(&self, address: usize, pages: usize) -> io::Result<Vec<Run>> {
        let there = ENTRY_PRESENT | ENTRY_SWAPPED;
        let mut buffer = [0u8; 8 * 1024];
        let mut runs: Vec<Run> = Vec::new();
        let mut page = 0;
        while page < pages {
            let want = (pages - page).min(buffer.len() / 8);
            let offset = (address / page_size() + page) * 8;
            let mut done = 0;
            while done < want * 8 {
                match shm::read(self.file.as_fd(), &mut buffer[done..want * 8], offset + done)? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    read => done += read,
                }
            }
            for (i, bytes) in buffer[..want * 8].chunks_exact(8).enumerate() {
                let entry = u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
                if entry & there != 0 && entry & ENTRY_FILE == 0 {
                    match runs.last_mut() {
                        Some(last) if last.end() == page + i => last.count += 1,
                        _ => runs.push(Run { first: page + i, count: 1 }),
                    }
                }
            }
            page += want;
        }
        Ok(runs)
    }
}
