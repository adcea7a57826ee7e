//! An agent for tests: answers HTTP on loopback from a closure, and remembers what it was asked.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use crate::{persona::Persona, program, shell::Shell};

/// A request as it arrived: `PUT /v1/kv/a?flags=1`, its headers, its body.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) line: String,
    pub(crate) headers: Vec<String>,
    pub(crate) body: Vec<u8>,
}

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: String,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: String::new(),
            body: body.into(),
        }
    }

    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::new(200, body)
    }

    pub(crate) fn header(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.headers.push_str(&format!("{name}: {value}\r\n"));
        self
    }
}

pub(crate) struct Stub {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// What a command printed, and how it ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Printed {
    pub(crate) code: u8,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Stub {
    /// Threads end when their connection does; the listening one ends with the test process.
    pub(crate) fn new(answer: impl FnMut(&Asked) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("bound");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let answer = Arc::new(Mutex::new(answer));
        let memory = asked.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (answer, memory) = (answer.clone(), memory.clone());
                thread::spawn(move || {
                    serve(stream, |request| {
                        memory.lock().expect("no panic").push(request.clone());
                        (answer.lock().expect("no panic"))(&request)
                    })
                });
            }
        });
        Self { address, asked }
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no panic").clone()
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.line).collect()
    }

    /// Runs a command against this agent.
    pub(crate) fn run(&self, persona: Persona, words: &[&str], input: &[u8]) -> Printed {
        let address = self.address.to_string();
        run(persona, words, input, &[("CONSUL_HTTP_ADDR", &address)])
    }

    pub(crate) fn wharf(&self, words: &[&str]) -> Printed {
        self.run(Persona::Wharf, words, b"")
    }
}

/// Runs a whole command in this process.
pub(crate) fn run(
    persona: Persona,
    words: &[&str],
    mut input: &[u8],
    env: &[(&str, &str)],
) -> Printed {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = program::run(
        words.iter().map(Into::into).collect(),
        &mut Shell {
            persona,
            out: &mut out,
            err: &mut err,
            input: &mut input,
            terminal: false,
            env: &|name| {
                env.iter()
                    .find(|(known, _)| *known == name)
                    .map(|(_, value)| (*value).to_owned())
            },
        },
    );
    Printed {
        code,
        out: String::from_utf8(out).expect("text"),
        err: String::from_utf8(err).expect("text"),
    }
}

fn serve(stream: TcpStream, mut answer: impl FnMut(Asked) -> Reply) {
    let mut reader = BufReader::new(stream);
    while let Some(request) = read(&mut reader) {
        let Reply {
            status,
            headers,
            body,
        } = answer(request);
        let head = format!(
            "HTTP/1.1 {status} -\r\n{headers}content-length: {}\r\n\r\n",
            body.len()
        );
        let stream = reader.get_mut();
        if stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(&body))
            .is_err()
        {
            return;
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let line = lines.remove(0).trim_end_matches(" HTTP/1.1").to_owned();
    let length = lines.iter().find_map(|line| {
        line.to_ascii_lowercase()
            .strip_prefix("content-length: ")?
            .parse()
            .ok()
    });
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    Some(Asked {
        line,
        headers: lines,
        body,
    })
}
