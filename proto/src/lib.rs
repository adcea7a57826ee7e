//! The wire formats of wharf, generated from the .proto files beside this crate. No logic.

#![forbid(unsafe_code)]

/// Package `wharf.v1`: the registration API and the proxy configuration stream.
#[allow(missing_debug_implementations, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("wharf.v1");
}

/// Package `wharf.server.v1`: what the servers of a cluster say to each other, and client agents to them.
pub mod server {
    #[allow(missing_debug_implementations, unreachable_pub, clippy::all)]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/server/wharf.server.v1.rs"));
    }
}

/// The encoded `FileDescriptorSet` of every public package, for gRPC server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/wharf.v1.fds"));
