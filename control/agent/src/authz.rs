//! The one seam through which every request passes: HTTP, gRPC and DNS alike.
//!
//! A request brings a token; [`Authorizer::resolve`] turns it into a [`Caller`]; the endpoint asks
//! the caller before it acts, and filters what it lists. Today the only authorizer is [`AllowAll`].
//! The rules of Consul's ACL system come behind this seam without touching an endpoint.

use std::{fmt, sync::Arc};

/// A secret that a request carries. Its text never reaches a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Arc<str>);

impl Token {
    /// `None` for an empty text: no token was given.
    pub fn new(text: &str) -> Option<Token> {
        (!text.is_empty()).then(|| Token(text.into()))
    }

    /// The secret itself, for comparing and forwarding.
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(redacted)")
    }
}

/// What a request touches, in the terms of Consul's ACL rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource<'a> {
    Agent(&'a str),
    Event(&'a str),
    /// A job with its allocations: wharf's own.
    Job(&'a str),
    Key(&'a str),
    KeyPrefix(&'a str),
    Mesh,
    Node(&'a str),
    Operator,
    Service(&'a str),
}

impl fmt::Display for Resource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Resource::Agent(name) => write!(f, "agent {name:?}"),
            Resource::Event(name) => write!(f, "event {name:?}"),
            Resource::Job(name) => write!(f, "job {name:?}"),
            Resource::Key(name) => write!(f, "key {name:?}"),
            Resource::KeyPrefix(name) => write!(f, "key prefix {name:?}"),
            Resource::Mesh => f.write_str("mesh"),
            Resource::Node(name) => write!(f, "node {name:?}"),
            Resource::Operator => f.write_str("operator"),
            Resource::Service(name) => write!(f, "service {name:?}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    List,
    Write,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Access::Read => "read",
            Access::List => "list",
            Access::Write => "write",
        })
    }
}

/// The caller may not do this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("ACL not found")]
    UnknownToken,
    #[error("Permission denied: the token lacks permission '{access}' on {resource}")]
    Forbidden { resource: String, access: Access },
}

/// Decides what the holders of tokens may do.
pub trait Authorizer: fmt::Debug + Send + Sync + 'static {
    /// Who is calling. `None`: the anonymous caller.
    fn resolve(&self, token: Option<Token>) -> Result<Caller, Denied>;
}

/// What one caller may do. Asked for every resource that a request touches or lists.
pub trait Permissions: fmt::Debug + Send + Sync {
    fn allow(&self, resource: Resource<'_>, access: Access) -> bool;

    /// Whether there is nothing this caller may not do: answers that were encoded once for everyone
    /// can be given out as they are.
    fn allow_everything(&self) -> bool {
        false
    }
}

/// A resolved caller of one request.
#[derive(Clone, Debug)]
pub struct Caller {
    token: Option<Token>,
    permissions: Arc<dyn Permissions>,
}

impl Caller {
    pub fn new(token: Option<Token>, permissions: Arc<dyn Permissions>) -> Caller {
        Caller { token, permissions }
    }

    pub fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }

    pub fn may(&self, resource: Resource<'_>, access: Access) -> bool {
        self.permissions.allow(resource, access)
    }

    pub fn may_everything(&self) -> bool {
        self.permissions.allow_everything()
    }

    /// [`Caller::may`] as a result, for endpoints that refuse rather than filter.
    pub fn check(&self, resource: Resource<'_>, access: Access) -> Result<(), Denied> {
        if self.may(resource, access) {
            Ok(())
        } else {
            Err(Denied::Forbidden {
                resource: resource.to_string(),
                access,
            })
        }
    }
}

/// Everybody may do everything: the agent runs without ACLs.
#[derive(Clone, Copy, Debug, Default)]
pub struct AllowAll;

impl Authorizer for AllowAll {
    fn resolve(&self, token: Option<Token>) -> Result<Caller, Denied> {
        Ok(Caller::new(token, Arc::new(AllowAll)))
    }
}

impl Permissions for AllowAll {
    fn allow(&self, _: Resource<'_>, _: Access) -> bool {
        true
    }

    fn allow_everything(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct ReadWeb;

    impl Permissions for ReadWeb {
        fn allow(&self, resource: Resource<'_>, access: Access) -> bool {
            resource == Resource::Service("web") && access == Access::Read
        }
    }

    #[test]
    fn a_refusal_names_what_is_missing() {
        let caller = Caller::new(None, Arc::new(ReadWeb));
        assert!(caller.check(Resource::Service("web"), Access::Read).is_ok());
        let denied = caller
            .check(Resource::Service("web"), Access::Write)
            .unwrap_err();
        assert_eq!(
            denied.to_string(),
            "Permission denied: the token lacks permission 'write' on service \"web\""
        );
    }

    #[test]
    fn a_token_is_never_printed() {
        let token = Token::new("s3cret");
        assert!(!format!("{token:?}").contains("s3cret"));
        assert_eq!(Token::new(""), None);
    }
}
