//! Bearer tokens: a registry says where to get one (`WWW-Authenticate`), the token server gives it.

use http::HeaderValue;
use serde::Deserialize;

/// The longest header that is read.
const MAX_CHALLENGE: usize = 8 << 10;
/// The longest answer of a token server.
pub(super) const MAX_TOKEN: u64 = 64 << 10;

/// Where a token comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Challenge {
    pub(super) realm: String,
    pub(super) service: Option<String>,
    pub(super) scope: Option<String>,
}

impl Challenge {
    /// Reads the `Bearer` challenge of a header (RFC 6750); `None` if there is none.
    pub(super) fn parse(header: &str) -> Option<Challenge> {
        if header.len() > MAX_CHALLENGE {
            return None;
        }
        let at = header.to_ascii_lowercase().find("bearer ")?;
        let mut rest = header[at + "bearer ".len()..].trim_start();
        let mut challenge = Challenge::default();
        while let Some((name, after)) = rest.split_once('=') {
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => unquote(quoted)?,
                None => {
                    let end = after.find(',').unwrap_or(after.len());
                    (after[..end].trim().to_owned(), &after[end..])
                }
            };
            match name.trim().to_ascii_lowercase().as_str() {
                "realm" => challenge.realm = value,
                "service" => challenge.service = Some(value),
                "scope" => challenge.scope = Some(value),
                _ => {}
            }
            rest = after.trim_start().trim_start_matches(',').trim_start();
        }
        (!challenge.realm.is_empty()).then_some(challenge)
    }
}

/// The text up to the closing quote, and what follows it.
fn unquote(quoted: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            character => value.push(character),
        }
    }
    None
}

/// What a token server answers; both names are in use.
#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

/// The header that a token makes. `None`: it is no token.
pub(super) fn authorization(answer: &[u8]) -> Option<HeaderValue> {
    let token: Token = serde_json::from_slice(answer).ok()?;
    let token = match token.token.as_str() {
        "" => token.access_token,
        _ => token.token,
    };
    if token.is_empty() {
        return None;
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges_are_read() {
        let header = r#"Bearer realm="https://auth.example/token",service="registry",scope="repository:a/b:pull,push""#;
        let challenge = Challenge::parse(header).unwrap();
        assert_eq!(challenge.realm, "https://auth.example/token");
        assert_eq!(challenge.service.as_deref(), Some("registry"));
        assert_eq!(challenge.scope.as_deref(), Some("repository:a/b:pull,push"));
        let loose =
            Challenge::parse(r#"Basic realm="x", bearer realm=https://a.example/t, error="\"q\"""#);
        assert_eq!(loose.unwrap().realm, "https://a.example/t");
        for none in [
            "",
            "Basic realm=\"x\"",
            "Bearer",
            "Bearer service=\"x\"",
            "Bearer realm=\"open",
        ] {
            assert_eq!(Challenge::parse(none), None, "{none}");
        }
    }

    #[test]
    fn a_token_becomes_a_header() {
        let value = |json: &str| authorization(json.as_bytes());
        assert_eq!(value(r#"{"token":"abc"}"#).unwrap(), "Bearer abc");
        assert_eq!(
            value(r#"{"access_token":"abc","expires_in":60}"#).unwrap(),
            "Bearer abc"
        );
        assert!(value(r#"{"token":"abc"}"#).unwrap().is_sensitive());
        for none in ["", "{}", r#"{"token":"a\nb"}"#, "[]"] {
            assert!(value(none).is_none(), "{none}");
        }
    }

    proptest! {
        #[test]
        fn any_challenge_is_read_or_refused(header in "\\PC{0,80}", tail in "[a-z=\",\\\\ ]{0,40}") {
            let _ = Challenge::parse(&header);
            let _ = Challenge::parse(&format!("Bearer {tail}"));
        }
    }
}
