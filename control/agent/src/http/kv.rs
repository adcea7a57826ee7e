//! `/v1/kv`: the key-value tree.

use std::collections::BTreeSet;

use base64::{display::Base64Display, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use wharf_registry::{
    Command, View,
    command::KvCommand,
    model::{KvEntry, Str},
    watch::WatchKey,
};

use super::{
    HttpContext,
    blocking::{self, Answer, ReadOptions, check_datacenter},
    error::HttpError,
    request::Request,
    response::{self, Response},
};
use crate::authz::{Access, Resource};

/// An entry as the API shows it. `Value` is base64, and `null` when empty.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row<'a> {
    lock_index: u64,
    key: &'a str,
    flags: u64,
    value: Option<Base64<'a>>,
    #[serde(skip_serializing_if = "str::is_empty")]
    session: &'a str,
    create_index: u64,
    modify_index: u64,
}

struct Base64<'a>(&'a [u8]);

impl Serialize for Base64<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(self.0, &STANDARD))
    }
}

impl<'a> From<&'a KvEntry> for Row<'a> {
    fn from(entry: &'a KvEntry) -> Row<'a> {
        Row {
            lock_index: entry.lock_index,
            key: &entry.key,
            flags: entry.flags,
            value: (!entry.value.is_empty()).then(|| Base64(&entry.value)),
            session: &entry.session,
            create_index: entry.create_index,
            modify_index: entry.modify_index,
        }
    }
}

pub(crate) async fn get(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    let options = ReadOptions::parse(context, &request)?;
    if request.query.has("keys") {
        return keys(context, &request, &options).await;
    }
    if request.query.has("recurse") {
        return recurse(context, &request, &options).await;
    }
    let key: Str = request.name("Missing key name")?.into();
    request.caller.check(Resource::Key(&key), Access::Read)?;
    let watch = [WatchKey::Kv(key.clone())];
    let index = |view: &View| view.kv_index(&key);
    let found = blocking::wait(context, &options, &watch, index).await?;
    let mut response = match found.view.kv(&key) {
        None => response::empty(StatusCode::NOT_FOUND),
        Some(entry) if request.query.has("raw") => raw(entry),
        Some(entry) => response::json(&[Row::from(&**entry)], options.pretty)?,
    };
    found.headers(context, &mut response);
    Ok(response)
}

/// The value itself. Whoever opens it in a browser must not have it run as a page.
fn raw(entry: &KvEntry) -> Response {
    let mut response = response::with_type(StatusCode::OK, "text/plain", entry.value.clone());
    let headers = response.headers_mut();
    headers.insert(
        http::header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(
        http::header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("sandbox"),
    );
    response
}

/// Every entry below a prefix; none is a 404, so that a client can tell it from an empty value.
async fn recurse(
    context: &HttpContext,
    request: &Request,
    options: &ReadOptions,
) -> Result<Response, HttpError> {
    let prefix: Str = request.rest.as_str().into();
    let caller = &request.caller;
    let answer = |view: &View| {
        let mut filtered = false;
        let rows: Vec<Row<'_>> = view
            .kv_prefix(&prefix)
            .filter(|entry| {
                let visible = caller.may(Resource::Key(&entry.key), Access::Read);
                filtered |= !visible;
                visible
            })
            .map(|entry| Row::from(&**entry))
            .collect();
        if rows.is_empty() {
            return Ok(Answer {
                status: StatusCode::NOT_FOUND,
                json: None,
                filtered,
            });
        }
        let json = response::encode(&rows, options.pretty)?;
        Ok(Answer {
            status: StatusCode::OK,
            json: Some(json),
            filtered,
        })
    };
    let watch = [WatchKey::KvPrefix(prefix.clone())];
    blocking::read(
        context,
        options,
        &watch,
        |view| view.kv_prefix_index(&prefix),
        answer,
    )
    .await
}

/// The names below a prefix, up to a separator if one is given.
async fn keys(
    context: &HttpContext,
    request: &Request,
    options: &ReadOptions,
) -> Result<Response, HttpError> {
    let prefix: Str = request.rest.as_str().into();
    // The misspelling is Consul's, and older clients send it.
    let separator = request
        .query
        .get("separator")
        .or_else(|| request.query.get("seperator"))
        .unwrap_or("");
    let caller = &request.caller;
    let answer = |view: &View| {
        let visible = view
            .kv_prefix(&prefix)
            .filter(|entry| caller.may(Resource::Key(&entry.key), Access::List));
        let names: BTreeSet<&str> = visible
            .map(|entry| {
                let below = &entry.key[prefix.len()..];
                match below.find(separator) {
                    Some(at) if !separator.is_empty() => {
                        &entry.key[..prefix.len() + at + separator.len()]
                    }
                    _ => &entry.key[..],
                }
            })
            .collect();
        if names.is_empty() && !prefix.is_empty() {
            return Ok(Answer {
                status: StatusCode::NOT_FOUND,
                json: None,
                filtered: false,
            });
        }
        Ok(Answer::json(response::encode(&names, options.pretty)?))
    };
    let watch = [WatchKey::KvPrefix(prefix.clone())];
    blocking::read(
        context,
        options,
        &watch,
        |view| view.kv_prefix_index(&prefix),
        answer,
    )
    .await
}

/// Refuses parameters that contradict each other.
fn conflicting(request: &Request, names: &[&str]) -> Result<(), HttpError> {
    let given: Vec<String> = names
        .iter()
        .filter(|name| request.query.has(name))
        .map(|name| format!("{name}={}", request.query.get(name).unwrap_or("")))
        .collect();
    if given.len() > 1 {
        return Err(HttpError::bad_request(format!(
            "Conflicting flags: {}",
            given.join("&")
        )));
    }
    Ok(())
}

fn number(request: &Request, name: &str) -> Result<Option<u64>, HttpError> {
    match request.query.get(name) {
        None => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| {
            HttpError::bad_request(format!(
                "Invalid value for ?{name}: {text:?} is not a number"
            ))
        }),
    }
}

