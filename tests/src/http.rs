//! A small HTTP/1.1 client that shows everything a server says, as curl does.
//!
//! It is written on sockets, not on the library the agent is built with: a mistake both halves of
//! one library agree on would not be seen.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::Value;

/// A server's address. Each request has its own connection.
#[derive(Clone, Copy, Debug)]
pub struct Http {
    pub address: SocketAddr,
    /// How long one read may take: longer than any blocking query of a test.
    pub timeout: Duration,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Http {
    pub fn local(port: u16) -> Http {
        Http {
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            timeout: Duration::from_secs(60),
        }
    }

    /// # Panics
    ///
    /// These three panic when there is no whole answer.
    #[track_caller]
    pub fn get(&self, path: &str) -> Reply {
        self.must("GET", path, b"")
    }

    #[track_caller]
    pub fn put(&self, path: &str, body: impl AsRef<[u8]>) -> Reply {
        self.must("PUT", path, body.as_ref())
    }

    #[track_caller]
    pub fn delete(&self, path: &str) -> Reply {
        self.must("DELETE", path, b"")
    }

    #[track_caller]
    fn must(&self, method: &str, path: &str, body: &[u8]) -> Reply {
        match self.request(method, path, &[], body) {
            Ok(reply) => reply,
            Err(error) => panic!("{method} {path}: {error}"),
        }
    }

    /// One request on a connection of its own.
    ///
    /// # Errors
    ///
    /// When no whole answer comes.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Reply> {
        let stream = TcpStream::connect_timeout(&self.address, self.timeout)?;
        stream.set_read_timeout(Some(self.timeout))?;
        self.request_over(stream, method, path, headers, body)
    }

    /// One request on a connection that was made already, which it uses up.
    ///
    /// # Errors
    ///
    /// When no whole answer comes.
    pub fn request_over(
        &self,
        mut stream: impl Read + Write,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Reply> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.address);
        if !body.is_empty() || method == "PUT" || method == "POST" {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("Connection: close\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        // A server may refuse a body before it has read it all.
        let sent = stream.write_all(body);
        match Reply::read(&mut BufReader::new(stream), method == "HEAD") {
            Ok(reply) => Ok(reply),
            Err(error) => Err(sent.err().unwrap_or(error)),
        }
    }
}

impl Reply {
    fn read(reader: &mut impl BufRead, head_only: bool) -> io::Result<Reply> {
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let mut reply = loop {
            let line = line(reader)?;
            let status = line.split(' ').nth(1).and_then(|text| text.parse().ok());
            let mut reply = Reply {
                status: status.ok_or_else(|| bad("no status line"))?,
                headers: Vec::new(),
                body: Vec::new(),
            };
            loop {
                let line = self::line(reader)?;
                if line.is_empty() {
                    break;
                }
                let (name, value) = line.split_once(':').ok_or_else(|| bad("no header"))?;
                let header = (name.to_ascii_lowercase(), value.trim().to_owned());
                reply.headers.push(header);
            }
            if reply.status >= 200 {
                break reply;
            }
        };
        if head_only || reply.status == 204 || reply.status == 304 {
            return Ok(reply);
        }
        if reply.header("transfer-encoding") == Some("chunked") {
            loop {
                let size = line(reader)?;
                let size =
                    u64::from_str_radix(size.trim(), 16).map_err(|_| bad("no chunk size"))?;
                let read = reader.take(size).read_to_end(&mut reply.body)?;
                if read as u64 != size {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                line(reader)?;
                if size == 0 {
                    return Ok(reply);
                }
            }
        }
        match reply.header("content-length").map(str::parse::<u64>) {
            Some(Ok(length)) => {
                let read = reader.take(length).read_to_end(&mut reply.body)?;
                if read as u64 != length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Some(Err(_)) => return Err(bad("no content length")),
            None => {
                reader.read_to_end(&mut reply.body)?;
            }
        }
        Ok(reply)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(own, _)| own == name);
        found.map(|(_, value)| value.as_str())
    }

    /// What `X-Consul-Index` says.
    ///
    /// # Panics
    ///
    /// When it is not there, or 0.
    #[track_caller]
    pub fn index(&self) -> u64 {
        let index = self
            .header("x-consul-index")
            .and_then(|text| text.parse().ok());
        let index = index.unwrap_or_else(|| panic!("no index: {self:?}"));
        assert_ne!(index, 0, "an index is never 0");
        index
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The JSON of a success.
    ///
    /// # Panics
    ///
    /// When it is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    /// Asserts a success with the body.
    ///
    /// # Panics
    ///
    /// When it is none.
    #[track_caller]
    pub fn ok(self) -> Reply {
        assert_eq!(self.status, 200, "{}", self.text());
        self
    }
}

fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut bytes = Vec::new();
    reader.take(64 << 10).read_until(b'\n', &mut bytes)?;
    if bytes.pop() != Some(b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.trim_end_matches('\r').to_owned())
}
