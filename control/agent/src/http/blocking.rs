//! Reads of the replicated state, at once or when it changes.
//!
//! `?index=N&wait=D` parks the read until its index is above N. The index belongs to what was asked
//! for, and so does the watch cell that wakes it: a write elsewhere neither moves the one nor wakes
//! the other. On a timeout the answer is the current one, with the index unchanged.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use tokio::time::Instant;
use wharf_config::GoDuration;
use wharf_registry::{View, watch::WatchKey};

use super::{
    HttpContext,
    error::HttpError,
    request::Request,
    response::{self, Response},
};
use crate::cluster::Consistency;

/// What the parameters of a read ask for.
#[derive(Debug)]
pub(crate) struct ReadOptions {
    pub(crate) consistency: Consistency,
    /// How long the leader may have been out of touch when a stale read ends.
    max_stale: Option<Duration>,
    /// 0: do not wait.
    pub(crate) min_index: u64,
    pub(crate) wait: Duration,
    pub(crate) pretty: bool,
}

impl ReadOptions {
    pub(crate) fn parse(context: &HttpContext, request: &Request) -> Result<Self, HttpError> {
        let settings = context.settings.load();
        let query = &request.query;
        let max_stale = query.get("max_stale").map(|text| {
            let bound = text.parse::<GoDuration>().map(GoDuration::to_std);
            bound.map_err(|_| HttpError::bad_request(format!("Invalid max_stale value {text:?}")))
        });
        // 0 is no bound.
        let max_stale = max_stale.transpose()?.filter(|bound| !bound.is_zero());
        let stale = query.has("stale") || query.has("max_stale");
        let consistent = query.has("consistent");
        if stale && consistent {
            return Err(HttpError::bad_request(
                "Cannot specify ?stale with ?consistent, conflicting semantics.",
            ));
        }
        if query.has("cached") && consistent {
            return Err(HttpError::bad_request(
                "Cannot specify ?cached with ?consistent, conflicting semantics.",
            ));
        }
        let consistency = if consistent {
            Consistency::Consistent
        } else if stale && !is_out_of_touch(context, max_stale) && !query.has("leader") {
            Consistency::Stale
        } else {
            Consistency::Default
        };
        let min_index = match query.get("index") {
            None => 0,
            Some(text) => text
                .parse()
                .map_err(|_| HttpError::bad_request("Invalid index"))?,
        };
        let wait = match query.get("wait") {
            None => settings.default_query_time,
            Some(text) => text
                .parse::<GoDuration>()
                .map_err(|_| HttpError::bad_request("Invalid wait time"))?
                .to_std(),
        };
        let wait = if wait.is_zero() {
            settings.default_query_time
        } else {
            wait
        };
        check_datacenter(context, request)?;
        Ok(ReadOptions {
            consistency,
            max_stale,
            min_index,
            wait: wait.min(settings.max_query_time),
            pretty: context.pretty(request),
        })
    }

    fn deadline(&self) -> Instant {
        // Waiters that came together do not leave together.
        let jitter = rand::random_range(0.0..=1.0) * self.wait.as_secs_f64() / 16.0;
        Instant::now() + self.wait + Duration::from_secs_f64(jitter)
    }
}

/// Whether the leader has not been heard of for longer than that. Who is, asks it instead of answering.
fn is_out_of_touch(context: &HttpContext, bound: Option<Duration>) -> bool {
    bound.is_some_and(|bound| {
        let contact = context.cluster.last_contact();
        contact.is_none_or(|contact| contact > bound)
    })
}

/// One datacenter is known, and Enterprise's namespaces are not.
pub(crate) fn check_datacenter(context: &HttpContext, request: &Request) -> Result<(), HttpError> {
    let query = &request.query;
    if let Some(datacenter) = query.get("dc").or_else(|| query.get("datacenter")) {
        known_datacenter(context, datacenter)?;
    }
    for (name, what) in [("ns", "Namespaces are"), ("partition", "Partitions are")] {
        if query.get(name).is_some() {
            return Err(HttpError::bad_request(format!(
                "Invalid query parameter: {name:?} - {what} a Consul Enterprise feature"
            )));
        }
    }
    for (name, what) in [
        ("X-Consul-Namespace", "Namespaces are"),
        ("X-Consul-Partition", "Partitions are"),
    ] {
        if request
            .headers
            .get(name)
            .is_some_and(|value| !value.is_empty())
        {
            return Err(HttpError::bad_request(format!(
                "Invalid header: {name:?} - {what} a Consul Enterprise feature"
            )));
        }
    }
    Ok(())
}

