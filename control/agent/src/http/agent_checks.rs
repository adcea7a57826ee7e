//! `/v1/agent/check*`: the checks of this agent, and what services report to them.

use std::collections::BTreeMap;

use http::StatusCode;
use serde::Deserialize;
use wharf_registry::model::{CheckStatus, HealthCheck, Str};

use super::{
    HttpContext,
    agent_services::settled,
    blocking::check_datacenter,
    error::HttpError,
    filter::RowFilter,
    request::Request,
    response::{self, Response},
    selectors,
};
use crate::{
    authz::{Access, Resource},
    definition::{CheckDefinition, Origin},
    local::CheckSpec,
};

/// The body limit of a registration or report.
const MAX_BODY: usize = 512 * 1024;

/// Checks belong to their service, or to the node.
fn resource<'a>(context: &'a HttpContext, check: &'a HealthCheck) -> Resource<'a> {
    if check.service_name.is_empty() {
        Resource::Node(&context.node.name)
    } else {
        Resource::Service(&check.service_name)
    }
}

pub(crate) async fn list(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    let filter = RowFilter::parse(&request, &selectors::CHECK)?;
    let checks = context.local.checks();
    let rows: BTreeMap<&Str, &HealthCheck> = checks
        .iter()
        .filter(|(_, check)| request.caller.may(resource(context, check), Access::Read))
        .map(|(id, check)| (id, &**check))
        .collect();
    let pretty = context.pretty(&request);
    Ok(response::json_bytes(
        StatusCode::OK,
        filter.encode_map(rows, pretty)?,
    ))
}

pub(crate) async fn register(
    context: &HttpContext,
    mut request: Request,
) -> Result<Response, HttpError> {
    check_datacenter(context, &request)?;
    let definition: CheckDefinition = request.json(MAX_BODY).await?;
    if definition.name.is_empty() {
        return Err(HttpError::bad_request("Missing check name"));
    }
    let scripts = context.agent.config.load().scripts;
    definition
        .validate(Origin::Api, scripts)
        .map_err(|error| HttpError::bad_request(error.to_string()))?;
    let service = context.local.service(&definition.service_id);
    let resource = match &service {
        Some(service) => Resource::Service(&service.name),
        None => Resource::Node(&context.node.name),
    };
    request.caller.check(resource, Access::Write)?;
    let mut spec = CheckSpec::from_definition(definition, Origin::Api);
    spec.token = request.caller.token().cloned().or(spec.token);
    context.local.register_check(spec).await?;
    settled(context).await
}

/// Whether the caller may change the check; one that does not exist is told by who acts on it.
fn may_change(context: &HttpContext, request: &Request, id: &str) -> Result<(), HttpError> {
    if let Some(check) = context.local.check(id) {
        request
            .caller
            .check(resource(context, &check), Access::Write)?;
    }
    Ok(())
}

pub(crate) async fn deregister(
    context: &HttpContext,
    request: Request,
) -> Result<Response, HttpError> {
    check_datacenter(context, &request)?;
    let id = request.name("Missing check ID")?;
    may_change(context, &request, id)?;
    context.local.deregister_check(id).await?;
    settled(context).await
}

pub(crate) async fn pass(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    report_note(context, request, CheckStatus::Passing).await
}

pub(crate) async fn warn(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    report_note(context, request, CheckStatus::Warning).await
}

pub(crate) async fn fail(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    report_note(context, request, CheckStatus::Critical).await
}

async fn report_note(
    context: &HttpContext,
    request: Request,
    status: CheckStatus,
) -> Result<Response, HttpError> {
    let note = request.query.get("note").unwrap_or("").to_owned();
    report(context, request, status, &note).await
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Report {
    status: String,
    output: String,
}

pub(crate) async fn update(
    context: &HttpContext,
    mut request: Request,
) -> Result<Response, HttpError> {
    let body: Report = request.json(MAX_BODY).await?;
    let status: CheckStatus = body
        .status
        .parse()
        .map_err(|error| HttpError::bad_request(format!("{error}")))?;
    report(context, request, status, &body.output).await
}

async fn report(
    context: &HttpContext,
    request: Request,
    status: CheckStatus,
    output: &str,
) -> Result<Response, HttpError> {
    let id = request.name("Missing check ID")?;
    may_change(context, &request, id)?;
    context.local.report_ttl(id, status, output).await?;
    settled(context).await
}
