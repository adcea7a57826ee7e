//! Reads of one service or node by its name, at once or when the answer changes: what `/v1/catalog` and
//! `/v1/health` have in common.

use wharf_registry::{View, watch::WatchKey};

use super::{
    HttpContext,
    blocking::{self, Answer, ReadOptions},
    error::HttpError,
    filter::RowFilter,
    request::Request,
    response::Response,
    selectors::Fields,
};
use crate::authz::Caller;

/// What is read: the watch key and the index of the answer follow from it.
#[derive(Clone, Copy, Debug)]
enum Subject {
    Service,
    Node,
}

/// A read of one service or node, with all that its request says.
#[derive(Debug)]
pub(crate) struct NamedRead<'r> {
    subject: Subject,
    pub(crate) name: &'r str,
    pub(crate) caller: &'r Caller,
    pub(crate) options: ReadOptions,
    pub(crate) filter: RowFilter,
}

impl<'r> NamedRead<'r> {
    /// A read of the service at the end of the path, with rows that have these fields.
    pub(crate) fn of_service(
        context: &HttpContext,
        request: &'r Request,
        fields: &Fields,
    ) -> Result<Self, HttpError> {
        Self::parse(
            context,
            request,
            fields,
            Subject::Service,
            "Missing service name",
        )
    }

    /// A read of the node at the end of the path.
    pub(crate) fn of_node(
        context: &HttpContext,
        request: &'r Request,
        fields: &Fields,
    ) -> Result<Self, HttpError> {
        Self::parse(context, request, fields, Subject::Node, "Missing node name")
    }

    fn parse(
        context: &HttpContext,
        request: &'r Request,
        fields: &Fields,
        subject: Subject,
        missing: &'static str,
    ) -> Result<Self, HttpError> {
        Ok(NamedRead {
            subject,
            options: ReadOptions::parse(context, request)?,
            filter: RowFilter::parse(request, fields)?,
            name: request.name(missing)?,
            caller: &request.caller,
        })
    }

    /// Answers when the index of the service or node is above the one the caller has seen.
    pub(crate) async fn respond(
        &self,
        context: &HttpContext,
        answer: impl Fn(&View) -> Result<Answer, HttpError>,
    ) -> Result<Response, HttpError> {
        let (key, index): (_, fn(&View, &str) -> u64) = match self.subject {
            Subject::Service => (WatchKey::service(self.name), View::service_index),
            Subject::Node => (WatchKey::node(self.name), View::node_index),
        };
        let index = |view: &View| index(view, self.name);
        blocking::read(context, &self.options, &[key], index, answer).await
    }
}