/// Refuses every datacenter but this one.
pub(crate) fn known_datacenter(context: &HttpContext, name: &str) -> Result<(), HttpError> {
    if name.eq_ignore_ascii_case(&context.node.datacenter) {
        Ok(())
    } else {
        Err(HttpError::internal("No path to datacenter"))
    }
}

/// What a read comes to.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// `None`: nothing, as for a key that does not exist.
    pub(crate) json: Option<Bytes>,
    /// Rows were left out because the caller may not see them.
    pub(crate) filtered: bool,
}

impl Answer {
    pub(crate) fn json(json: Bytes) -> Answer {
        Answer::rows(json, false)
    }

    /// Rows, of which some were left out if `filtered`: the caller may not see them.
    pub(crate) fn rows(json: Bytes, filtered: bool) -> Answer {
        Answer {
            status: StatusCode::OK,
            json: Some(json),
            filtered,
        }
    }
}

/// Answers a read when its index is above the one the caller has seen.
pub(crate) async fn read<A>(
    context: &HttpContext,
    options: &ReadOptions,
    keys: &[WatchKey],
    index: impl Fn(&View) -> u64,
    answer: A,
) -> Result<Response, HttpError>
where
    A: Fn(&View) -> Result<Answer, HttpError>,
{
    let found = wait(context, options, keys, index).await?;
    let answer = answer(&found.view)?;
    let mut response = match answer.json {
        Some(json) => response::json_bytes(answer.status, json),
        None => response::empty(answer.status),
    };
    found.headers(context, &mut response);
    if answer.filtered {
        response
            .headers_mut()
            .insert(response::FILTERED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// What a read is answered from.
pub(crate) struct Found {
    pub(crate) view: Arc<View>,
    /// Of the answer.
    index: u64,
    /// How fresh it is, which may be more than was asked for.
    consistency: Consistency,
}

impl Found {
    pub(crate) fn headers(&self, context: &HttpContext, response: &mut Response) {
        read_headers(context, self.consistency, self.index, response);
    }
}

/// Waits until the index of the answer is above the one the caller has seen, or the time is over.
pub(crate) async fn wait(
    context: &HttpContext,
    options: &ReadOptions,
    keys: &[WatchKey],
    index: impl Fn(&View) -> u64,
) -> Result<Found, HttpError> {
    context.cluster.barrier(options.consistency).await?;
    let registry = context.cluster.registry();
    let current = |consistency| {
        let view = registry.view();
        // A restored state may bring a smaller one than the caller has seen.
        let index = index(&view).max(view.restored()).max(1);
        Found {
            view,
            index,
            consistency,
        }
    };
    if options.min_index == 0 {
        return Ok(current(options.consistency));
    }
    let mut watchers: Vec<_> = keys.iter().map(|key| registry.watch(key.clone())).collect();
    let deadline = options.deadline();
    loop {
        let found = current(options.consistency);
        if found.index > options.min_index {
            return Ok(found);
        }
        let changed = futures_util::future::select_all(
            watchers
                .iter_mut()
                .map(|watcher| Box::pin(watcher.changed())),
        );
        tokio::select! {
            _ = changed => {}
            () = tokio::time::sleep_until(deadline) => break,
            () = context.shutdown.cancelled() => return Ok(current(options.consistency)),
        }
    }
    // The leader may have gone while it waited.
    let is_stale = options.consistency == Consistency::Stale;
    if !is_stale || !is_out_of_touch(context, options.max_stale) {
        return Ok(current(options.consistency));
    }
    context.cluster.barrier(Consistency::Default).await?;
    Ok(current(Consistency::Default))
}

/// Milliseconds since a contact that never was, as Consul says it: the longest duration of Go.
const NEVER: u64 = i64::MAX as u64 / 1_000_000;

/// The headers by which clients follow a read.
pub(crate) fn read_headers(
    context: &HttpContext,
    consistency: Consistency,
    index: u64,
    response: &mut Response,
) {
    let headers = response.headers_mut();
    headers.insert(response::INDEX, HeaderValue::from(index));
    let known = if context.cluster.leader().is_some() {
        "true"
    } else {
        "false"
    };
    headers.insert(response::KNOWN_LEADER, HeaderValue::from_static(known));
    let contact = match consistency {
        Consistency::Stale => context.cluster.last_contact().map_or(NEVER, |contact| {
            u64::try_from(contact.as_millis()).unwrap_or(NEVER)
        }),
        // The leader was asked.
        Consistency::Default | Consistency::Consistent => 0,
    };
    headers.insert(response::LAST_CONTACT, HeaderValue::from(contact));
    let consistency = match consistency {
        Consistency::Stale => "stale",
        Consistency::Default => "leader",
        Consistency::Consistent => "consistent",
    };
    headers.insert(response::CONSISTENCY, HeaderValue::from_static(consistency));
}
