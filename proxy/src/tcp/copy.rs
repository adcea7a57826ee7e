//! Moves bytes both ways between two sockets until both have ended.
//!
//! A connection owns no buffer while it is idle. Bytes are read into one scratch buffer per worker and written at once;
//! only what the other side does not take is kept, in a buffer of exactly that size, and reading stops until it is
//! gone. How much one read may take starts small and grows with what the direction has moved, so that ten thousand
//! slow receivers hold kilobytes each, and a bulk transfer still moves 256 KiB per system call.
//!
//! Half-close is kept: the end of one direction is passed on with a FIN, the other goes on.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// Read sizes by bytes moved: a first message, a conversation, bulk.
const SMALL: usize = 1024;
const MEDIUM: usize = 16 * 1024;
const LARGE: usize = 256 * 1024;
const MEDIUM_AFTER: u64 = 16 * 1024;
const LARGE_AFTER: u64 = 4 * 1024 * 1024;
/// Reads in one turn of one direction, so that a fast pair does not starve the worker's other connections.
const TURN: usize = 8;

thread_local! {
    /// The worker's scratch buffer. It grows to the largest read any connection of this worker was allowed.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// One direction.
#[derive(Debug, Default)]
struct Flow {
    /// Read but not yet taken by the other side.
    kept: Bytes,
    moved: u64,
    ended: End,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum End {
    #[default]
    Open,
    /// The reader has seen the end; the FIN has not been sent.
    Read,
    Done,
}

/// Both directions between `client` and `upstream`.
#[derive(Debug)]
pub(crate) struct Copy {
    client: TcpStream,
    upstream: TcpStream,
    out: Flow,
    back: Flow,
}

impl Copy {
    pub(crate) fn new(client: TcpStream, upstream: TcpStream) -> Self {
        Self {
            client,
            upstream,
            out: Flow::default(),
            back: Flow::default(),
        }
    }

    /// With bytes that were already read: `from_client` for the upstream and the reverse.
    pub(crate) fn with_early(
        client: TcpStream,
        upstream: TcpStream,
        from_client: Bytes,
        from_upstream: Bytes,
    ) -> Self {
        let flow = |kept| Flow {
            kept,
            ..Flow::default()
        };
        Self {
            client,
            upstream,
            out: flow(from_client),
            back: flow(from_upstream),
        }
    }

    /// Ready when both directions have ended. `moved` is called with the bytes read from (client, upstream) whenever
    /// there were any.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut moved: impl FnMut(u64, u64),
    ) -> Poll<io::Result<()>> {
        let before = (self.out.moved, self.back.moved);
        let out = self.out.poll(cx, &mut self.client, &mut self.upstream);
        let back = self.back.poll(cx, &mut self.upstream, &mut self.client);
        let (sent, received) = (self.out.moved - before.0, self.back.moved - before.1);
        if sent + received != 0 {
            moved(sent, received);
        }
        match (out, back) {
            (Poll::Ready(Err(e)), _) | (_, Poll::Ready(Err(e))) => Poll::Ready(Err(e)),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    }
}

impl Flow {
    fn read_size(&self) -> usize {
        match self.moved {
            0..MEDIUM_AFTER => SMALL,
            MEDIUM_AFTER..LARGE_AFTER => MEDIUM,
            _ => LARGE,
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
    ) -> Poll<io::Result<()>> {
        let mut turn = 0;
        loop {
            while !self.kept.is_empty() {
                let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.kept))?;
                let _ = self.kept.split_to(n);
            }
            // Not an empty `Bytes` that holds on to its allocation.
            self.kept = Bytes::new();
            match self.ended {
                End::Open => {}
                End::Read => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx)).or_else(already_gone)?;
                    self.ended = End::Done;
                    return Poll::Ready(Ok(()));
                }
                End::Done => return Poll::Ready(Ok(())),
            }
            if turn == TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            turn += 1;
            ready!(SCRATCH.with_borrow_mut(|scratch| self.step(cx, from, to, scratch)))?;
        }
    }

    /// One read, and the write of what it gave. What was not taken is in `kept`.
    fn step(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        scratch: &mut Vec<u8>,
    ) -> Poll<io::Result<()>> {
        let size = self.read_size();
        if scratch.len() < size {
            scratch.resize(size, 0);
        }
        let mut buf = ReadBuf::new(&mut scratch[..size]);
        ready!(Pin::new(from).poll_read(cx, &mut buf))?;
        let read = buf.filled();
        if read.is_empty() {
            self.ended = End::Read;
            return Poll::Ready(Ok(()));
        }
        self.moved += read.len() as u64;
        let taken = match Pin::new(to).poll_write(cx, read) {
            Poll::Ready(n) => n?,
            Poll::Pending => 0,
        };
        if taken < read.len() {
            self.kept = Bytes::copy_from_slice(&read[taken..]);
        }
        Poll::Ready(Ok(()))
    }
}

/// The peer that should hear of the end may have reset the connection: then it needs no FIN.
fn already_gone(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotConnected {
        Ok(())
    } else {
        Err(error)
    }
}
