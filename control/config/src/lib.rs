//! Declarative input of wharf: what people write in files and what clients send as JSON bodies.
//!
//! Two front ends, [HCL](hcl) and [JSON](json), build one document tree of [`Node`]s, each of which knows the
//! file, line and column it came from. One decoder turns a tree into any serde type, with Consul's rules for
//! key names: case does not matter and neither do underscores, so `ServiceID`, `service_id` and `serviceid`
//! are one key. A mistake is reported where it was made:
//!
//! ```text
//! server.hcl:7:3: unknown key "bind_adr" (did you mean "bind_addr"?)
//! ```
//!
//! Everything here reads hostile input: nesting is limited to [`MAX_DEPTH`], work is linear in the size of the
//! input, and nothing panics. How large an input may be is the caller's decision.

#![forbid(unsafe_code)]

mod decode;
pub mod duration;
mod error;
pub mod hcl;
pub mod json;
mod node;
mod parse;

pub use decode::{
    Mode, decode, decode_all, decode_json_bytes, decode_json_value, parse_json_bytes,
};
pub use duration::{GoDuration, ParseDurationError};
pub use error::{DecodeError, DecodeErrorKind, Segment};
pub use hcl::parse_hcl;
pub use json::parse_json;
pub use node::{Entry, Map, Node, Position, Repeated, Value, same_key};
pub use parse::{FileError, Format, ParseError, parse_file, parse_file_as};

/// The deepest nesting of lists and objects that is accepted.
///
/// Recursion over a tree (decoding, merging, dropping) is bounded by it. No file or body of Consul comes near.
pub const MAX_DEPTH: usize = 64;
