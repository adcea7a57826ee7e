//! How a layer is compressed is seen from its first bytes: media types lie, bytes do not.

use std::{
    fmt,
    io::{self, BufRead, BufReader, Read},
};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};

/// The compressed data makes no sense.
#[derive(Debug)]
pub(super) struct Broken(String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Broken {}

/// A reader of what `source` decompresses to.
pub(in crate::image) fn decompress<'r>(source: impl Read + 'r) -> io::Result<Box<dyn Read + 'r>> {
    let mut source = BufReader::with_capacity(64 << 10, source);
    // A first read may bring few bytes, as from a pipe.
    let mut begin = [0; 4];
    let mut have = 0;
    while have < begin.len() {
        match source.read(&mut begin[have..]) {
            Ok(0) => break,
            Ok(read) => have += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let source = BufReader::with_capacity(
        64 << 10,
        io::Cursor::new(begin).take(have as u64).chain(source),
    );
    Ok(match begin {
        [0x1f, 0x8b, ..] => Box::new(Gzip(MultiGzDecoder::new(source))),
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Box::new(Zstd {
            source,
            decoder: FrameDecoder::new(),
            within: false,
        }),
        _ => Box::new(source),
    })
}

struct Gzip<R>(MultiGzDecoder<R>);

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput
            | io::ErrorKind::InvalidData
            | io::ErrorKind::UnexpectedEof => io::Error::other(Broken(format!("gzip: {error}"))),
            _ => error,
        })
    }
}

/// Frame after frame; those that are to be skipped are. Windows beyond 100 MiB are refused by the decoder.
struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    within: bool,
}

impl<R: BufRead> Zstd<R> {
    /// Goes to the next frame with content; `false` at the end.
    fn begin(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let mut frame = (&mut self.source).take(u64::from(length));
                    if io::copy(&mut frame, &mut io::sink())? < u64::from(length) {
                        return Err(broken("it ends early"));
                    }
                }
                Err(error) => return Err(broken(error)),
            }
        }
        Ok(false)
    }
}

fn broken(what: impl fmt::Display) -> io::Error {
    io::Error::other(Broken(format!("zstd: {what}")))
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !buffer.is_empty() {
            if !self.within {
                self.within = self.begin()?;
                if !self.within {
                    return Ok(0);
                }
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let one = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder
                    .decode_blocks(&mut self.source, one)
                    .map_err(broken)?;
            }
            match self.decoder.read(buffer)? {
                0 => self.within = false,
                read => return Ok(read),
            }
        }
        Ok(0)
    }
}
