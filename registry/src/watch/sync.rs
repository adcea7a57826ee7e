//! What the cells are made of. `tests/loom.rs` compiles them with loom's in the place of these.

pub(super) use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
