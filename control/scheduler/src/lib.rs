//! From jobs to allocations: which instances a job is short of, which must go, and where the new ones run.
//!
//! Everything here is a pure function of a snapshot of the state and the time it is given.
