//! Threads that end with the test that needs them.

use std::sync::atomic::{AtomicBool, Ordering};

/// Sets the flag that threads of a scope look at, however the scope is left: a failed assertion would wait for them for
/// ever.
#[derive(Debug)]
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
