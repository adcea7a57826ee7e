//! Every socket the agent listens on, bound before anything starts.
//!
//! A port that is taken ends the start with one error, while there is nothing to clean up.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::net::{TcpListener, UdpSocket, UnixListener};

use crate::{
    config::{Listen, RuntimeConfig, TlsConfig, TlsFiles},
    grpc::GrpcListener,
    http::HttpListener,
    tls::{self, ServerTls, TlsError},
};

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Why the agent cannot listen where it should.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("cannot listen on {address} for {what}: {source}{hint}")]
    Bind {
        what: &'static str,
        address: String,
        hint: &'static str,
        source: io::Error,
    },
    #[error("cannot serve {what}: {source}")]
    Tls {
        what: &'static str,
        source: TlsError,
    },
}

/// All sockets of an agent.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    pub(crate) http: Vec<HttpListener>,
    pub(crate) grpc: Vec<GrpcListener>,
    pub(crate) dns_udp: Vec<UdpSocket>,
    pub(crate) dns_tcp: Vec<TcpListener>,
    /// For other servers. A development server has none.
    pub(crate) server: Option<TcpListener>,
    /// The files of gRPC's Unix sockets.
    files: Vec<PathBuf>,
    /// What is served where, for a person.
    pub(crate) listening: Vec<(&'static str, String)>,
    pub(crate) tls: ListenerTls,
}

/// The certificates that are served, for as long as the agent runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct ListenerTls {
    https: Option<Arc<ServerTls>>,
    grpc: Option<Arc<ServerTls>>,
}

/// Certificates that were read and found good, and are not served yet.
#[derive(Debug, Default)]
pub(crate) struct Renewal {
    https: Option<rustls::ServerConfig>,
    grpc: Option<rustls::ServerConfig>,
}

impl ListenerTls {
    /// Reads what every listener that speaks TLS is to serve from now on. Changes nothing.
    pub(crate) fn read(&self, config: &TlsConfig) -> Result<Renewal, SocketError> {
        Ok(Renewal {
            https: self
                .https
                .as_ref()
                .map(|_| serving(HTTPS, &config.https))
                .transpose()?,
            grpc: self
                .grpc
                .as_ref()
                .map(|_| serving(GRPC_TLS, &config.grpc))
                .transpose()?,
        })
    }

    pub(crate) fn renew(&self, renewal: Renewal) {
        for (served, new) in [(&self.https, renewal.https), (&self.grpc, renewal.grpc)] {
            if let (Some(served), Some(new)) = (served, new) {
                served.replace(new);
            }
        }
    }
}

const HTTPS: &str = "HTTPS";
const GRPC_TLS: &str = "gRPC with TLS";

fn serving(what: &'static str, files: &TlsFiles) -> Result<rustls::ServerConfig, SocketError> {
    tls::server_config(files).map_err(|source| SocketError::Tls { what, source })
}

impl Sockets {
    /// Binds everything the configuration asks for, or nothing: what was bound before a failure is
    /// closed with the error.
    pub(crate) fn bind(config: &RuntimeConfig) -> Result<Sockets, SocketError> {
        let mut sockets = Sockets::default();
        let listen = &config.listen;
        for address in &listen.http {
            sockets.bind_http(config, address)?;
        }
        if !listen.https.is_empty() {
            let tls = Arc::new(ServerTls::new(serving(HTTPS, &config.tls.https)?, &[]));
            sockets.tls.https = Some(tls.clone());
            for address in &listen.https {
                let Listen::Tcp(address) = address else {
                    continue;
                };
                let listener = tcp(HTTPS, *address)?;
                sockets.note(HTTPS, format!("https://{}", local(&listener, *address)));
                sockets.http.push(HttpListener::Tls(listener, tls.clone()));
            }
        }
        for address in &listen.grpc {
            match address {
                Listen::Tcp(address) => {
                    let socket = tcp("gRPC", *address)?;
                    sockets.note("gRPC", local(&socket, *address).to_string());
                    sockets.grpc.push(GrpcListener::Plain(socket));
                }
                Listen::Unix(path) => {
                    let socket = unix(path, config.unix_socket.mode)
                        .map_err(|source| bind_error("gRPC", path.display().to_string(), source))?;
                    sockets.note("gRPC", format!("unix://{}", path.display()));
                    sockets.grpc.push(GrpcListener::Unix(socket));
                    sockets.files.push(path.clone());
                }
            }
        }
        // A certificate is what makes the TLS port meaningful: without one Consul serves its own
        // CA's, which comes with the mesh.
        if config.tls.grpc.can_serve() && !listen.grpc_tls.is_empty() {
            let server = serving(GRPC_TLS, &config.tls.grpc)?;
            let tls = Arc::new(ServerTls::new(server, &[b"h2"]));
            sockets.tls.grpc = Some(tls.clone());
            for address in &listen.grpc_tls {
                let Listen::Tcp(address) = address else {
                    continue;
                };
                let socket = tcp(GRPC_TLS, *address)?;
                sockets.note("gRPC TLS", local(&socket, *address).to_string());
                sockets.grpc.push(GrpcListener::Tls(socket, tls.clone()));
            }
        }
        if let Some(address) = listen.server.filter(|_| !config.dev_mode) {
            let listener = tcp("other servers", address)?;
            sockets.note("Servers", local(&listener, address).to_string());
            sockets.server = Some(listener);
        }
        for address in &listen.dns {
            // Port 0 is chosen once, for both.
            let listener = tcp("DNS", *address)?;
            let address = local(&listener, *address);
            sockets.dns_udp.push(udp("DNS", address)?);
            sockets.dns_tcp.push(listener);
            sockets.note("DNS", format!("{address} (UDP and TCP)"));
        }
        Ok(sockets)
    }

