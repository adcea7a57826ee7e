//! Bodies of requests that are written as they are sent: an archive of gigabytes does not fit into memory.

use std::{
    io::{self, Write},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    thread,
};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

use crate::{
    failure::{Failure, chain},
    http::{Answer, Client, Request},
};

/// Bytes that are gathered before they are sent.
const PIECE: usize = 256 << 10;
/// Pieces that wait for the socket.
const PIECES: usize = 4;

/// What a request carries.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Whole(Option<Bytes>),
    /// Ends when the writer is finished; an error cuts the request off. With its length, if that is known.
    Stream(mpsc::Receiver<io::Result<Bytes>>, Option<u64>),
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut *self {
            Outgoing::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Outgoing::Stream(receiver, _) => receiver
                .poll_recv(context)
                .map(|piece| piece.map(|piece| piece.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Outgoing::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Outgoing::Stream(_, length) => *length == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Outgoing::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64)
            }
            Outgoing::Stream(_, Some(length)) => SizeHint::with_exact(*length),
            Outgoing::Stream(_, None) => SizeHint::default(),
        }
    }
}

/// The end that a thread writes to. Dropped before [`Uploader::finish`], it cuts the request off.
#[derive(Debug)]
pub(crate) struct Uploader {
    sender: mpsc::Sender<io::Result<Bytes>>,
    gathered: BytesMut,
    finished: bool,
}

/// A body and where it is written to.
pub(crate) fn channel(length: Option<u64>) -> (Uploader, Outgoing) {
    let (sender, receiver) = mpsc::channel(PIECES);
    let uploader = Uploader {
        sender,
        gathered: BytesMut::with_capacity(PIECE),
        finished: false,
    };
    (uploader, Outgoing::Stream(receiver, length))
}

impl Uploader {
    /// Says that this is all.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        self.finished = true;
        Ok(())
    }

    fn send(&self, piece: io::Result<Bytes>) -> io::Result<()> {
        let sent = self.sender.blocking_send(piece);
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Uploader {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.gathered.split().freeze() {
            bytes if bytes.is_empty() => Ok(()),
            bytes => self.send(Ok(bytes)),
        }
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        if !self.finished {
            // The receiver may be gone, and then the request is as well.
            let _ = self.send(Err(io::ErrorKind::Interrupted.into()));
        }
    }
}

/// Sends a request whose body a thread writes.
pub(crate) async fn send(
    client: &mut Client,
    request: Request,
    failed: String,
    length: Option<u64>,
    write: impl FnOnce(&mut Uploader) -> io::Result<()> + Send + 'static,
) -> Result<Answer, Failure> {
    let (mut uploader, body) = channel(length);
    let problem: Arc<Mutex<Option<io::Error>>> = Arc::default();
    let noted = problem.clone();
    // It ends when the request does: there is nobody to write to then.
    thread::spawn(move || {
        match write(&mut uploader) {
            // It is the agent that has gone, and says why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            // Noted before the uploader cuts the request off, as it does when it goes.
            Err(error) => *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(error),
            // That nobody takes the end is no news: the answer is there.
            Ok(()) => drop(uploader.finish()),
        }
    });
    let answer = client.upload(request, body).await;
    // Why the body was cut off says more than that it was.
    if let Some(error) = problem
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take()
    {
        return Err(Failure::new(failed).because(chain(&error)));
    }
    answer.map_err(|error| error.while_(failed))
}
