//! Jobs that run: what their users do with them, and what is done to them.

mod bad_jobs;
mod faults;
mod images;
mod nodes;
mod run;
pub(crate) mod world;
