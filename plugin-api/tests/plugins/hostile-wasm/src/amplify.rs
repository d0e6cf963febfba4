//! A little memory that is handed out as if it were much.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    mem::ManuallyDrop,
};

use crate::bindings::{exports::keystead::backend::plugin::Listing, keystead::backend::types::Key};

/// From this size on, memory is never given back: several may own it.
const KEPT: usize = 4096;

struct Keeping;

// SAFETY: the system's allocator does it all, but for what is never freed, which is always allowed.
unsafe impl GlobalAlloc for Keeping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if layout.size() < KEPT {
            // SAFETY: promised by the caller.
            unsafe { System.dealloc(memory, layout) }
        }
    }
}

#[global_allocator]
static KEEPING: Keeping = Keeping;

/// The same bytes, so many times, in the memory of one where they are not few.
pub(crate) fn copies(count: usize, len: usize) -> Vec<Vec<u8>> {
    if len < KEPT {
        return vec![vec![b'x'; len]; count];
    }
    let mut one = ManuallyDrop::new(vec![b'x'; len]);
    let memory = one.as_mut_ptr();
    // SAFETY: the memory is initialised and never freed, and nobody writes to it any more.
    (0..count).map(|_| unsafe { Vec::from_raw_parts(memory, len, len) }).collect()
}

/// A listing of keys with the same public half.
pub(crate) fn listing(count: usize, len: usize) -> Listing {
    let key = |(number, spki): (usize, Vec<u8>)| Key {
        id: format!("{number}").into_bytes(),
        spki,
        label: String::new(),
        algorithms: Vec::new(),
    };
    Listing { keys: copies(count, len).into_iter().enumerate().map(key).collect(), findings: Vec::new() }
}
