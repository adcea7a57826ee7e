//! What is asked of a registry: manifests and blobs.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{
    RegistryError,
    auth::{self, Challenge, MAX_TOKEN},
    http::{Answer, Http, Url},
};
use crate::image::{
    Digest, ImageName,
    document::{DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Document, OCI_INDEX, OCI_MANIFEST},
    limits::MAX_MANIFEST,
};

/// A manifest or an index as it came.
#[derive(Clone, Debug)]
pub(super) struct Fetched {
    pub(super) digest: Digest,
    pub(super) bytes: Bytes,
    pub(super) document: Document,
}

impl Fetched {
    pub(super) fn descriptor(&self) -> Descriptor {
        Descriptor::new("", self.digest, self.bytes.len() as u64)
    }
}

#[derive(Debug)]
pub(super) struct Client {
    http: Http,
    /// Authorization by host and repository, until the registry wants another.
    tokens: Mutex<HashMap<(String, String), HeaderValue>>,
}

/// More repositories than a node has to do with at a time.
const MAX_TOKENS: usize = 1000;

impl Client {
    pub(super) fn new(insecure: Vec<String>) -> Client {
        Client {
            http: Http::new(insecure),
            tokens: Mutex::default(),
        }
    }

    /// Fetches what a tag or a digest stands for, and verifies it.
    pub(super) async fn manifest(
        &self,
        host: &str,
        name: &ImageName,
    ) -> Result<Fetched, RegistryError> {
        let wanted = name.wanted();
        let path = format!("/v2/{}/manifests/{wanted}", name.repository);
        let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", ");
        let what = format!("image {name}");
        let mut answer = self
            .get(host, &name.repository, &path, &accept, &what)
            .await?;
        let bytes = answer.bytes(MAX_MANIFEST).await?;
        let digest = Digest::of(&bytes);
        // What we asked for by digest, and what the registry says it sent.
        let said = answer.headers.get("docker-content-digest");
        let said = said.and_then(|value| value.to_str().ok()?.parse::<Digest>().ok());
        for expected in name.digest.into_iter().chain(said) {
            if expected != digest {
                return Err(RegistryError::WrongDigest {
                    host: host.to_owned(),
                    what: format!("the manifest of {name}"),
                    expected,
                    actual: digest,
                });
            }
        }
        let document = Document::parse(&bytes).map_err(|source| RegistryError::Document {
            host: host.to_owned(),
            what: format!("the manifest of {name}"),
            source,
        })?;
        Ok(Fetched {
            digest,
            bytes,
            document,
        })
    }

    /// Begins to fetch a blob. Its bytes are not verified here.
    pub(super) async fn blob(
        &self,
        host: &str,
        name: &ImageName,
        digest: &Digest,
    ) -> Result<Answer, RegistryError> {
        let path = format!("/v2/{}/blobs/{digest}", name.repository);
        let what = format!("blob {digest} of {name}");
        self.get(host, &name.repository, &path, "*/*", &what).await
    }

    async fn get(
        &self,
        host: &str,
        repository: &str,
        path: &str,
        accept: &str,
        what: &str,
    ) -> Result<Answer, RegistryError> {
        let url = Url {
            tls: !self.http.is_insecure(host),
            authority: host.to_owned(),
            path: path.to_owned(),
        };
        let key = (host.to_owned(), repository.to_owned());
        let known = self.tokens().get(&key).cloned();
        let mut answer = self.http.get(&url, accept, known.as_ref()).await?;
        if answer.status == StatusCode::UNAUTHORIZED {
            let challenges = answer.headers.get_all(header::WWW_AUTHENTICATE);
            let challenge = challenges
                .iter()
                .filter_map(|value| value.to_str().ok())
                .find_map(Challenge::parse);
            let Some(challenge) = challenge else {
                return Err(RegistryError::Denied {
                    host: host.to_owned(),
                    what: what.to_owned(),
                    why: "it wants a password, and none is known".to_owned(),
                });
            };
            let token = self.token(host, repository, &challenge, what).await?;
            answer = self.http.get(&url, accept, Some(&token)).await?;
            let mut tokens = self.tokens();
            if tokens.len() >= MAX_TOKENS {
                tokens.clear();
            }
            tokens.insert(key, token);
        }
        if answer.status.is_success() {
            return Ok(answer);
        }
        let text = answer.text().await;
        let (host, what) = (host.to_owned(), what.to_owned());
        Err(match answer.status {
            StatusCode::NOT_FOUND => RegistryError::NotFound { host, what },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Denied {
                host,
                what,
                why: text,
            },
            status => RegistryError::Status {
                host,
                what,
                status: status.as_u16(),
                text,
            },
        })
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), HeaderValue>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the token server for the right to pull, as anybody.
    async fn token(
        &self,
        host: &str,
        repository: &str,
        challenge: &Challenge,
        what: &str,
    ) -> Result<HeaderValue, RegistryError> {
        let denied = |why: String| RegistryError::Denied {
            host: host.to_owned(),
            what: what.to_owned(),
            why,
        };
        let mut url = Url::parse(&challenge.realm)
            .ok_or_else(|| denied("it names no token server that could be asked".to_owned()))?;
        if let Some(why) = self.http.refusal(&url) {
            return Err(denied(format!("its token server is {url}: {why}")));
        }
        let scope = challenge.scope.clone();
        let scope = scope.unwrap_or_else(|| format!("repository:{repository}:pull"));
        let parameters = [
            challenge.service.as_deref().map(|value| ("service", value)),
            Some(("scope", scope.as_str())),
        ];
        for (name, value) in parameters.into_iter().flatten() {
            url.path
                .push(if url.path.contains('?') { '&' } else { '?' });
            let value = utf8_percent_encode(value, NON_ALPHANUMERIC);
            url.path.push_str(&format!("{name}={value}"));
        }
        let mut answer = self.http.get(&url, "application/json", None).await?;
        if answer.status != StatusCode::OK {
            let status = answer.status.as_u16();
            let text = answer.text().await;
            return Err(denied(format!("its token server answers {status} {text}")));
        }
        let bytes = answer.bytes(MAX_TOKEN).await?;
        auth::authorization(&bytes).ok_or_else(|| denied("what it gives is no token".to_owned()))
    }
}
