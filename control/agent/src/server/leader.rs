//! What a server asks of the one that leads.

use std::time::Duration;

use bytes::Bytes;
use tonic::{Request, Response, Status, transport::Channel};
use wharf_proto::server::v1::{self as proto, servers_client::ServersClient};

use super::*;
use crate::servers::{enveloped, read_leader, read_member};

/// How long an answer may take beyond what the leader itself takes for a lost quorum. A connection whose
/// other end is silent breaks long before.
const ANSWER_WITHIN: Duration = Duration::from_secs(35);

/// How long a leader that was deposed may still answer.
const LAST_WORDS_WITHIN: Duration = Duration::from_millis(250);

/// Waits for what becomes of a call.
async fn answer<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(ANSWER_WITHIN, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(status.into()),
        Err(_) => Err(CallError::Unknown("the leader does not answer".to_owned())),
    }
}

impl From<CallError> for ClusterError {
    fn from(error: CallError) -> ClusterError {
        match error {
            // Nothing was done: there may be another leader in a moment.
            CallError::NotDone(_) | CallError::Refused(_) => ClusterError::NoLeader,
            CallError::Overloaded(_) => ClusterError::Overloaded,
            CallError::DiskFull(text) => ClusterError::DiskFull(text),
            CallError::TooLarge(text) => ClusterError::TooLarge(text),
            CallError::Unknown(_) => ClusterError::OutcomeUnknown(error.to_string()),
        }
    }
}

/// For what changes the servers: a refusal is an answer.
fn operation(error: CallError) -> ClusterError {
    match error {
        CallError::Refused(text) => ClusterError::Operation(text),
        error => error.into(),
    }
}

impl From<MembershipError> for ClusterError {
    fn from(error: MembershipError) -> ClusterError {
        match error {
            MembershipError::NoLeader | MembershipError::NotLeader { .. } => ClusterError::NoLeader,
            MembershipError::ShuttingDown => ClusterError::ShuttingDown,
            MembershipError::OutcomeUnknown => ClusterError::OutcomeUnknown(error.to_string()),
            error => ClusterError::Operation(error.to_string()),
        }
    }
}

impl Server {
    /// A connection to the leader, and a way to address it.
    fn calling<T>(
        &self,
        leader: &RaftLeader,
        message: T,
    ) -> Result<(ServersClient<Channel>, Request<T>), ClusterError> {
        let (peers, request) = self.addressed(leader, message)?;
        Ok((peers.caller(&leader.address)?, request))
    }

    fn addressed<T>(
        &self,
        leader: &RaftLeader,
        message: T,
    ) -> Result<(&Peers, Request<T>), ClusterError> {
        let (Some(peers), Some(cluster)) = (&self.peers, self.consensus.cluster()) else {
            return Err(ClusterError::NoLeader);
        };
        let envelope = consensus::Envelope {
            cluster,
            from: self.consensus.id(),
            to: leader.id,
        };
        Ok((peers, enveloped(&envelope, message)))
    }

    pub(super) async fn propose_at(
        &self,
        leader: &RaftLeader,
        command: Bytes,
    ) -> Result<Outcome, ClusterError> {
        let size = command.len();
        let request = proto::ProposeRequest { command };
        let mut changes = self.consensus.leader_changes();
        let (peers, request) = self.addressed(leader, request)?;
        let mut client = peers.proposer(&leader.address, size)?;
        // Who was deposed may not be able to say so: a machine that hangs, a cable that was pulled.
        let deposed = async {
            let deposed = changes.wait_for(|now| now.as_ref().is_some_and(|now| now != leader));
            let _ = deposed.await;
            tokio::time::sleep(LAST_WORDS_WITHIN).await;
        };
        let reply = tokio::select! {
            reply = answer(client.propose(request)) => reply?,
            () = deposed => {
                let reason = format!("{} leads no more, and did not answer", leader.name);
                return Err(CallError::Unknown(reason).into());
            }
        };
        match self.applied(reply.index, APPLIED_WITHIN).await {
            // It is done all the same; this server is behind, and says so to whoever reads.
            Err(ClusterError::Behind(reason)) => {
                tracing::debug!(reason, "this server is behind its own write");
            }
            applied => applied?,
        }
        Outcome::decode(&reply.outcome).map_err(|error| {
            ClusterError::OutcomeUnknown(format!(
                "the change has taken place, and its outcome is not readable here: {error}"
            ))
        })
    }

