//! Saying "ready" to whoever started this process: systemd's datagram protocol (sd_notify(3)).

use std::{
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
};

use crate::ProxyError;

/// A socket that somebody waits on.
#[derive(Debug)]
pub(crate) struct Notify {
    socket: UnixDatagram,
    address: String,
}

impl Notify {
    pub(crate) fn new(address: &str) -> Result<Notify, ProxyError> {
        let connect = || {
            let peer = match address.strip_prefix('@') {
                Some(name) => SocketAddr::from_abstract_name(name)?,
                None => SocketAddr::from_pathname(address)?,
            };
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&peer)?;
            // Nobody is waited for: a word that is not taken is an error.
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        Ok(Notify {
            socket: connect().map_err(|source| failed(address, source))?,
            address: address.to_owned(),
        })
    }

    pub(crate) fn ready(&self) -> Result<(), ProxyError> {
        self.socket
            .send(b"READY=1\n")
            .map(drop)
            .map_err(|source| failed(&self.address, source))
    }
}

fn failed(address: &str, source: io::Error) -> ProxyError {
    ProxyError::Notify {
        address: address.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_heard_at_paths_and_abstract_names() {
        let name = format!("wharf-notify-{}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        let by_path = UnixDatagram::bind(&path).expect("bound");
        let abstract_name = SocketAddr::from_abstract_name(&name).expect("a name");
        let by_name = UnixDatagram::bind_addr(&abstract_name).expect("bound");
        let path = path.to_str().expect("text").to_owned();
        for (socket, address) in [(by_path, path.clone()), (by_name, format!("@{name}"))] {
            Notify::new(&address).expect("there").ready().expect("sent");
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer).expect("a word");
            assert_eq!(&buffer[..length], b"READY=1\n");
        }
        std::fs::remove_file(&path).expect("removed");
        let error = Notify::new(&path).expect_err("gone").to_string();
        assert!(error.contains(&path), "{error}");
    }
}
