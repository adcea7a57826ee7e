//! What a test needs and a machine may lack: a tool, a client library.

use std::env;

/// Says why a test cannot run here. With `WHARF_REQUIRE_ALL=1`, as in CI, that is a failure.
///
/// # Panics
///
/// When everything is required.
pub fn missing(what: &str) {
    assert!(
        env::var_os("WHARF_REQUIRE_ALL").is_none_or(|value| value != "1"),
        "WHARF_REQUIRE_ALL is set, and this machine has no {what}"
    );
    println!("skipped: this machine has no {what}");
}