    /// Waits until this server has what the leader says a read needs. A leader that is lost meanwhile is
    /// not waited for: the next one answers as well.
    pub(super) async fn barrier_of(
        &self,
        leader: &RaftLeader,
        consistency: Consistency,
    ) -> Result<(), ClusterError> {
        let request = proto::ReadIndexRequest {
            quorum: consistency == Consistency::Consistent,
        };
        let mut changes = self.consensus.leader_changes();
        let (mut client, request) = self.calling(leader, request)?;
        let lost = changes.wait_for(|now| now.as_ref() != Some(leader));
        let index = tokio::select! {
            reply = answer(client.read_index(request)) => match reply {
                Ok(reply) => reply.index,
                // A read has no outcome that could be unknown.
                Err(_) => return Err(ClusterError::NoLeader),
            },
            _ = lost => return Err(ClusterError::NoLeader),
        };
        self.applied(index, self.hold).await
    }

    /// Waits until this server has what the log has at `index`, unless it is known that it will not.
    async fn applied(&self, index: u64, within: Duration) -> Result<(), ClusterError> {
        let deadline = tokio::time::Instant::now() + within;
        let applied = self.consensus.wait_applied(index);
        tokio::pin!(applied);
        loop {
            let now = tokio::time::Instant::now();
            let look = deadline.min(now + LOOK_AGAIN);
            match tokio::time::timeout_at(look, &mut applied).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(_)) => return Err(ClusterError::ShuttingDown),
                Err(_) if !self.consensus.can_follow() => {
                    return Err(ClusterError::Behind("its disk is full"));
                }
                Err(_) if look >= deadline => {
                    return Err(ClusterError::Behind("what was written has not come yet"));
                }
                Err(_) => {}
            }
        }
    }

    /// Does `here` on the leader, and `there` with the leader on every other server.
    async fn at_leader<T, H, R>(
        &self,
        here: impl Fn() -> H,
        there: impl Fn(RaftLeader) -> R,
    ) -> Result<T, ClusterError>
    where
        H: Future<Output = Result<T, MembershipError>>,
        R: Future<Output = Result<T, ClusterError>>,
    {
        self.held(|| async {
            match here().await {
                Err(MembershipError::NotLeader { leader }) => there(leader).await,
                result => Ok(result?),
            }
        })
        .await
    }
}

impl Operator for Server {
    fn configuration(&self) -> BoxFuture<'_, Result<(Vec<Member>, u64), ClusterError>> {
        let here = move || async move {
            match self.consensus.leader() {
                None => Err(MembershipError::NoLeader),
                Some(_) if self.consensus.is_leader() => {
                    let index = self.registry.view().log_index();
                    Ok((self.consensus.members(), index))
                }
                Some(leader) => Err(MembershipError::NotLeader { leader }),
            }
        };
        let there = move |leader: RaftLeader| async move {
            let (mut client, request) = self.calling(&leader, proto::MembersRequest {})?;
            let reply = answer(client.members(request)).await?;
            let members = reply.members.into_iter().map(read_member);
            let members = members
                .collect::<Result<_, _>>()
                .map_err(|error| ClusterError::Operation(error.to_string()))?;
            Ok((members, reply.index))
        };
        Box::pin(self.at_leader(here, there))
    }

    fn remove(&self, id: ServerId) -> BoxFuture<'_, Result<(), ClusterError>> {
        let here = move || self.consensus.remove(id);
        let there = move |leader: RaftLeader| async move {
            let request = proto::RemoveRequest {
                id: Bytes::copy_from_slice(id.0.as_bytes()),
            };
            let (mut client, request) = self.calling(&leader, request)?;
            answer(client.remove(request)).await.map_err(operation)?;
            Ok(())
        };
        Box::pin(self.at_leader(here, there))
    }

    fn transfer_leadership(
        &self,
        to: Option<ServerId>,
    ) -> BoxFuture<'_, Result<String, ClusterError>> {
        let here = move || async move {
            let leader = self.consensus.hand_over(to).await?;
            Ok(leader.name)
        };
        let there = move |leader: RaftLeader| async move {
            let request = proto::TransferLeadershipRequest {
                id: to.map_or_else(Bytes::new, |to| Bytes::copy_from_slice(to.0.as_bytes())),
            };
            let (mut client, request) = self.calling(&leader, request)?;
            let reply = answer(client.transfer_leadership(request))
                .await
                .map_err(operation)?;
            let leader = read_leader(reply.leader)
                .map_err(|error| ClusterError::Operation(error.to_string()))?;
            Ok(leader.name)
        };
        Box::pin(self.at_leader(here, there))
    }

    fn join<'a>(&'a self, place: &'a str) -> BoxFuture<'a, Result<(), ClusterError>> {
        Box::pin(async move {
            let peers = self.peers.as_ref();
            let Some(introductions) = peers.and_then(Peers::introductions) else {
                let error = "this server runs alone: it takes no others (see -dev)";
                return Err(ClusterError::Operation(error.to_owned()));
            };
            let joined = introductions.join_at(place).await;
            joined.map_err(|error| ClusterError::Operation(error.to_string()))
        })
    }
}
