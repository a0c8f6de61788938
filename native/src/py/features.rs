//! What the kernel offers.

use crate::page::page_size;
use crate::sys::caps;
use crate::sys::uffd::{Scope, Source};
use pyo3::prelude::*;

/// See `_native.pyi`.
#[pyclass(frozen, get_all, module = "pagefold_core")]
pub struct Features {
    page_size: usize,
    userfaultfd: &'static str,
    userfaultfd_source: &'static str,
    userfaultfd_error: String,
    wp_shmem: bool,
    wp_unpopulated: bool,
    wp_async: bool,
    pagemap_scan: bool,
    max_map_count: usize,
}

/// See `_native.pyi`.
#[pyfunction]
#[pyo3(signature = (disabled = Vec::new()))]
#[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts owned values")]
pub fn probe(py: Python<'_>, disabled: Vec<String>) -> Features {
    let found = py.detach(|| caps::probe(&disabled));
    Features {
        page_size: page_size(),
        userfaultfd: match found.scope {
            Some(Scope::Full) => "full",
            Some(Scope::UserMode) => "user-mode",
            None => "none",
        },
        userfaultfd_source: match found.source {
            Some(Source::Syscall) => "syscall",
            Some(Source::Device) => "device",
            None => "",
        },
        userfaultfd_error: found.error,
        wp_shmem: found.wp_shmem,
        wp_unpopulated: found.wp_unpopulated,
        wp_async: found.wp_async,
        pagemap_scan: found.pagemap_scan,
        max_map_count: found.max_map_count,
    }
}
