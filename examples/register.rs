//! A client of the registration API: an instance that is registered for as long as this program
//! runs, and that prints what happens to its service.
//!
//! ```text
//! wharf agent -dev &
//! cargo run -p wharf-proto --example register -- web 8080
//! ```
//!
//! Run it twice with different ports, end one with Ctrl-C, and see the other one notice.
//! `--for 3s` ends it by itself; `--agent http://10.0.0.5:8502` talks to another agent.

use std::{error::Error, process, time::Duration};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use wharf_proto::v1::{
    Instance, LeaseOpen, LeaseRequest, ServiceTarget, WatchRequest,
    lease_request::Message as Request, lease_response::Message as Response,
    registry_client::RegistryClient, watch_request::Target, watch_response::Event,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse(std::env::args().skip(1))?;
    let agent = Channel::from_shared(options.agent)?.connect().await?;
    let mut registry = RegistryClient::new(agent);

    // The lease is a stream in both directions. Its first message says who we are; as long as it is
    // open, we are there. After it breaks we are critical at once, and gone ten seconds later.
    let (requests, to_agent) = mpsc::channel(1);
    let open = LeaseOpen {
        instance: Some(Instance {
            service: options.service.clone(),
            id: format!("{}-{}", options.service, process::id()),
            address: "127.0.0.1".into(),
            port: options.port.into(),
            ..Instance::default()
        }),
        remove_after: Some(prost_types::Duration {
            seconds: 10,
            nanos: 0,
        }),
        ..LeaseOpen::default()
    };
    let message = Some(Request::Open(open));
    requests.send(LeaseRequest { message }).await?;
    let mut lease = registry
        .lease(ReceiverStream::new(to_agent))
        .await?
        .into_inner();

    // A watch begins with all instances that are there, and goes on with what changes.
    let target = Target::Service(ServiceTarget {
        name: options.service,
        ..ServiceTarget::default()
    });
    let request = WatchRequest {
        target: Some(target),
        resume_index: 0,
    };
    let mut watch = registry.watch(request).await?.into_inner();

    let the_end = tokio::time::sleep(options.run_for);
    tokio::pin!(the_end);
    loop {
        tokio::select! {
            response = lease.message() => match response?.and_then(|response| response.message) {
                Some(Response::Granted(granted)) => println!("registered as {} on {}", granted.id, granted.node),
                Some(Response::Drain(drain)) => println!("the agent asks to go elsewhere: {}", drain.reason),
                None => return Err("the agent ended the lease".into()),
            },
            response = watch.message() => match response?.and_then(|response| response.event) {
                Some(event) => print(event),
                None => return Err("the agent ended the watch".into()),
            },
            _ = tokio::signal::ctrl_c() => break,
            () = &mut the_end => break,
        }
    }
    // Dropping the streams is all it takes to leave.
    Ok(())
}

fn print(event: Event) {
    match event {
        Event::InstanceUpserted(upserted) => {
            let status = upserted.status();
            let Some(instance) = upserted.instance else {
                return;
            };
            let address = match instance.address.as_str() {
                "" => upserted.node_address,
                address => address.to_owned(),
            };
            println!(
                "+ {} at {address}:{}, {}",
                instance.id,
                instance.port,
                status.as_str_name()
            );
        }
        Event::InstanceRemoved(key) => println!("- {}", key.id),
        Event::SnapshotComplete(_) => println!("= that is all there is now"),
        // Nothing new, or of a kind that was not asked for.
        _ => {}
    }
}

struct Options {
    service: String,
    port: u16,
    agent: String,
    run_for: Duration,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, Box<dyn Error>> {
        const USAGE: &str = "usage: register SERVICE PORT [--agent URL] [--for 3s]";
        let mut options = Options {
            service: args.next().ok_or(USAGE)?,
            port: args.next().ok_or(USAGE)?.parse()?,
            agent: "http://127.0.0.1:8502".into(),
            // As good as for ever.
            run_for: Duration::from_secs(u32::MAX.into()),
        };
        while let Some(flag) = args.next() {
            let value = args.next().ok_or(USAGE)?;
            match flag.as_str() {
                "--agent" => options.agent = value,
                "--for" => {
                    options.run_for = Duration::from_secs(value.trim_end_matches('s').parse()?)
                }
                _ => return Err(USAGE.into()),
            }
        }
        Ok(options)
    }
}
