//! Sharing work among threads: tasks are numbered, each writes its own part of the output, and what a task computes
//! does not depend on who runs it. Results are therefore the same for any number of threads.

use rayon::prelude::*;
use std::{marker::PhantomData, mem::MaybeUninit};

/// Runs `task(0)`, …, `task(count - 1)`, on all threads where there is more than one task.
pub(crate) fn for_each_task(count: usize, task: impl Fn(usize) + Sync + Send) {
    if count == 1 {
        task(0);
    } else {
        (0..count).into_par_iter().with_max_len(1).for_each(task);
    }
}

/// `len` numbers in parts of `part`, the last one shorter: `task(i, numbers)` gets part i as zeros and leaves what it shall
/// hold. Zeros are written part by part, just before they are used, which spares a pass through memory.
pub(crate) fn filled(len: usize, part: usize, task: impl Fn(usize, &mut [f32]) + Sync + Send) -> Vec<f32> {
    let mut all: Box<[MaybeUninit<f32>]> = Box::new_uninit_slice(len);
    let parts = all.par_chunks_mut(part.max(1)).with_max_len(1).enumerate();
    parts.for_each(|(i, numbers)| {
        numbers.fill(MaybeUninit::new(0.0));
        // SAFETY: all of these were written just now.
        task(i, unsafe { &mut *(std::ptr::from_mut(numbers) as *mut [f32]) });
    });
    // SAFETY: the parts are all of it, and each was written.
    unsafe { all.assume_init() }.into_vec()
}

/// A slice that several tasks write, each its own elements.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `slice` alone, whose callers promise disjoint ranges.
unsafe impl<T: Send> Sync for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(elements: &'a mut [T]) -> Self {
        Shared { start: elements.as_mut_ptr(), len: elements.len(), life: PhantomData }
    }

    /// Elements `from..from + len`. Panics beyond the end.
    ///
    /// # Safety
    /// No two live slices may overlap.
    #[allow(clippy::mut_from_ref, reason = "this is the point: disjoint parts for parallel tasks")]
    pub(crate) unsafe fn slice(&self, from: usize, len: usize) -> &'a mut [T] {
        assert!(from.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: within the slice that `new` borrowed for 'a; the caller keeps parts disjoint.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }
}
