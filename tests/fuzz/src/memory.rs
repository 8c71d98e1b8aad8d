//! Allocations of this program, counted and limited: a parser that takes a length from its input for a size to allocate dies here.
//!
//! The counts are the program's, not a thread's: whoever measures is alone in it, as a fuzz target is.

use std::alloc::System;

use cap::Cap;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// Allocated before anything depends on an input: error values, first blocks of vectors.
const BASE_BYTES: usize = 4 << 10;

/// Does `work` on an input of `input_bytes`; the program aborts when it holds more than `factor` times that, and a little.
pub fn bounded<T>(input_bytes: usize, factor: usize, work: impl FnOnce() -> T) -> T {
    let limit = ALLOCATOR.allocated() + BASE_BYTES + factor * input_bytes;
    assert!(
        ALLOCATOR.set_limit(limit).is_ok(),
        "somebody else allocates"
    );
    let result = work();
    assert!(ALLOCATOR.set_limit(usize::MAX).is_ok());
    result
}

/// What `work` allocates altogether, freed or not.
pub fn allocated_by<T>(work: impl FnOnce() -> T) -> usize {
    let before = ALLOCATOR.total_allocated();
    let result = work();
    let allocated = ALLOCATOR.total_allocated() - before;
    drop(result);
    allocated
}
