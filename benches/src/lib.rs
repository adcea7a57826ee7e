//! What the side-by-side runs share: processes on cores of their own, and figures with their spread.

pub mod process;
pub mod spread;