    fn bind_http(&mut self, config: &RuntimeConfig, address: &Listen) -> Result<(), SocketError> {
        match address {
            Listen::Tcp(address) => {
                let listener = tcp("HTTP", *address)?;
                self.note("HTTP", format!("http://{}", local(&listener, *address)));
                self.http.push(HttpListener::Plain(listener));
            }
            Listen::Unix(path) => {
                let listener = unix(path, config.unix_socket.mode)
                    .map_err(|source| bind_error("HTTP", path.display().to_string(), source))?;
                self.note("HTTP", format!("unix://{}", path.display()));
                self.http.push(HttpListener::Unix(listener, path.clone()));
            }
        }
        Ok(())
    }

    fn note(&mut self, what: &'static str, at: String) {
        self.listening.push((what, at));
    }

    /// The socket files that a start which fails later has to take away.
    pub(crate) fn socket_files(&self) -> Vec<PathBuf> {
        let of = |listener: &HttpListener| match listener {
            HttpListener::Unix(_, path) => Some(path.clone()),
            HttpListener::Plain(_) | HttpListener::Tls(..) => None,
        };
        let http = self.http.iter().filter_map(of);
        http.chain(self.files.iter().cloned()).collect()
    }
}

fn bind_error(what: &'static str, address: String, source: io::Error) -> SocketError {
    let hint = match source.kind() {
        io::ErrorKind::AddrInUse => {
            ": another process has it; choose another port, or see `ss -ltnup`"
        }
        io::ErrorKind::PermissionDenied => ": ports below 1024 need CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrNotAvailable => ": this machine has no such address",
        _ => "",
    };
    SocketError::Bind {
        what,
        address,
        hint,
        source,
    }
}

fn tcp(what: &'static str, address: SocketAddr) -> Result<TcpListener, SocketError> {
    let bind = || {
        let kind = socket2::Type::STREAM.nonblocking().cloexec();
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), kind, None)?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    bind().map_err(|source| bind_error(what, address.to_string(), source))
}

fn udp(what: &'static str, address: SocketAddr) -> Result<UdpSocket, SocketError> {
    let bind = || {
        let kind = socket2::Type::DGRAM.nonblocking().cloexec();
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), kind, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        UdpSocket::from_std(socket.into())
    };
    bind().map_err(|source| bind_error(what, address.to_string(), source))
}

/// DNS on an address that this machine need not have yet.
pub(crate) fn dns_anywhere(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let socket = |kind: socket2::Type| {
        let kind = kind.nonblocking().cloexec();
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), kind, None)?;
        socket.set_freebind_v4(true)?;
        Ok::<_, io::Error>(socket)
    };
    let udp = socket(socket2::Type::DGRAM)?;
    udp.bind(&address.into())?;
    let tcp = socket(socket2::Type::STREAM)?;
    tcp.set_reuse_address(true)?;
    tcp.bind(&address.into())?;
    tcp.listen(BACKLOG)?;
    Ok((
        UdpSocket::from_std(udp.into())?,
        TcpListener::from_std(tcp.into())?,
    ))
}

/// Binds a Unix socket. A file that a dead process left there is replaced, anything else is kept.
pub(crate) fn unix(path: &Path, mode: Option<u32>) -> io::Result<UnixListener> {
    if let Ok(metadata) = fs::symlink_metadata(path)
        && metadata.file_type().is_socket()
        && std::os::unix::net::UnixStream::connect(path).is_err()
    {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    if let Some(mode) = mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    Ok(listener)
}

fn local(listener: &TcpListener, asked: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_named_with_its_use() {
        let first = tcp("HTTP", "127.0.0.1:0".parse().unwrap()).unwrap();
        let address = first.local_addr().unwrap();
        let error = tcp("DNS", address).unwrap_err().to_string();
        assert!(
            error.contains(&address.to_string()) && error.contains("for DNS"),
            "{error}"
        );
        assert!(error.contains("another process has it"), "{error}");
    }

    #[tokio::test]
    async fn a_dead_socket_file_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wharf.sock");
        let first = unix(&path, Some(0o660)).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o660
        );
        assert_eq!(
            unix(&path, None).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        drop(first);
        unix(&path, None).unwrap();
        let plain = directory.path().join("file");
        fs::write(&plain, "x").unwrap();
        assert!(unix(&plain, None).is_err());
        assert_eq!(fs::read_to_string(&plain).unwrap(), "x");
    }
}
