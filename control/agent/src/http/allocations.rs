//! `/v1/allocations` and `/v1/allocation/`: what runs where, and what became of it.

use std::collections::BTreeMap;

use http::StatusCode;
use serde::Serialize;
use wharf_registry::{
    Command, View,
    command::PlatformCommand,
    model::{
        Str,
        platform::{
            Alloc, AllocPort, ClientStatus, DesiredStatus, TaskPhase, TaskState, UnixNanos,
        },
    },
    watch::WatchKey,
};

use super::{
    HttpContext, alloc_logs,
    blocking::{self, Answer, ReadOptions, check_datacenter},
    error::HttpError,
    filter::RowFilter,
    request::Request,
    response::{self, Response},
    selectors,
};
use crate::{
    authz::{Access, Resource},
    platform::unix_now,
};

/// An allocation in a list: without the stories of its tasks.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct AllocStub<'a> {
    #[serde(rename = "ID")]
    id: &'a Str,
    name: &'a Str,
    job_name: &'a Str,
    job_version: u64,
    group: &'a Str,
    index: u32,
    #[serde(rename = "NodeID")]
    node_id: &'a Str,
    node: &'a Str,
    desired_status: DesiredStatus,
    desired_description: &'a Str,
    client_status: ClientStatus,
    client_description: &'a Str,
    address: &'a Str,
    ports: &'a [AllocPort],
    task_states: BTreeMap<&'a Str, TaskStub>,
    previous_alloc: &'a Str,
    create_index: u64,
    modify_index: u64,
    create_time: UnixNanos,
    modify_time: UnixNanos,
    stop_time: UnixNanos,
    end_time: UnixNanos,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct TaskStub {
    state: TaskPhase,
    failed: bool,
    restarts: u32,
}

impl From<&TaskState> for TaskStub {
    fn from(task: &TaskState) -> TaskStub {
        TaskStub {
            state: task.state,
            failed: task.failed,
            restarts: task.restarts,
        }
    }
}

impl<'a> From<&'a std::sync::Arc<Alloc>> for AllocStub<'a> {
    fn from(alloc: &'a std::sync::Arc<Alloc>) -> AllocStub<'a> {
        AllocStub {
            id: &alloc.id,
            name: &alloc.name,
            job_name: &alloc.job_name,
            job_version: alloc.job_version,
            group: &alloc.group,
            index: alloc.index,
            node_id: &alloc.node_id,
            node: &alloc.node,
            desired_status: alloc.desired_status,
            desired_description: &alloc.desired_description,
            client_status: alloc.client_status,
            client_description: &alloc.client_description,
            address: &alloc.address,
            ports: &alloc.ports,
            task_states: alloc
                .task_states
                .iter()
                .map(|(name, task)| (name, task.into()))
                .collect(),
            previous_alloc: &alloc.previous_alloc,
            create_index: alloc.create_index,
            modify_index: alloc.modify_index,
            create_time: alloc.create_time,
            modify_time: alloc.modify_time,
            stop_time: alloc.stop_time,
            end_time: alloc.end_time,
        }
    }
}

pub(crate) async fn list(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    let options = ReadOptions::parse(context, &request)?;
    let filter = RowFilter::parse(&request, &selectors::ALLOC)?;
    let prefix = request.query.get("prefix").unwrap_or("");
    let answer = |view: &View| {
        let mut rows = Vec::new();
        let mut filtered = false;
        for alloc in view.allocs_with_prefix(prefix) {
            match request
                .caller
                .may(Resource::Job(&alloc.job_name), Access::Read)
            {
                true => rows.push(AllocStub::from(alloc)),
                false => filtered = true,
            }
        }
        Ok(Answer::rows(
            filter.encode(&rows, options.pretty)?,
            filtered,
        ))
    };
    let index = |view: &View| view.platform_indexes().allocs;
    blocking::read(context, &options, &[WatchKey::Allocs], index, answer).await
}

/// The shortest part of an id that is taken for it.
const SHORTEST: usize = 2;

/// The allocation that an id, or the beginning of one, means.
fn resolve(view: &View, id: &str) -> Result<Str, HttpError> {
    if view.alloc(id).is_some() {
        return Ok(id.into());
    }
    if id.len() < SHORTEST {
        let text = format!("{id:?} is too short: give at least {SHORTEST} characters of the id");
        return Err(HttpError::bad_request(text));
    }
    let mut found = view.allocs_with_prefix(id).map(|alloc| &alloc.id);
    match (found.next(), found.next()) {
        (None, _) => Err(HttpError::not_found(format!("there is no allocation {id}"))),
        (Some(only), None) => Ok(only.clone()),
        (Some(one), Some(other)) => Err(HttpError::new(
            StatusCode::CONFLICT,
            format!(
                "{id:?} begins the ids of {} allocations, such as {one} and {other}",
                found.count() + 2
            ),
        )),
    }
}

/// Whether a path below `/v1/allocation/` is about what only this node has: the output of an allocation of its own.
pub(crate) fn is_local(context: &HttpContext, rest: &str) -> bool {
    let Some(id) = rest.strip_suffix("/logs") else {
        return false;
    };
    let view = context.cluster.registry().view();
    let id = resolve(&view, id);
    let alloc = id.ok().and_then(|id| view.alloc(&id).cloned());
    alloc.is_some_and(|alloc| *alloc.node_id == *context.node.id)
}

pub(crate) async fn get(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    let options = ReadOptions::parse(context, &request)?;
    let id = request.name("Must provide the id of an allocation")?;
    context.cluster.barrier(options.consistency).await?;
    if let Some(id) = id.strip_suffix("/logs") {
        let id = resolve(&context.cluster.registry().view(), id)?;
        return alloc_logs::logs(context, &request, &id);
    }
    let id = match resolve(&context.cluster.registry().view(), id) {
        Ok(id) => id,
        // A whole id that is not there (any more) can be waited for.
        Err(error) if error.status == StatusCode::NOT_FOUND => id.into(),
        Err(error) => return Err(error),
    };
    let index = |view: &View| view.alloc_index(&id);
    let keys = [WatchKey::Alloc(id.clone())];
    let found = blocking::wait(context, &options, &keys, index).await?;
    let mut response = match found.view.alloc(&id) {
        None => HttpError::not_found(format!("there is no allocation {id}")).into(),
        Some(alloc) => {
            request
                .caller
                .check(Resource::Job(&alloc.job_name), Access::Read)?;
            response::json(&**alloc, options.pretty)?
        }
    };
    found.headers(context, &mut response);
    Ok(response)
}

/// `/v1/allocation/ID/stop`
pub(crate) async fn change(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    check_datacenter(context, &request)?;
    let pretty = context.pretty(&request);
    let Some(id) = request.rest.strip_suffix("/stop") else {
        let text =
            "Invalid URL path: an allocation can be stopped, with PUT /v1/allocation/ID/stop";
        return Err(HttpError::not_found(text));
    };
    let view = context.cluster.registry().view();
    let id = resolve(&view, id)?;
    let job = view
        .alloc(&id)
        .map_or_else(Str::default, |alloc| alloc.job_name.clone());
    request.caller.check(Resource::Job(&job), Access::Write)?;
    let command = PlatformCommand::StopAlloc {
        id: id.clone(),
        time: unix_now(),
    };
    context.cluster.write(Command::Platform(command)).await?;
    let view = context.cluster.registry().view();
    match view.alloc(&id) {
        Some(alloc) => response::json(&AllocStub::from(alloc), pretty),
        None => Err(HttpError::not_found(format!("there is no allocation {id}"))),
    }
}
