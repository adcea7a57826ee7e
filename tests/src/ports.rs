//! Ports that nobody uses.
//!
//! They are chosen below the range from which the kernel takes the source ports of outgoing
//! connections, so that none of those can take a port between its choice and its use, nor while an
//! agent that is being restarted has let go of it.

use std::{
    net::{TcpListener, UdpSocket},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

const FIRST: u32 = 10_000;
// The sidecars' own range starts at 21,000.
const COUNT: u32 = 10_900;

/// A port of the loopback address on which neither TCP nor UDP is in use, and which this process
/// has not given out before.
///
/// # Panics
///
/// When there is none.
pub fn free_port() -> u16 {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    for _ in 0..COUNT {
        // Processes that run at the same time start far from one another.
        let offset = process::id().wrapping_mul(97) + GIVEN.fetch_add(1, Ordering::Relaxed);
        let Ok(port) = u16::try_from(FIRST + offset % COUNT) else {
            continue;
        };
        let free = TcpListener::bind(("127.0.0.1", port)).is_ok()
            && UdpSocket::bind(("127.0.0.1", port)).is_ok();
        if free {
            return port;
        }
    }
    panic!("no port is free");
}

/// The ports of one agent.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    pub http: u16,
    pub grpc: u16,
    pub dns: u16,
    pub server: u16,
    /// Off without.
    pub https: Option<u16>,
    /// Off without.
    pub grpc_tls: Option<u16>,
}

impl Ports {
    /// Those of an agent that does not speak TLS.
    pub fn choose() -> Ports {
        Ports {
            http: free_port(),
            grpc: free_port(),
            dns: free_port(),
            server: free_port(),
            https: None,
            grpc_tls: None,
        }
    }

    /// The same, and two for TLS.
    pub fn choose_with_tls() -> Ports {
        Ports {
            https: Some(free_port()),
            grpc_tls: Some(free_port()),
            ..Ports::choose()
        }
    }

    /// The flags that make an agent use them.
    pub fn flags(&self) -> Vec<String> {
        let mut flags = vec![
            format!("-http-port={}", self.http),
            format!("-grpc-port={}", self.grpc),
            format!("-grpc-tls-port={}", self.grpc_tls.map_or(-1, i32::from)),
            format!("-dns-port={}", self.dns),
            format!("-server-port={}", self.server),
        ];
        flags.extend(self.https.map(|port| format!("-https-port={port}")));
        flags
    }
}
