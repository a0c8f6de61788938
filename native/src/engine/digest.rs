//! XXH3-64 of a page, seeded so that nobody can prepare collisions. What python-xxhash calls `xxh3_64_intdigest`.

use crate::page::page_size;
use twox_hash::XxHash3_64;

/// Digests with one seed.
#[derive(Clone, Copy)]
pub struct Digester {
    seed: u64,
    /// The digest of a page of zeros.
    pub zero: u64,
}

impl Digester {
    pub fn new(seed: u64) -> Digester {
        Digester { seed, zero: XxHash3_64::oneshot_with_seed(seed, &vec![0; page_size()]) }
    }

    pub fn digest(&self, page: &[u8]) -> u64 {
        XxHash3_64::oneshot_with_seed(self.seed, page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_reference() {
        // xxhash.xxh3_64_intdigest(bytes(n % 251 for n in range(4096)), seed), python-xxhash 3.6
        let page: Vec<u8> = (0..4096u32).map(|n| (n % 251) as u8).collect();
        for (seed, expected) in DIGESTS {
            assert_eq!(Digester::new(seed).digest(&page), expected, "seed {seed}");
        }
    }

    const DIGESTS: [(u64, u64); 3] =
        [(0, 0x7135_ffa5_04f1_bc71), (1, 0x15a6_b456_e8dc_f716), (u64::MAX, 0x039e_b698_c0de_41cb)];
}
