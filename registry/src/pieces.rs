//! Bytes that come in pieces, read as one.

use std::io::{self, Read};

use bytes::{Buf as _, Bytes};
use tokio::sync::mpsc;

/// Reads what an iterator gives, until it ends. An error in it is one of the reader's.
#[derive(Debug)]
pub struct Pieces<I> {
    pieces: I,
    current: Bytes,
}

impl<I: Iterator<Item = io::Result<Bytes>>> Pieces<I> {
    pub fn new(pieces: I) -> Pieces<I> {
        Pieces {
            pieces,
            current: Bytes::new(),
        }
    }
}

/// What comes through a channel, whose end is the end of it all. Blocks, so it is for threads that may.
pub fn from_channel(mut receiver: mpsc::Receiver<io::Result<Bytes>>) -> impl Read + Send + 'static {
    Pieces::new(std::iter::from_fn(move || receiver.blocking_recv()))
}

impl<I: Iterator<Item = io::Result<Bytes>>> Read for Pieces<I> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.next() {
                Some(piece) => self.current = piece?,
                None => return Ok(0),
            }
        }
        let read = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_read_to_its_end() {
        let (sender, receiver) = mpsc::channel(2);
        for piece in ["ab", "c"] {
            sender.try_send(Ok(Bytes::from(piece))).unwrap();
        }
        drop(sender);
        let mut text = String::new();
        from_channel(receiver).read_to_string(&mut text).unwrap();
        assert_eq!(text, "abc");
    }

    #[test]
    fn pieces_are_read_as_one_up_to_an_error() {
        let pieces = ["ab", "", "cde"].map(|piece| Ok(Bytes::from(piece)));
        let mut text = String::new();
        Pieces::new(pieces.into_iter())
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "abcde");
        let broken = [Ok(Bytes::from("ab")), Err(io::Error::other("gone"))];
        let error = Pieces::new(broken.into_iter())
            .read_to_string(&mut text)
            .unwrap_err();
        assert_eq!(error.to_string(), "gone");
    }
}
