//! What the demo runs: containers where the node can, processes where it cannot.

use std::{net::SocketAddr, path::Path};

use super::{containers::Containers, plain::Plain};
use crate::{failure::Failure, http::Client};

/// The instances of `web`, and a client's sidecar.
#[derive(Debug)]
pub(super) enum Fleet {
    Plain(Box<Plain>),
    Containers(Containers),
}

impl Fleet {
    /// Containers, or with the reason why not processes.
    pub(super) async fn choose(
        directory: &Path,
        client: &mut Client,
        http: u16,
    ) -> Result<(Fleet, Option<String>), Failure> {
        match Containers::unavailable(client).await {
            None => Ok((
                Fleet::Containers(Containers::new(directory.to_owned(), http)),
                None,
            )),
            Some(reason) => Ok((
                Fleet::Plain(Box::new(Plain::new(directory.to_owned())?)),
                Some(reason),
            )),
        }
    }

    /// Starts three instances and the client; returns where its sidecar takes requests.
    pub(super) async fn start(
        &mut self,
        client: &mut Client,
        grpc: u16,
    ) -> Result<SocketAddr, Failure> {
        match self {
            Fleet::Containers(jobs) => jobs.start(client).await,
            Fleet::Plain(plain) => {
                let local = plain.start_sidecar(grpc).await?;
                plain.scale(client, 3).await?;
                Ok(local)
            }
        }
    }

    pub(super) async fn scale(&mut self, client: &mut Client, count: usize) -> Result<(), Failure> {
        match self {
            Fleet::Plain(plain) => plain.scale(client, count).await,
            Fleet::Containers(jobs) => jobs.scale(client, count).await,
        }
    }

    /// Kills one instance and returns its name.
    pub(super) async fn kill_one(&mut self, client: &mut Client) -> Result<String, Failure> {
        match self {
            Fleet::Plain(plain) => plain.kill_one(client).await,
            Fleet::Containers(jobs) => jobs.kill_one(client).await,
        }
    }

    /// Starts again what was killed, where nobody else does.
    pub(super) async fn restart_killed(&mut self, client: &mut Client) -> Result<(), Failure> {
        match self {
            Fleet::Plain(plain) => plain.restart_killed(client).await,
            Fleet::Containers(_) => Ok(()),
        }
    }

    pub(super) async fn stop(&mut self, client: &mut Client) {
        match self {
            Fleet::Plain(plain) => plain.stop().await,
            Fleet::Containers(jobs) => jobs.stop(client).await,
        }
    }
}
