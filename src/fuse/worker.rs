//! What each thread that serves requests has of its own.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::stack::Stack;

thread_local! {
    static PREPARED: Cell<bool> = const { Cell::new(false) };
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Runs one request. A reply that a panic drops answers EIO.
pub(super) fn serve(stack: &Stack, act: impl FnOnce(&Stack)) {
    prepare();
    if catch_unwind(AssertUnwindSafe(|| act(stack))).is_err() {
        stack.fail("a request panicked");
    }
}

/// A worker must not wait for dirty pages that only a worker can write back (PR_SET_IO_FLUSHER, prctl(2)).
pub(super) fn prepare() {
    if !PREPARED.replace(true)
        && let Err(errno) = crate::sys::set_io_flusher()
    {
        tracing::debug!(%errno, "a worker cannot be kept out of memory reclaim (CAP_SYS_RESOURCE is missing)");
    }
}

/// Lends the thread's buffer, `size` bytes of it, so that a read neither allocates nor clears memory.
pub(super) fn with_buffer(size: usize, act: impl FnOnce(&mut [u8])) {
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        act(&mut buffer[..size]);
    });
}
