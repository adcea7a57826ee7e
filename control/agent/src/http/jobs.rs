//! `/v1/jobs` and `/v1/job/`: what is to run.

use std::sync::Arc;

use http::StatusCode;
use serde::{Deserialize, Serialize};
use wharf_launcher::image::Reference;
use wharf_registry::{
    Command, View,
    command::PlatformCommand,
    model::{
        Str,
        platform::{Driver, Job, JobType, UnixNanos},
    },
    watch::WatchKey,
};

use super::{
    HttpContext,
    allocations::AllocStub,
    blocking::{self, Answer, ReadOptions, check_datacenter},
    error::HttpError,
    filter::RowFilter,
    request::Request,
    response::{self, Response},
    selectors,
};
use crate::{
    authz::{Access, Resource},
    jobspec,
    platform::{JobSummary, images::ImagesError, scheduling::PlacementFailure, unix_now},
};

/// A job in a list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct JobStub<'a> {
    #[serde(rename = "ID")]
    id: &'a Str,
    name: &'a Str,
    #[serde(rename = "Type")]
    kind: JobType,
    version: u64,
    stop: bool,
    submit_time: UnixNanos,
    create_index: u64,
    modify_index: u64,
    job_modify_index: u64,
    #[serde(flatten)]
    summary: JobSummary,
}

/// A job with how it is doing.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct JobDetail<'a> {
    #[serde(flatten)]
    job: &'a Job,
    #[serde(flatten)]
    summary: JobSummary,
    /// What finds no node, as the leader's scheduler saw it last.
    placement_failures: Vec<PlacementFailure>,
}

/// What became of a registration.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Registered {
    name: Str,
    version: u64,
    job_modify_index: u64,
    /// Of the change: what came of it has larger indexes.
    index: u64,
}

pub(crate) async fn list(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    let options = ReadOptions::parse(context, &request)?;
    let filter = RowFilter::parse(&request, &selectors::JOB)?;
    let prefix = request.query.get("prefix").unwrap_or("");
    let answer = |view: &View| {
        let mut rows = Vec::new();
        let mut filtered = false;
        for job in view.jobs().filter(|job| job.name.starts_with(prefix)) {
            if !request.caller.may(Resource::Job(&job.name), Access::Read) {
                filtered = true;
                continue;
            }
            rows.push(JobStub {
                id: &job.id,
                name: &job.name,
                kind: job.kind,
                version: job.version,
                stop: job.stop,
                submit_time: job.submit_time,
                create_index: job.create_index,
                modify_index: job.modify_index,
                job_modify_index: job.job_modify_index,
                summary: JobSummary::of(view, job),
            });
        }
        Ok(Answer::rows(
            filter.encode(&rows, options.pretty)?,
            filtered,
        ))
    };
    let keys = [WatchKey::Jobs, WatchKey::Allocs];
    let index = |view: &View| {
        let indexes = view.platform_indexes();
        indexes.jobs.max(indexes.allocs)
    };
    blocking::read(context, &options, &keys, index, answer).await
}

pub(crate) async fn register(
    context: &HttpContext,
    request: Request,
) -> Result<Response, HttpError> {
    put(context, request, None).await
}

async fn put(
    context: &HttpContext,
    mut request: Request,
    name: Option<Str>,
) -> Result<Response, HttpError> {
    check_datacenter(context, &request)?;
    let pretty = context.pretty(&request);
    let check_index = match (request.query.has("cas"), request.query.get("cas")) {
        (false, _) => None,
        (true, text) => Some(text.unwrap_or("").parse().map_err(|_| {
            HttpError::bad_request("Invalid value for ?cas: it is a JobModifyIndex")
        })?),
    };
    let body = request.body(jobspec::MAX_SIZE).await?;
    let mut job = jobspec::decode_body(&body)
        .map_err(|error| HttpError::bad_request(format!("the job is not accepted: {error}")))?;
    if let Some(name) = name
        && name != job.name
    {
        let text = format!("the path names job {name:?}, the body {:?}", job.name);
        return Err(HttpError::bad_request(text));
    }
    let name = job.name.clone();
    request.caller.check(Resource::Job(&name), Access::Write)?;
    pin_images(context, &mut job).await?;
    let command = PlatformCommand::RegisterJob {
        job: Box::new(job),
        check_index,
        time: unix_now(),
    };
    let before = context.cluster.registry().view().applied();
    context.cluster.write(Command::Platform(command)).await?;
    registered(context, &name, before, pretty)
}

