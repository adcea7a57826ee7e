//! Ports of this machine that lead to allocations.

use std::{io, net::UdpSocket};

use rustix::net::{
    AddressFamily, SocketAddrV4, SocketFlags, SocketType, bind, socket_with,
    sockopt::set_socket_reuseaddr,
};
use serde::{Deserialize, Serialize};

use super::NetworkError;

/// A port of the machine, TCP and UDP, and the port of the allocation that it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PortMapping {
    pub host: u16,
    pub to: u16,
}

/// Refuses a port that a process listens on: the rules would take its traffic away without a word.
pub(super) fn check_free(port: u16) -> Result<(), NetworkError> {
    listener(port).map_err(|source| NetworkError::PortTaken {
        port,
        protocol: "TCP",
        source,
    })?;
    UdpSocket::bind(("0.0.0.0", port))
        .map(drop)
        .map_err(|source| NetworkError::PortTaken {
            port,
            protocol: "UDP",
            source,
        })
}

/// Binds without listening: nobody can connect, and what old connections left behind is no obstacle.
fn listener(port: u16) -> io::Result<()> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    set_socket_reuseaddr(&socket, true)?;
    Ok(bind(
        &socket,
        &SocketAddrV4::new([0, 0, 0, 0].into(), port),
    )?)
}
