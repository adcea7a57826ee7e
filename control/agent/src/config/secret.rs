//! Secrets in configuration.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::authz::Token;

/// A text that must not be shown: a token, a key. Empty when it is not set.
///
/// `Debug` hides it. Serialising does not: definitions are kept on disk with their tokens, in files that only
/// the agent reads.
#[derive(Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Secret(Arc<str>);

impl Secret {
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn secret(&self) -> &str {
        &self.0
    }

    /// The token that a request made for its owner carries.
    pub fn token(&self) -> Option<Token> {
        Token::new(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "unset" } else { "hidden" })
    }
}