/// Finds the digest of each image that is named without one: what runs, here and wherever an instance is
/// replaced later, even when the tag moves. An image in files is taken over from those of this machine.
async fn pin_images(context: &HttpContext, job: &mut Job) -> Result<(), HttpError> {
    for (at, group) in job.groups.iter_mut().enumerate() {
        for (task_at, task) in Arc::make_mut(group).tasks.iter_mut().enumerate() {
            if task.driver != Driver::Container || !task.image_digest.is_empty() {
                continue;
            }
            let refused = |error: ImagesError| {
                let HttpError { status, text } = error.into();
                let place = format!("Groups[{at}].Tasks[{task_at}].Image");
                HttpError::new(status, format!("the job is not accepted: {place}: {text}"))
            };
            let reference = Reference::parse(&task.image);
            let digest = match reference.map_err(|error| refused(error.into()))? {
                Reference::Named(name) => context.images.resolve(&name).await,
                files => context.images.import_files(files).await,
            };
            let digest = digest.map_err(refused)?;
            task.image_digest = digest.to_string().into();
        }
    }
    Ok(())
}

/// The job as it is after a write of this agent. The scheduler may have been faster than this look, so the index is that
/// of the change, or of the state before it, and not of what is here by now.
fn registered(
    context: &HttpContext,
    name: &Str,
    before: u64,
    pretty: bool,
) -> Result<Response, HttpError> {
    let view = context.cluster.registry().view();
    let job = view.job(name);
    let answer = Registered {
        name: name.clone(),
        version: job.map_or(0, |job| job.version),
        job_modify_index: job.map_or(0, |job| job.job_modify_index),
        index: job.map_or(before, |job| job.modify_index.max(before)),
    };
    response::json(&answer, pretty)
}

/// `/v1/job/NAME` and what is below it.
fn path(request: &Request) -> Result<(Str, &str), HttpError> {
    let (name, below) = request.rest.split_once('/').unwrap_or((&request.rest, ""));
    if name.is_empty() {
        return Err(HttpError::bad_request("Must provide the name of a job"));
    }
    Ok((name.into(), below))
}

fn no_such_path(request: &Request) -> HttpError {
    HttpError::not_found(format!(
        "Invalid URL path: there is no /v1/job/{}",
        request.rest
    ))
}

fn unknown_job(name: &str) -> HttpError {
    HttpError::not_found(format!("there is no job {name:?}"))
}

pub(crate) async fn get(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    let (name, below) = path(&request)?;
    let options = ReadOptions::parse(context, &request)?;
    request.caller.check(Resource::Job(&name), Access::Read)?;
    match below {
        "" => detail(context, &request, &options, &name).await,
        "versions" => versions(context, &options, &name).await,
        "allocations" => allocations(context, &options, &name).await,
        "decisions" => {
            let decisions = context.decisions.recent(&name);
            response::json(&decisions, options.pretty)
        }
        _ => Err(no_such_path(&request)),
    }
}

