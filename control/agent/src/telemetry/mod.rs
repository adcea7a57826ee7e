//! What the process says about itself: its log ([`logs`]) and its figures ([`recorder`]).

pub mod logs;
pub mod recorder;
