//! A DNS server over made-up registrations, to ask with `dig` and to load with `dnsperf`.
//!
//! `cargo run --release -p wharf-dns --example serve -- 127.0.0.1:8600 5 200` serves
//! `s5.service.consul` with 5 instances and `s200.service.consul` with 200 until it is interrupted.

use std::{error::Error, net::SocketAddr, sync::Arc};

use tokio::net::{TcpListener, UdpSocket};
use wharf_dns::{DnsServer, Everything, ZoneSettings};
use wharf_registry::{
    Command, Committed, Replica,
    command::Register,
    model::{Node, NodeService},
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address: SocketAddr = arguments.next().ok_or("usage: ADDRESS COUNT...")?.parse()?;
    let mut replica = Replica::new();
    for count in arguments {
        for at in 0..count.parse()? {
            let index = replica.last_applied() + 1;
            let command = Some(register(&format!("s{count}"), at).encode());
            replica.apply(&[Committed { index, command }])?;
        }
    }
    let tcp = TcpListener::bind(address).await?;
    let udp = UdpSocket::bind(tcp.local_addr()?).await?;
    let settings = ZoneSettings::default();
    let registry = replica.registry();
    let server = DnsServer::start(
        settings,
        Arc::new(registry),
        Arc::new(Everything),
        vec![udp],
        vec![tcp],
    )?;
    tokio::signal::ctrl_c().await?;
    server.shutdown().await;
    Ok(())
}

fn register(service: &str, at: u32) -> Command {
    let [_, b, c, d] = (at + 1).to_be_bytes();
    Command::Register(Box::new(Register {
        node: Node {
            name: format!("{service}-{at}").into(),
            address: format!("10.{b}.{c}.{d}").into(),
            ..Node::default()
        },
        service: Some(NodeService {
            id: service.into(),
            name: service.into(),
            port: 8000,
            ..NodeService::default()
        }),
        ..Register::default()
    }))
}
