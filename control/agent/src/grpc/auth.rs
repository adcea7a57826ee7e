//! Who calls: the token of a call, through the one seam.

use tonic::{Status, metadata::MetadataMap};

use super::status;
use crate::authz::{Access, Authorizer, Caller, Resource, Token};

/// Resolves the caller by `x-consul-token`, or else by `authorization: Bearer`.
pub(super) fn caller(
    authorizer: &dyn Authorizer,
    metadata: &MetadataMap,
) -> Result<Caller, Status> {
    let text = |key| metadata.get(key).and_then(|value| value.to_str().ok());
    let bearer = || {
        let (scheme, token) = text("authorization")?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    };
    let token = text("x-consul-token").or_else(bearer).and_then(Token::new);
    authorizer
        .resolve(token)
        .map_err(|denied| status::denied(&denied))
}

/// Refuses what the caller may not do.
pub(super) fn check(caller: &Caller, resource: Resource<'_>, access: Access) -> Result<(), Status> {
    caller
        .check(resource, access)
        .map_err(|denied| status::denied(&denied))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::AllowAll;

    fn token_of(headers: &[(&'static str, &str)]) -> Option<String> {
        let mut metadata = MetadataMap::new();
        for (name, value) in headers {
            metadata.insert(*name, value.parse().unwrap());
        }
        let caller = caller(&AllowAll, &metadata).unwrap();
        caller.token().map(|token| token.secret().to_owned())
    }

    #[test]
    fn a_token_comes_in_two_ways() {
        assert_eq!(token_of(&[]), None);
        assert_eq!(token_of(&[("x-consul-token", "")]), None);
        assert_eq!(token_of(&[("x-consul-token", "a")]).as_deref(), Some("a"));
        assert_eq!(
            token_of(&[("authorization", "bearer b")]).as_deref(),
            Some("b")
        );
        assert_eq!(token_of(&[("authorization", "Basic b")]), None);
        let both = [("authorization", "Bearer b"), ("x-consul-token", "a")];
        assert_eq!(token_of(&both).as_deref(), Some("a"));
    }
}
