//! Where memory comes from: small pieces from mimalloc, large ones from the C library.
//!
//! mimalloc takes half the time of the C library, which shows where a command makes hundreds of small pieces. What is
//! large, as output on its way, is made by one thread and freed by another; of that mimalloc gives back little while the
//! first one is busy: 64 tasks that wrote 2 GiB left 2 GiB with it, and 0.3 GiB with the C library.

use std::alloc::{GlobalAlloc, Layout, System};

use mimalloc::MiMalloc;

/// From here on a piece is large, bytes.
const LARGE: usize = 16 << 10;

/// Chooses by size.
pub(crate) struct BySize;

const fn is_large(size: usize) -> bool {
    size >= LARGE
}

#[allow(unsafe_code)] // An allocator is unsafe by its contract, which this one hands on.
// SAFETY: whoever frees or resizes a piece gives the layout that it was made with, so it goes back to where it came from.
unsafe impl GlobalAlloc for BySize {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe {
            match is_large(layout.size()) {
                true => System.alloc(layout),
                false => MiMalloc.alloc(layout),
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe {
            match is_large(layout.size()) {
                true => System.alloc_zeroed(layout),
                false => MiMalloc.alloc_zeroed(layout),
            }
        }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        // SAFETY: as above, and the piece is from the allocator that its layout stands for.
        unsafe {
            match is_large(layout.size()) {
                true => System.dealloc(piece, layout),
                false => MiMalloc.dealloc(piece, layout),
            }
        }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above; a piece that changes sides is copied as far as both are long.
        unsafe {
            match (is_large(layout.size()), is_large(size)) {
                (true, true) => System.realloc(piece, layout, size),
                (false, false) => MiMalloc.realloc(piece, layout, size),
                _ => {
                    let other = Layout::from_size_align_unchecked(size, layout.align());
                    let moved = self.alloc(other);
                    if !moved.is_null() {
                        moved.copy_from_nonoverlapping(piece, size.min(layout.size()));
                        self.dealloc(piece, layout);
                    }
                    moved
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    /// The tests of this program are run by this allocator as well.
    #[test]
    fn what_grows_and_shrinks_over_the_border_stays_what_it_was() {
        let mut bytes: Vec<u8> = Vec::new();
        for round in 0..40_000_usize {
            bytes.push((round % 251) as u8);
        }
        bytes.truncate(1_000);
        bytes.shrink_to_fit();
        bytes.extend(vec![0; 100_000]);
        let kept = bytes.iter().take(1_000).enumerate();
        assert!(kept.clone().count() == 1_000);
        for (place, byte) in kept {
            assert_eq!(usize::from(*byte), place % 251);
        }
        assert!(bytes[1_000..].iter().all(|byte| *byte == 0));
    }
}
