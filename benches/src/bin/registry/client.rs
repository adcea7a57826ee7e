//! The HTTP client of all sides: raw HTTP/1.1 on connections that are kept, each a closed loop.
//!
//! It is light, so that one core of it asks more than one core of a server answers, and it checks
//! what it gets: a status other than 200 ends the run, for a server that refuses is fast.

use std::{
    error::Error,
    io,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

/// An answer that never comes must not hold the whole run.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// What a client can die of; crosses tasks.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// Writes the request with a number into the buffer.
pub(crate) type Request = Arc<dyn Fn(u64, &mut Vec<u8>) + Send + Sync>;

/// One connection and the answer that it read last.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    head: usize,
}

impl Connection {
    pub(crate) async fn open(port: u16) -> Result<Connection, Failure> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.set_nodelay(true)?;
        Ok(Connection {
            stream,
            buffer: Vec::with_capacity(4096),
            head: 0,
        })
    }

    /// Sends a request and reads its whole answer, which must be a 200.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> Result<(), Failure> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        self.head = loop {
            self.read().await?;
            if let Some(end) = end_of_head(&self.buffer) {
                break end;
            }
        };
        if let Some(length) = self.header("content-length") {
            let end = self.head + length.parse::<usize>()?;
            while self.buffer.len() < end {
                self.buffer.reserve(end - self.buffer.len());
                self.read().await?;
            }
        } else if self.header("transfer-encoding").is_some() {
            let mut chunk = self.head;
            while !skip_chunks(&self.buffer, &mut chunk)? {
                self.read().await?;
            }
        }
        if self.buffer.get(9..12) == Some(b"200") {
            return Ok(());
        }
        let answer = String::from_utf8_lossy(&self.buffer);
        let request = String::from_utf8_lossy(request);
        let asked = request.lines().next().unwrap_or_default();
        Err(format!("{asked} was answered with: {answer}").into())
    }

    async fn read(&mut self) -> Result<(), Failure> {
        self.buffer.reserve(4096);
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            _ => Ok(()),
        }
    }

    /// A header of the last answer.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let head = std::str::from_utf8(&self.buffer[..self.head]).ok()?;
        head.lines().find_map(|line| {
            let (own, value) = line.split_once(':')?;
            own.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// `X-Consul-Index` of the last answer.
    pub(crate) fn index(&self) -> Result<u64, Failure> {
        let index = self.header("x-consul-index").ok_or("no X-Consul-Index")?;
        Ok(index.parse()?)
    }
}

fn end_of_head(buffer: &[u8]) -> Option<usize> {
    let at = buffer.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some(at + 4)
}

/// Moves over whole chunks; true when the last one was among them. Trailers are not expected.
fn skip_chunks(buffer: &[u8], at: &mut usize) -> Result<bool, Failure> {
    loop {
        let rest = buffer.get(*at..).unwrap_or_default();
        let Some(line) = rest.windows(2).position(|two| two == b"\r\n") else {
            return Ok(false);
        };
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line])?.trim(), 16)?;
        let next = *at + line + 2 + size + 2;
        if buffer.len() < next {
            return Ok(false);
        }
        *at = next;
        if size == 0 {
            return Ok(true);
        }
    }
}

/// A request with an optional body.
pub(crate) fn write_request(out: &mut Vec<u8>, method: &str, path: &str, body: &[u8]) {
    out.extend_from_slice(method.as_bytes());
    out.push(b' ');
    out.extend_from_slice(path.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\nHost: bench\r\n");
    if method != "GET" {
        out.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body);
}

/// How long to ask.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    Elapsed(Duration),
    /// Exactly this many requests.
    Count(u64),
}

/// What was answered, and in what time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) answers: u64,
    pub(crate) elapsed: Duration,
}

/// Asks on so many connections at once, each the next request as soon as it has its answer. Requests
/// are numbered from `first`.
pub(crate) async fn closed_loops(
    port: u16,
    connections: usize,
    until: Until,
    first: u64,
    request: &Request,
) -> Result<Run, Failure> {
    let mut open = Vec::with_capacity(connections);
    for _ in 0..connections {
        open.push(Connection::open(port).await?);
    }
    let next = Arc::new(AtomicU64::new(first));
    let answered = Arc::new(AtomicU64::new(0));
    let begin = Instant::now();
    let mut loops = JoinSet::new();
    for mut connection in open {
        let (next, answered, request) = (next.clone(), answered.clone(), request.clone());
        loops.spawn(async move {
            let mut bytes = Vec::with_capacity(1024);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let done = match until {
                    Until::Elapsed(time) => begin.elapsed() >= time,
                    Until::Count(count) => number >= first + count,
                };
                if done {
                    return Ok::<(), Failure>(());
                }
                bytes.clear();
                request(number, &mut bytes);
                connection.exchange(&bytes).await?;
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let limit = match until {
        Until::Elapsed(time) => time + ANSWER_TIMEOUT,
        Until::Count(_) => 5 * ANSWER_TIMEOUT,
    };
    let all = async {
        while let Some(ended) = loops.join_next().await {
            ended??;
        }
        Ok::<(), Failure>(())
    };
    tokio::time::timeout(limit, all)
        .await
        .map_err(|_| format!("no end after {limit:?}"))??;
    Ok(Run {
        answers: answered.load(Ordering::Relaxed),
        elapsed: begin.elapsed(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_skipped_as_they_come() {
        let body = b"4\r\nabcd\r\n1\r\nx\r\n0\r\n\r\n";
        for length in 0..body.len() {
            let mut at = 0;
            assert!(!skip_chunks(&body[..length], &mut at).unwrap(), "{length}");
            assert!(skip_chunks(body, &mut at).unwrap(), "{length}");
        }
        assert!(skip_chunks(b"zz\r\n", &mut 0).is_err());
    }
}
