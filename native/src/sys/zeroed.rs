//! Large columns of zeros that cost memory only where they are written, and whose want is an error, not the end.

use std::alloc::{Layout, alloc_zeroed};

/// Plain numbers, for which all zeros is 0.
pub trait Number: Copy + private::Sealed {}
impl Number for u8 {}
impl Number for u32 {}
impl Number for u64 {}

mod private {
    pub trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
}

/// So many zeros, None if there is no memory for them. The kernel gives large ones page by page, when they are written.
pub fn zeroed<T: Number>(count: usize) -> Option<Vec<T>> {
    if count == 0 {
        return Some(Vec::new());
    }
    let layout = Layout::array::<T>(count).ok()?;
    // SAFETY: the layout has a size, for `count` is not 0 and numbers have one.
    let memory = unsafe { alloc_zeroed(layout) }.cast::<T>();
    if memory.is_null() {
        return None;
    }
    // SAFETY: the global allocator made it just now with the layout of `count` elements, and nobody else has it. All of
    // them are initialised: zeros are a value of these types, which the trait is sealed to.
    Some(unsafe { Vec::from_raw_parts(memory, count, count) })
}

/// Has large columns stand apart from the heap from now on. The C library learns by what is freed to take them from there,
/// where it writes the zeros itself: then they cost memory at once.
pub fn keep_large_apart() {
    #[cfg(target_env = "gnu")]
    // SAFETY: changes how memory is found, under the allocator's own locks.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 18)
    };
}

/// Gives memory of the heap that is free back to the kernel, where the C library can.
pub fn give_back_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: touches free memory only, under the allocator's own locks.
    unsafe {
        libc::malloc_trim(0)
    };
}
