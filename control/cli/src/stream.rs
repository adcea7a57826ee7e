//! Answers without an end, printed as they come.

use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::{
    failure::{Failure, chain},
    shell::Shell,
};

/// Why nothing more is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// That was all.
    Whole,
    /// Ctrl-C.
    Interrupted,
}

/// Prints a body until its end or Ctrl-C. `broken` says what it was that broke off.
pub(crate) async fn print_stream(
    mut body: Incoming,
    broken: &str,
    shell: &mut Shell<'_>,
) -> Result<Ended, Failure> {
    // One for the whole loop: a new one would not know of an interrupt that came between two frames,
    // and the first has taken the signal's default away.
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            _ = &mut interrupted => return Ok(Ended::Interrupted),
        };
        match frame {
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data() {
                    shell.out.write_all(&bytes)?;
                    shell.out.flush()?;
                }
            }
            Some(Err(error)) => return Err(Failure::new(broken).because(chain(&error))),
            None => return Ok(Ended::Whole),
        }
    }
}
