//! A netlink socket. The kernel works through a request within the call that sends it, so every reply is there
//! when the call returns and nothing ever waits.

use std::io;

use rustix::{
    fd::OwnedFd,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
        netlink::{NETFILTER, SocketAddrNetlink},
        recv, sendto, socket_with,
    },
};

use super::{
    flag,
    message::{Message, Received, messages, u32_of},
};

/// `NLMSG_ERROR`: an error, or with 0 the acknowledgement.
const ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a dump.
const DONE: u16 = 3;
/// Dumps come in pieces of at most this much.
const BUFFER: usize = 64 * 1024;
/// More than any table of one machine has; a dump beyond it is given up.
const MOST_OBJECTS: usize = 100_000;

/// What the kernel said to a request.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}")]
pub struct NetlinkError {
    /// The request, as a person would say it.
    pub what: String,
    #[source]
    pub source: io::Error,
}

/// Speaks with the kernel about the network namespace in which it was opened, from whatever thread.
#[derive(Debug)]
pub(in crate::network) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    pub(in crate::network) fn route() -> io::Result<Socket> {
        Socket::open(None)
    }

    pub(in crate::network) fn netfilter() -> io::Result<Socket> {
        Socket::open(Some(NETFILTER))
    }

    fn open(protocol: Option<rustix::net::Protocol>) -> io::Result<Socket> {
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            protocol,
        )?;
        Ok(Socket { fd, sequence: 1 })
    }

    /// Sends the messages as one datagram, each to be acknowledged. The first one that fails is the error; those
    /// behind it were tried all the same.
    pub(in crate::network) fn request(&mut self, messages: &[Message]) -> Result<(), NetlinkError> {
        let acknowledged: Vec<Message> = messages
            .iter()
            .map(|message| message.clone().with_flags(flag::REQUEST | flag::ACK))
            .collect();
        self.send(&acknowledged, |_| true)
    }

    /// Sends the messages as one datagram, of which only the last is acknowledged: a transaction.
    pub(in crate::network) fn transaction(
        &mut self,
        messages: &[Message],
    ) -> Result<(), NetlinkError> {
        // The frame itself is not acknowledged by every kernel: the last message inside it is.
        let last = messages.len().saturating_sub(2);
        let marked: Vec<Message> = messages
            .iter()
            .enumerate()
            .map(|(index, message)| match index == last {
                true => message.clone().with_flags(flag::ACK),
                false => message.clone(),
            })
            .collect();
        self.send(&marked, |index| index == last)
    }

    fn send(
        &mut self,
        all: &[Message],
        acknowledged: impl Fn(usize) -> bool,
    ) -> Result<(), NetlinkError> {
        let Some(first_message) = all.first() else {
            return Ok(());
        };
        let first = self.sequence;
        let mut bytes = Vec::with_capacity(all.iter().map(Message::encoded_len).sum());
        for message in all {
            message.encode(self.sequence, &mut bytes);
            self.sequence = self.sequence.wrapping_add(1);
        }
        let failed = |what: &str, source| NetlinkError {
            what: what.to_owned(),
            source,
        };
        self.write(&bytes)
            .map_err(|source| failed(&first_message.what, source))?;
        let mut answered = vec![false; all.len()];
        let mut error = None;
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = match self.read(&mut buffer) {
                Ok(length) => length,
                Err(source) if source.kind() == io::ErrorKind::WouldBlock => break,
                Err(source) => return Err(failed(&first_message.what, source)),
            };
            for reply in messages(&buffer[..length]).filter(|reply| reply.kind == ERROR) {
                let index = reply.sequence.wrapping_sub(first) as usize;
                let Some(message) = all.get(index) else {
                    continue;
                };
                answered[index] = true;
                if let Some(source) = refusal(reply)
                    && error.is_none()
                {
                    error = Some(failed(&message.what, source));
                }
            }
        }
        if let Some(error) = error {
            return Err(error);
        }
        match (0..all.len()).find(|index| acknowledged(*index) && !answered[*index]) {
            None => Ok(()),
            Some(index) => Err(failed(
                &all[index].what,
                io::Error::new(io::ErrorKind::UnexpectedEof, "the kernel did not answer"),
            )),
        }
    }

    /// Asks for one object or for all of a kind, and gives the payload of each to `each`.
    pub(in crate::network) fn ask(
        &mut self,
        message: &Message,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), NetlinkError> {
        let failed = |source| NetlinkError {
            what: message.what.clone(),
            source,
        };
        let sequence = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(message.encoded_len());
        message
            .clone()
            .with_flags(flag::REQUEST)
            .encode(sequence, &mut bytes);
        self.write(&bytes).map_err(failed)?;
        let mut buffer = vec![0; BUFFER];
        let mut objects = 0;
        loop {
            let length = match self.read(&mut buffer) {
                Ok(length) => length,
                // Of a single object, which has no end mark.
                Err(source) if source.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(source) => return Err(failed(source)),
            };
            for reply in messages(&buffer[..length]).filter(|reply| reply.sequence == sequence) {
                match reply.kind {
                    DONE => return Ok(()),
                    ERROR => match refusal(reply) {
                        Some(source) => return Err(failed(source)),
                        None => return Ok(()),
                    },
                    _ if objects < MOST_OBJECTS => {
                        objects += 1;
                        each(reply.payload);
                    }
                    _ => {
                        return Err(failed(io::Error::new(
                            io::ErrorKind::QuotaExceeded,
                            format!("there are more than {MOST_OBJECTS}"),
                        )));
                    }
                }
            }
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let kernel = SocketAddrNetlink::new(0, 0);
        loop {
            match sendto(&self.fd, bytes, SendFlags::empty(), &kernel) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match recv(&self.fd, &mut *buffer, RecvFlags::empty()) {
                Ok((length, _)) => return Ok(length),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The error of an `NLMSG_ERROR`; `None` if it acknowledges.
fn refusal(reply: Received<'_>) -> Option<io::Error> {
    let code = u32_of(reply.payload).map_or(0, u32::cast_signed);
    (code != 0).then(|| io::Error::from_raw_os_error(code.wrapping_neg()))
}
