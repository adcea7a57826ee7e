//! Taking an instance or the whole node out of service, and back.

use super::{
    CheckKind, CheckSpec, LocalError, LocalState, NODE_MAINTENANCE, inner::Status,
    service_maintenance,
};
use crate::authz::Token;

impl LocalState {
    /// Takes an instance out of service. An empty reason stands for a default one; an instance that is out
    /// of service already keeps its reason.
    pub async fn start_service_maintenance(
        &self,
        id: &str,
        reason: &str,
        token: Option<Token>,
    ) -> Result<(), LocalError> {
        let check = CheckSpec {
            id: service_maintenance(id),
            name: "Service Maintenance Mode".into(),
            service_id: id.into(),
            ..maintenance("service", reason, token)
        };
        self.start_maintenance(check)
            .await
            .map_err(|error| match error {
                LocalError::NoSuchService(id) => LocalError::UnknownService(id),
                other => other,
            })
    }

    pub async fn end_service_maintenance(&self, id: &str) -> Result<(), LocalError> {
        if self.service(id).is_none() {
            return Err(LocalError::UnknownService(id.into()));
        }
        self.end_maintenance(&service_maintenance(id)).await
    }

    /// Takes the whole node out of service.
    pub async fn start_node_maintenance(
        &self,
        reason: &str,
        token: Option<Token>,
    ) -> Result<(), LocalError> {
        let check = CheckSpec {
            id: NODE_MAINTENANCE.into(),
            name: "Node Maintenance Mode".into(),
            ..maintenance("node", reason, token)
        };
        self.start_maintenance(check).await
    }

    pub async fn end_node_maintenance(&self) -> Result<(), LocalError> {
        self.end_maintenance(NODE_MAINTENANCE).await
    }

    async fn start_maintenance(&self, check: CheckSpec) -> Result<(), LocalError> {
        self.change(|inner, context| match inner.checks.get(&check.id) {
            Some(_) => Ok(()),
            None => inner.register_check(check, Status::Stated, context),
        })?;
        Ok(self.save().await?)
    }

    async fn end_maintenance(&self, check: &str) -> Result<(), LocalError> {
        self.change(|inner, context| match inner.checks.get(check) {
            Some(_) => inner.deregister_check(&check.into(), context),
            None => Ok(()),
        })?;
        Ok(self.save().await?)
    }
}

fn maintenance(what: &str, reason: &str, token: Option<Token>) -> CheckSpec {
    let notes = match reason {
        "" => format!(
            "Maintenance mode is enabled for this {what}, but no reason was provided. This is a default message."
        ),
        reason => reason.to_owned(),
    };
    CheckSpec {
        notes: notes.into(),
        kind: CheckKind::Maintenance,
        token,
        ..CheckSpec::default()
    }
}
