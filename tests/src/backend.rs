//! A tiny HTTP server: what a service instance is in these tests.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

/// Answers every request with its name, until it is dropped: then it refuses connections and those
/// that were open are cut, as if its process had been killed.
#[derive(Debug)]
pub struct Backend {
    address: SocketAddr,
    state: Arc<State>,
    acceptor: Option<thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    name: String,
    stopped: AtomicBool,
    status: Mutex<&'static str>,
    requests: AtomicU64,
    connections: Mutex<Vec<TcpStream>>,
}

impl Backend {
    /// A server on a free port.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn start(name: &str) -> Backend {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let state = Arc::new(State {
            name: name.to_owned(),
            stopped: AtomicBool::new(false),
            status: Mutex::new("200 OK"),
            requests: AtomicU64::new(0),
            connections: Mutex::default(),
        });
        let shared = state.clone();
        let acceptor = thread::spawn(move || {
            let mut threads = Vec::new();
            for stream in listener.incoming().flatten() {
                if shared.stopped.load(Ordering::SeqCst) {
                    break;
                }
                if let Ok(copy) = stream.try_clone() {
                    lock(&shared.connections).push(copy);
                }
                let shared = shared.clone();
                threads.push(thread::spawn(move || {
                    shared.serve(&stream);
                    // The copy would keep it open.
                    let _ = stream.shutdown(Shutdown::Both);
                }));
            }
            drop(listener);
            for stream in lock(&shared.connections).drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
            for thread in threads {
                let _ = thread.join();
            }
        });
        Backend {
            address,
            state,
            acceptor: Some(acceptor),
        }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// How many requests it has answered.
    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::SeqCst)
    }

    /// What it answers from now on: `503 Service Unavailable`.
    pub fn answer(&self, status: &'static str) {
        *lock(&self.state.status) = status;
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl State {
    /// Requests without a body, one after the other.
    fn serve(&self, stream: &TcpStream) {
        let mut reader = BufReader::new(stream);
        let mut writer = stream;
        loop {
            let mut line = String::new();
            let mut any = false;
            loop {
                line.clear();
                match reader.read_line(&mut line) {
                    Ok(0) | Err(_) => return,
                    Ok(_) if line.trim().is_empty() && any => break,
                    Ok(_) => any = true,
                }
            }
            let answer = format!(
                "HTTP/1.1 {}\r\nContent-Length: {}\r\n\r\n{}",
                lock(&self.status),
                self.name.len(),
                self.name
            );
            if writer.write_all(answer.as_bytes()).is_err() {
                return;
            }
            self.requests.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
