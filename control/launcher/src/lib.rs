//! The node side of the platform: images, networks, containers, and the life of one allocation.

pub mod container;
pub mod image;
pub mod network;
pub mod runner;
pub mod services;
pub mod shim;
mod sys;
