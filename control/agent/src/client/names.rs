//! What the DNS server of a client agent answers from.

use std::{net::IpAddr, sync::Arc};

use tokio::time::Instant;
use wharf_dns::{Catalog, Partial, catalog::BoxFuture};
use wharf_proto::server::v1 as proto;
use wharf_registry::{View, mirror, mirror::Topic};

use super::Client;

/// The views of a client agent.
#[derive(Clone, Debug)]
pub(crate) struct Names(pub(crate) Client);

impl Catalog for Names {
    fn view(&self) -> Arc<View> {
        self.0.shared.registry.view()
    }

    fn partial(&self) -> Option<&dyn Partial> {
        Some(self)
    }
}

impl Partial for Names {
    fn has(&self, topics: &[Topic]) -> bool {
        let mut followed = self.0.shared.topics();
        let told = followed.are_told(topics);
        if told {
            followed.want(topics, Instant::now());
        }
        told
    }

    fn follow(&self, topics: Vec<Topic>) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let passed_on = self.0.shared.rates.pass_on();
            let deadline = Instant::now() + self.0.shared.hold;
            passed_on.is_ok() && self.0.follow(topics, deadline).await
        })
    }

    fn reverse(&self, address: IpAddr) -> BoxFuture<'_, Option<Arc<View>>> {
        Box::pin(async move {
            self.0.shared.rates.pass_on().ok()?;
            let link = self
                .0
                .link(Instant::now() + self.0.shared.hold)
                .await
                .ok()?;
            let request = proto::ReverseRequest {
                address: address.to_string(),
            };
            let reply = Client::calls(&link).reverse(request).await.ok()?;
            let records = reply.into_inner().records;
            let records: Result<Vec<_>, _> = records
                .iter()
                .map(|record| mirror::unpack(record))
                .collect();
            View::of_records(records.ok()?).ok().map(Arc::new)
        })
    }
}
