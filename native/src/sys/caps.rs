//! What this kernel and this user offer, found out by trying. The one place that probes.

use super::pagemap::Pagemap;
use super::uffd::{FEATURE_WP, FEATURE_WP_ASYNC, FEATURE_WP_SHMEM, FEATURE_WP_UNPOPULATED, Scope, Source, Uffd};

/// The findings.
#[derive(Clone, Debug)]
pub struct Features {
    /// Whose writes a userfaultfd of ours would hold; None if there is none to be had.
    pub scope: Option<Scope>,
    /// Where it comes from.
    pub source: Option<Source>,
    /// Why there is none that holds all writes; empty if there is.
    pub error: String,
    /// Shared memory can be write-protected.
    pub wp_shmem: bool,
    /// Untouched anonymous pages can be.
    pub wp_unpopulated: bool,
    /// The kernel can resolve protection itself.
    pub wp_async: bool,
    /// There is PAGEMAP_SCAN.
    pub pagemap_scan: bool,
    /// Most mappings of a process.
    pub max_map_count: usize,
}

/// Probes; features named in `disabled` count as absent.
pub fn probe(disabled: &[String]) -> Features {
    let off = |name: &str| disabled.iter().any(|d| d == name);
    let disabled_error = || Err(std::io::Error::other("disabled by request"));
    let full = if off("uffd") { disabled_error() } else { Uffd::available(Scope::Full) };
    let error = full.as_ref().err().map(ToString::to_string).unwrap_or_default();
    let found = match full {
        Ok((features, source)) => Some((Scope::Full, features, source)),
        Err(_) if off("user") => None,
        Err(_) => Uffd::available(Scope::UserMode).ok().map(|(features, source)| (Scope::UserMode, features, source)),
    };
    let features = found.map_or(0, |(_, features, _)| features);
    let has = |feature: u64| features & feature != 0;
    Features {
        scope: found.map(|(scope, ..)| scope),
        source: found.map(|(.., source)| source),
        error,
        wp_shmem: has(FEATURE_WP) && has(FEATURE_WP_SHMEM),
        wp_unpopulated: has(FEATURE_WP_UNPOPULATED) && !off("wp_unpopulated"),
        wp_async: has(FEATURE_WP_ASYNC) && !off("wp_async"),
        pagemap_scan: !off("pagemap_scan") && Pagemap::open(true).is_ok_and(|pagemap| pagemap.scans()),
        max_map_count: super::mmap::max_map_count(),
    }
}
