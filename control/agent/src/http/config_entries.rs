//! `/v1/config`: configuration entries.

use http::StatusCode;
use wharf_registry::{
    Command, View,
    command::ConfigCommand,
    model::{ConfigEntry, ConfigEntryKind, Str, UnknownKind},
    watch::WatchKey,
};

use super::{
    HttpContext,
    blocking::{self, Answer, ReadOptions, check_datacenter},
    error::HttpError,
    filter::RowFilter,
    request::Request,
    response::{self, Response},
    selectors::Fields,
};
use crate::{
    authz::{Access, Resource},
    config_entry::{self, ConfigEntryError},
};

const MAX_BODY: usize = 512 * 1024;

pub(crate) async fn put(
    context: &HttpContext,
    mut request: Request,
) -> Result<Response, HttpError> {
    check_datacenter(context, &request)?;
    let body = request.body(MAX_BODY).await?;
    let entry = config_entry::decode_json(&body).map_err(|error| {
        let status = match error {
            ConfigEntryError::Kind(UnknownKind::NotBuilt(_)) => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::BAD_REQUEST,
        };
        HttpError::new(status, format!("Request decoding failed: {error}"))
    })?;
    allowed(&request, &entry, Access::Write)?;
    let command = match cas(&request)? {
        None => ConfigCommand::Upsert { entry },
        Some(index) => ConfigCommand::CompareAndUpsert { entry, index },
    };
    let applied = context.cluster.write_if(Command::Config(command)).await?;
    response::json(&applied, context.pretty(&request))
}

/// The kind and name in the path; the name is empty for a list.
fn path(request: &Request) -> Result<(ConfigEntryKind, Str), HttpError> {
    let (kind, name) = request.rest.split_once('/').unwrap_or((&request.rest, ""));
    if kind.is_empty() {
        return Err(HttpError::bad_request(
            "Must provide either a kind or both kind and name",
        ));
    }
    let kind = kind.parse().map_err(|error| match error {
        UnknownKind::NotBuilt(_) => HttpError::new(StatusCode::NOT_IMPLEMENTED, format!("{error}")),
        UnknownKind::Invalid(_) => HttpError::internal(format!("{error}")),
    })?;
    Ok((kind, name.into()))
}

fn cas(request: &Request) -> Result<Option<u64>, HttpError> {
    match (request.query.has("cas"), request.query.get("cas")) {
        (false, _) => Ok(None),
        (true, text) => {
            let text = text.unwrap_or("");
            text.parse().map(Some).map_err(|_| {
                HttpError::bad_request(format!("Invalid value for ?cas: {text:?} is not a number"))
            })
        }
    }
}

/// Service defaults belong to their service, everything else to the mesh.
fn resource<'a>(kind: ConfigEntryKind, name: &'a str) -> Resource<'a> {
    match kind {
        ConfigEntryKind::ServiceDefaults => Resource::Service(name),
        ConfigEntryKind::ProxyDefaults => Resource::Mesh,
    }
}

fn allowed(request: &Request, entry: &ConfigEntry, access: Access) -> Result<(), HttpError> {
    Ok(request
        .caller
        .check(resource(entry.kind(), entry.name()), access)?)
}

pub(crate) async fn get(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    let options = ReadOptions::parse(context, &request)?;
    let filter = RowFilter::parse(&request, &Fields::Open)?;
    let (kind, name) = path(&request)?;
    if name.is_empty() {
        let answer = |view: &View| {
            let rows: Vec<_> = view
                .config_entries()
                .filter(|entry| entry.kind() == kind)
                .filter(|entry| allowed(&request, entry, Access::Read).is_ok())
                .map(|entry| entry.to_json())
                .collect();
            Ok(Answer::json(filter.encode(&rows, options.pretty)?))
        };
        let index = |view: &View| view.indexes().config;
        return blocking::read(context, &options, &[WatchKey::Config], index, answer).await;
    }
    request.caller.check(resource(kind, &name), Access::Read)?;
    let index = |view: &View| match view.config_entry(kind, &name) {
        Some(entry) => entry.indexes().1,
        None => view.indexes().config,
    };
    let keys = [WatchKey::ConfigEntry(kind, name.clone())];
    let found = blocking::wait(context, &options, &keys, index).await?;
    let mut response = match found.view.config_entry(kind, &name) {
        Some(entry) => response::json(&entry.to_json(), options.pretty)?,
        None => {
            let text = format!(
                "Config entry not found for {:?} / {:?}",
                kind.as_str(),
                &*name
            );
            HttpError::not_found(text).into()
        }
    };
    found.headers(context, &mut response);
    Ok(response)
}

pub(crate) async fn delete(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    check_datacenter(context, &request)?;
    let pretty = context.pretty(&request);
    let (kind, name) = path(&request)?;
    if name.is_empty() {
        return Err(HttpError::bad_request(
            "Must provide both a kind and name to delete",
        ));
    }
    request.caller.check(resource(kind, &name), Access::Write)?;
    match cas(&request)? {
        None => {
            let command = ConfigCommand::Delete { kind, name };
            context.cluster.write(Command::Config(command)).await?;
            response::json(&serde_json::Map::new(), pretty)
        }
        Some(index) => {
            let command = ConfigCommand::CompareAndDelete { kind, name, index };
            let applied = context.cluster.write_if(Command::Config(command)).await?;
            response::json(&applied, pretty)
        }
    }
}