pub(crate) async fn put(
    context: &HttpContext,
    mut request: Request,
) -> Result<Response, HttpError> {
    check_datacenter(context, &request)?;
    let key: Str = request.name("Missing key name")?.into();
    check_key(&key)?;
    conflicting(&request, &["acquire", "cas", "release"])?;
    if request.query.has("acquire") || request.query.has("release") {
        return Err(HttpError::not_built(
            "sessions come with a later issue: locking a key with ?acquire and ?release",
        ));
    }
    request.caller.check(Resource::Key(&key), Access::Write)?;
    let flags = number(&request, "flags")?.unwrap_or(0);
    let compare = if request.query.has("cas") {
        Some(number(&request, "cas")?.unwrap_or(0))
    } else {
        None
    };
    let limit = context.settings.load().kv_max_value_size;
    let value = request.body(limit).await?;
    let entry = KvEntry {
        key,
        flags,
        value,
        ..KvEntry::default()
    };
    let command = match compare {
        None => KvCommand::Set { entry },
        Some(index) => KvCommand::CompareAndSet { entry, index },
    };
    done(context, &request, command).await
}

pub(crate) async fn delete(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    check_datacenter(context, &request)?;
    conflicting(&request, &["cas", "recurse"])?;
    if request.query.has("recurse") {
        let prefix: Str = request.rest.as_str().into();
        request
            .caller
            .check(Resource::KeyPrefix(&prefix), Access::Write)?;
        return done(context, &request, KvCommand::DeleteTree { prefix }).await;
    }
    let key: Str = request.name("Missing key name")?.into();
    request.caller.check(Resource::Key(&key), Access::Write)?;
    let command = match request.query.has("cas") {
        false => KvCommand::Delete { key },
        true => match number(&request, "cas")?.unwrap_or(0) {
            // Consul: a compare with 0 deletes nothing, and succeeds.
            0 => return response::json(&true, context.pretty(&request)),
            index => KvCommand::CompareAndDelete { key, index },
        },
    };
    done(context, &request, command).await
}

async fn done(
    context: &HttpContext,
    request: &Request,
    command: KvCommand,
) -> Result<Response, HttpError> {
    let applied = context.cluster.write_if(Command::Kv(command)).await?;
    let bytes: Bytes = response::encode(&applied, context.pretty(request))?;
    Ok(response::json_bytes(StatusCode::OK, bytes))
}

/// Keys are free text; what would be read as another path is refused, as Consul does since 1.22.
fn check_key(key: &str) -> Result<(), HttpError> {
    if key.split('/').any(|segment| segment == "..") {
        return Err(HttpError::bad_request(format!(
            "Invalid key name {key:?}: a key must not contain \"..\" as a path segment"
        )));
    }
    if key.starts_with(' ') || key.ends_with(' ') {
        return Err(HttpError::bad_request(format!(
            "Invalid key name {key:?}: a key must not begin or end with a space"
        )));
    }
    Ok(())
}