async fn detail(
    context: &HttpContext,
    request: &Request,
    options: &ReadOptions,
    name: &Str,
) -> Result<Response, HttpError> {
    let version: Option<u64> = match request.query.get("version") {
        None => None,
        Some(text) => Some(
            text.parse()
                .map_err(|_| HttpError::bad_request("Invalid value for ?version"))?,
        ),
    };
    let keys = [
        WatchKey::Job(name.clone()),
        WatchKey::JobAllocs(name.clone()),
    ];
    let index = |view: &View| view.job_index(name).max(view.job_allocs_index(name));
    let found = blocking::wait(context, options, &keys, index).await?;
    let view = &found.view;
    let job = match version {
        None => view.job(name),
        Some(version) => view.job_version(name, version),
    };
    let mut response = match job {
        None => unknown_job(name).into(),
        Some(job) => {
            let detail = JobDetail {
                job,
                summary: JobSummary::of(view, job),
                placement_failures: context.decisions.failures(name),
            };
            response::json(&detail, options.pretty)?
        }
    };
    found.headers(context, &mut response);
    Ok(response)
}

async fn versions(
    context: &HttpContext,
    options: &ReadOptions,
    name: &Str,
) -> Result<Response, HttpError> {
    let answer = |view: &View| {
        let entry = view.job_entry(name).ok_or_else(|| unknown_job(name))?;
        // Newest first.
        let rows: Vec<&Job> = entry.versions.values().rev().map(|job| &**job).collect();
        Ok(Answer::json(response::encode(&rows, options.pretty)?))
    };
    let index = |view: &View| view.job_index(name);
    blocking::read(
        context,
        options,
        &[WatchKey::Job(name.clone())],
        index,
        answer,
    )
    .await
}

async fn allocations(
    context: &HttpContext,
    options: &ReadOptions,
    name: &Str,
) -> Result<Response, HttpError> {
    let answer = |view: &View| {
        let rows: Vec<AllocStub<'_>> = view.job_allocs(name).map(|alloc| alloc.into()).collect();
        Ok(Answer::json(response::encode(&rows, options.pretty)?))
    };
    let index = |view: &View| view.job_allocs_index(name);
    let keys = [WatchKey::JobAllocs(name.clone())];
    blocking::read(context, options, &keys, index, answer).await
}

/// How many instances of a group there are to be.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Scale {
    /// May be left out when the job has one group.
    group: Str,
    count: Option<u32>,
}

pub(crate) async fn change(
    context: &HttpContext,
    mut request: Request,
) -> Result<Response, HttpError> {
    let (name, below) = path(&request)?;
    match below {
        "" => return put(context, request, Some(name)).await,
        "scale" => {}
        _ => return Err(no_such_path(&request)),
    }
    check_datacenter(context, &request)?;
    request.caller.check(Resource::Job(&name), Access::Write)?;
    let pretty = context.pretty(&request);
    let body = request.body(4096).await?;
    let scale: Scale = wharf_config::decode_json_bytes(&body, wharf_config::Mode::Strict)
        .map_err(|error| HttpError::bad_request(format!("Request decode failed: {error}")))?;
    let Some(count) = scale.count else {
        return Err(HttpError::bad_request(
            "Must provide Count: how many instances there are to be",
        ));
    };
    let command = PlatformCommand::ScaleJob {
        name: name.clone(),
        group: scale.group,
        count,
        time: unix_now(),
    };
    let before = context.cluster.registry().view().applied();
    context.cluster.write(Command::Platform(command)).await?;
    registered(context, &name, before, pretty)
}

pub(crate) async fn delete(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    check_datacenter(context, &request)?;
    let (name, below) = path(&request)?;
    if !below.is_empty() {
        return Err(HttpError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "only a job can be deleted",
        ));
    }
    let pretty = context.pretty(&request);
    request.caller.check(Resource::Job(&name), Access::Write)?;
    let command = PlatformCommand::DeregisterJob {
        name: name.clone(),
        purge: request.flag("purge")?,
        time: unix_now(),
    };
    let before = context.cluster.registry().view().applied();
    context.cluster.write(Command::Platform(command)).await?;
    registered(context, &name, before, pretty)
}
