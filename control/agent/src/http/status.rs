//! `/v1/status`: the state of the cluster's consensus, the probe of half the ecosystem.

use super::{
    HttpContext,
    blocking::check_datacenter,
    error::HttpError,
    request::Request,
    response::{self, Response},
};

pub(crate) async fn leader(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    check_datacenter(context, &request)?;
    let leader = context
        .cluster
        .leader()
        .map(|leader| leader.address)
        .unwrap_or_default();
    response::json(&leader, context.pretty(&request))
}

pub(crate) async fn peers(context: &HttpContext, request: Request) -> Result<Response, HttpError> {
    check_datacenter(context, &request)?;
    let peers = context.cluster.peers();
    response::json(&peers, context.pretty(&request))
}
