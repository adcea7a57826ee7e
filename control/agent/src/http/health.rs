//! `/v1/health`: checks, and the instances that they speak for.

use http::HeaderValue;
use wharf_registry::{
    View,
    model::{CheckStatus, HealthCheck},
    watch::WatchKey,
};

use super::{
    HttpContext,
    blocking::{self, Answer, ReadOptions},
    error::HttpError,
    filter::RowFilter,
    named::NamedRead,
    request::Request,
    response::{self, Response},
    selectors,
    shapes::HealthService,
};
use crate::authz::{Access, Caller, Resource};

pub(crate) async fn service(
    context: &HttpContext,
    request: Request,
) -> Result<Response, HttpError> {
    let read = NamedRead::of_service(context, &request, &selectors::HEALTH_SERVICE)?;
    let NamedRead {
        caller,
        filter,
        options,
        ..
    } = &read;
    let passing = request.flag("passing")?;
    let shared = filter.is_empty()
        && caller.may_everything()
        && options.pretty == context.settings.load().pretty;
    let answer = |view: &View| {
        let Some(entry) = view.service(read.name) else {
            return Ok(Answer::json(response::encode::<[(); 0]>(
                &[],
                options.pretty,
            )?));
        };
        if !caller.may(Resource::Service(&entry.name), Access::Read) {
            let json = response::encode::<[(); 0]>(&[], options.pretty)?;
            return Ok(Answer::rows(json, true));
        }
        // The same question by anyone gets the same bytes, made once per change.
        if shared && let Some(json) = entry.encoded_health(passing) {
            return Ok(Answer::json(json));
        }
        let mut rows: Vec<HealthService<'_>> = entry
            .instances
            .values()
            .filter(|instance| !passing || instance.status == CheckStatus::Passing)
            .filter(|instance| filter.instance(instance))
            .map(|instance| HealthService::new(instance))
            .collect();
        filter.sort_near(&mut rows, |row| &row.node.name);
        let json = filter.encode(&rows, options.pretty)?;
        if shared {
            entry.keep_encoded_health(passing, &json);
        }
        Ok(Answer::json(json))
    };
    let mut response = read.respond(context, answer).await?;
    response.headers_mut().insert(
        response::QUERY_BACKEND,
        HeaderValue::from_static("blocking-query"),
    );
    Ok(response)
}

/// Whether the caller may see a check: its service, or its node.
fn visible(caller: &Caller, check: &HealthCheck) -> bool {
    caller.may(Resource::Node(&check.node), Access::Read)
        && (check.service_name.is_empty()
            || caller.may(Resource::Service(&check.service_name), Access::Read))
}

fn checks_answer<'a>(
    checks: impl Iterator<Item = &'a HealthCheck>,
    caller: &Caller,
    filter: &RowFilter,
    options: &ReadOptions,
) -> Result<Answer, HttpError> {
    let mut filtered = false;
    let mut rows: Vec<&HealthCheck> = checks
        .filter(|check| {
            let visible = visible(caller, check);
            filtered |= !visible;
            visible
        })
        .collect();
    filter.sort_near(&mut rows, |check| &check.node);
    let json = filter.encode(&rows, options.pretty)?;
    Ok(Answer::rows(json, filtered))
}

pub(crate) async fn node(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    let read = NamedRead::of_node(context, &request, &selectors::CHECK)?;
    let answer = |view: &View| {
        let entry = view.node(read.name);
        let checks = entry
            .into_iter()
            .flat_map(|entry| entry.checks.values())
            .map(|check| &**check);
        checks_answer(checks, read.caller, &read.filter, &read.options)
    };
    read.respond(context, answer).await
}

pub(crate) async fn checks(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    let read = NamedRead::of_service(context, &request, &selectors::CHECK)?;
    let answer = |view: &View| {
        let instances = view
            .service(read.name)
            .into_iter()
            .flat_map(|entry| entry.instances.values());
        let checks = instances
            .filter(|instance| read.filter.node_meta(&instance.node.meta))
            .flat_map(|instance| instance.checks.iter())
            .filter(|check| !check.service_id.is_empty())
            .map(|check| &**check);
        checks_answer(checks, read.caller, &read.filter, &read.options)
    };
    read.respond(context, answer).await
}

pub(crate) async fn state(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    let options = ReadOptions::parse(context, &request)?;
    let filter = RowFilter::parse(&request, &selectors::CHECK)?;
    // An unknown state is not an error in Consul: no check has it.
    let wanted = request.name("Missing check state")?;
    let answer = |view: &View| {
        let nodes = view
            .nodes()
            .filter(|entry| filter.node_meta(&entry.node.meta));
        let checks = nodes
            .flat_map(|entry| entry.checks.values())
            .filter(|check| wanted == "any" || check.status.as_str() == wanted)
            .map(|check| &**check);
        checks_answer(checks, &request.caller, &filter, &options)
    };
    if filter.has_node_meta() {
        let keys = [WatchKey::Checks, WatchKey::Nodes];
        let index = |view: &View| view.indexes().checks.max(view.indexes().nodes);
        return blocking::read(context, &options, &keys, index, answer).await;
    }
    let index = |view: &View| view.indexes().checks;
    blocking::read(context, &options, &[WatchKey::Checks], index, answer).await
}
