//! Serving `Registry.Watch`: on a server from its state, on a client agent by asking a server.

use std::sync::Arc;

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status};
use wharf_proto::v1::{WatchRequest, WatchResponse};

use super::{
    GrpcContext, Tasks, auth,
    feed::{self, Feed, FeedStream},
    status,
    watch::{self, Watched},
};
use crate::{client::Client, cluster::Consistency, rates::Operation};

/// Serves watches, for as long as it is there.
#[derive(Clone, Debug)]
pub(crate) struct Watching {
    context: Arc<GrpcContext>,
    tasks: Arc<Tasks>,
}

impl Watching {
    /// For another server than that of the agent's gRPC ports.
    pub(crate) fn new(context: Arc<GrpcContext>, shutdown: CancellationToken) -> Watching {
        let tasks = Arc::new(Tasks {
            tracker: TaskTracker::new(),
            shutdown,
            patience: context.limits.patience,
        });
        Watching { context, tasks }
    }

    pub(super) fn of(context: Arc<GrpcContext>, tasks: Arc<Tasks>) -> Watching {
        Watching { context, tasks }
    }

    pub(crate) async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<FeedStream<WatchResponse>>, Status> {
        let caller = auth::caller(&*self.context.authorizer, request.metadata())?;
        if let Some(client) = self.context.cluster.client() {
            return self.pass_on(client, request).await;
        }
        let request = request.into_inner();
        let resume_index = request.resume_index;
        let watched = watch::parse(request, &caller)?;
        let admitted = self.context.rates.admit(Operation::Read);
        admitted.map_err(status::rate_exceeded)?;
        let fresh = self.context.cluster.barrier(Consistency::Default).await;
        fresh.map_err(|error| status::cluster(&error))?;
        let registry = self.context.cluster.registry().clone();
        let progress = self.context.limits.progress_every;
        let stream = self.open(|feed| async move {
            match watched {
                Watched::Instances(subject) => {
                    watch::follow(subject, registry, resume_index, progress, feed).await
                }
                Watched::KeyValues(subject) => {
                    watch::follow(subject, registry, resume_index, progress, feed).await
                }
            }
        });
        Ok(Response::new(stream))
    }

    /// What a server answers. It ends with that server, and the client resumes at another.
    async fn pass_on(
        &self,
        client: &Client,
        request: Request<WatchRequest>,
    ) -> Result<Response<FeedStream<WatchResponse>>, Status> {
        let mut answers = client.watch(request).await?;
        let stream = self.open(|feed: Feed<WatchResponse>| async move {
            while let Some(answer) = answers.message().await? {
                feed.send(vec![answer]).await?;
            }
            Ok(())
        });
        Ok(Response::new(stream))
    }

    fn open<F>(&self, body: impl FnOnce(Feed<WatchResponse>) -> F) -> FeedStream<WatchResponse>
    where
        F: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let shutdown = self.tasks.shutdown.clone();
        feed::open(&self.tasks.tracker, self.tasks.patience, |feed| {
            let following = body(feed);
            async move {
                tokio::select! {
                    ended = following => ended,
                    () = shutdown.cancelled() => Err(status::shutting_down()),
                }
            }
        })
    }
}
