//! Who asks to be let in is called back first, where it says that others reach it.

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use super::MembershipError;
use crate::{consensus::Transport, log::ServerId};

/// So many are called back at once: who asks names the address, and the leader is not to be made to call all the world.
const AT_ONCE: usize = 8;
/// How long one has to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(in super::super) struct Doorstep {
    transport: Option<Arc<dyn Transport>>,
    calls: Semaphore,
}

impl Doorstep {
    pub(in super::super) fn new(transport: Option<Arc<dyn Transport>>) -> Doorstep {
        Doorstep {
            transport,
            calls: Semaphore::new(AT_ONCE),
        }
    }

    /// Makes sure that it is server `id` that listens at `address`. What does not listen there could neither be given
    /// the log nor be heard of, and would stay a member in name.
    pub(super) async fn call_back(
        &self,
        id: ServerId,
        address: &str,
    ) -> Result<(), MembershipError> {
        let _call = self
            .calls
            .try_acquire()
            .map_err(|_| MembershipError::Busy)?;
        let reason = match &self.transport {
            None => "this server runs alone".to_owned(),
            Some(transport) => {
                let answer = tokio::time::timeout(ANSWER_WITHIN, transport.who_is_at(address));
                match answer.await {
                    Ok(Ok(found)) if found == id => return Ok(()),
                    Ok(Ok(found)) => format!("there is server {found}"),
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => "no answer in time".to_owned(),
                }
            }
        };
        Err(MembershipError::NotThere {
            id,
            address: address.to_owned(),
            reason,
        })
    }
}
