//! Writing heads and small bodies with one plain `send`.
//!
//! hyper hands a head and its body to the socket as two slices. For the small messages most requests are, copying both
//! into one costs less than what the kernel spends to import a vector of them.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// What is gathered into one piece, at most.
const SMALL: usize = 1024;

/// Writes the slices in order, small ones as one.
pub(crate) fn poll_write_gathered(
    socket: Pin<&mut TcpStream>,
    cx: &mut Context<'_>,
    bufs: &[io::IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    if let [one] = bufs {
        return socket.poll_write(cx, one);
    }
    let total: usize = bufs.iter().map(|buf| buf.len()).sum();
    if total > SMALL {
        return socket.poll_write_vectored(cx, bufs);
    }
    let mut piece = [0; SMALL];
    let mut end = 0;
    for buf in bufs {
        piece[end..end + buf.len()].copy_from_slice(buf);
        end += buf.len();
    }
    socket.poll_write(cx, &piece[..end])
}

/// A socket that writes that way.
#[derive(Debug)]
pub(crate) struct Gathering(pub(crate) TcpStream);

impl AsyncRead for Gathering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Gathering {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        poll_write_gathered(Pin::new(&mut self.0), cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
