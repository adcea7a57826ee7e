//! An agent's side of a shim: starting one, talking to it, and hearing from it.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixStream, unix::OwnedReadHalf},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};

use super::protocol::{
    Body, Decoder, Event, FrameError, FromShim, Reply, Request, StartSidecar, StartTask, State,
    ToShim, VERSION, encode,
};

/// How long a shim may take to serve, and to answer. It never waits for anything itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// Events that wait for their reader; then the shim's own memory holds them.
const EVENTS: usize = 256;

/// What starting a shim needs.
#[derive(Clone, Debug)]
pub struct Spawn {
    /// The wharf binary, and the words before those of the shim (`shim`).
    pub program: PathBuf,
    pub words: Vec<OsString>,
    pub socket: PathBuf,
    pub notify: PathBuf,
    /// `wharf/<alloc>`.
    pub group: PathBuf,
}

/// Why there is no shim.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("{program}: {source}")]
    Program { program: PathBuf, source: io::Error },
    #[error("{0}")]
    Refused(String),
    #[error("the shim did not serve within {PATIENCE:?}")]
    Timeout,
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Why a shim does not do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no shim serves {path}: {source}")]
    Connect { path: PathBuf, source: io::Error },
    /// The connection has ended. Unless the agent ends it, that means that the shim has.
    #[error("the shim is gone")]
    Gone,
    #[error("the shim does not answer")]
    Timeout,
    /// What was asked is not possible now.
    #[error("the shim refuses: {0}")]
    Refused(String),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the shim answers something else than was asked")]
    Confused,
}

type Waiting = Arc<Mutex<Option<BTreeMap<u64, oneshot::Sender<Reply>>>>>;

/// A connection to a shim. Ends with the shim, never the other way round.
#[derive(Debug)]
pub struct Client {
    requests: mpsc::Sender<(Request, oneshot::Sender<Reply>)>,
    worker: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

impl Client {
    /// Starts a shim that nothing of this process holds on to, and connects to it. A shim that serves there already
    /// is an error: connect to it.
    ///
    /// # Errors
    /// What the shim says itself, or that there is none.
    pub async fn spawn(spawn: &Spawn) -> Result<(Self, mpsc::Receiver<Event>), SpawnError> {
        let mut command = tokio::process::Command::new(&spawn.program);
        command
            .args(&spawn.words)
            .arg("--socket")
            .arg(&spawn.socket)
            .arg("--notify")
            .arg(&spawn.notify)
            .arg("--group")
            .arg(&spawn.group)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Only the starter, which ends when the shim serves.
            .kill_on_drop(true);
        let child = command.spawn().map_err(|source| SpawnError::Program {
            program: spawn.program.clone(),
            source,
        })?;
        let output = timeout(PATIENCE, child.wait_with_output())
            .await
            .map_err(|_| SpawnError::Timeout)?
            .map_err(|source| SpawnError::Program {
                program: spawn.program.clone(),
                source,
            })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(SpawnError::Refused(if said.is_empty() {
                format!("the shim ended at once: {}", output.status)
            } else {
                said
            }));
        }
        Ok(Self::connect(&spawn.socket, 0).await?)
    }

    /// Connects to a shim, and hears of what happened after event `after`. The channel ends when the shim is gone.
    ///
    /// # Errors
    /// [`ClientError::Connect`] when no shim serves there.
    pub async fn connect(
        socket: &Path,
        after: u64,
    ) -> Result<(Self, mpsc::Receiver<Event>), ClientError> {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|source| ClientError::Connect {
                path: socket.to_owned(),
                source,
            })?;
        let (reader, mut writer) = stream.into_split();
        let (requests, mut wanted) = mpsc::channel::<(Request, oneshot::Sender<Reply>)>(16);
        let (events, received) = mpsc::channel(EVENTS);
        let waiting: Waiting = Arc::new(Mutex::new(Some(BTreeMap::new())));
        let worker = tokio::spawn(async move {
            let write = async {
                let mut id = 0;
                while let Some((request, answer)) = wanted.recv().await {
                    id += 1;
                    let message = ToShim {
                        v: VERSION,
                        id,
                        request,
                    };
                    // A request too large is dropped, and its caller hears that the answer will not come.
                    let Ok(frame) = encode(&message) else {
                        continue;
                    };
                    if let Some(waiting) = &mut *lock(&waiting) {
                        waiting.insert(id, answer);
                    }
                    if writer.write_all(&frame).await.is_err() {
                        return;
                    }
                }
                // Nobody will ask anything any more, but events are still wanted.
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = write => {}
                () = read(reader, &waiting, events) => {}
            }
            // Those who wait hear that no answer comes.
            lock(&waiting).take();
        });
        let client = Self { requests, worker };
        client.ask(Request::Subscribe { after }).await?;
        Ok((client, received))
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn ask(&self, request: Request) -> Result<Reply, ClientError> {
        let (answer, answered) = oneshot::channel();
        self.requests
            .send((request, answer))
            .await
            .map_err(|_| ClientError::Gone)?;
        match timeout(PATIENCE, answered).await {
            Ok(Ok(Reply::Refused(why))) => Err(ClientError::Refused(why)),
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(ClientError::Gone),
            Err(_) => Err(ClientError::Timeout),
        }
    }

    /// # Errors
    /// See [`ClientError`].
    pub async fn start_task(&self, start: StartTask) -> Result<(), ClientError> {
        self.ask(Request::StartTask(Box::new(start)))
            .await
            .map(drop)
    }

    /// # Errors
    /// See [`ClientError`].
    pub async fn start_sidecar(&self, start: StartSidecar) -> Result<(), ClientError> {
        self.ask(Request::StartSidecar(Box::new(start)))
            .await
            .map(drop)
    }

    /// # Errors
    /// See [`ClientError`].
    pub async fn stop(
        &self,
        task: &str,
        signal: i32,
        patience: Duration,
    ) -> Result<(), ClientError> {
        let request = Request::Stop {
            task: task.to_owned(),
            signal,
            timeout_ms: patience.as_millis().try_into().unwrap_or(u64::MAX),
        };
        self.ask(request).await.map(drop)
    }

    /// # Errors
    /// See [`ClientError`].
    pub async fn state(&self) -> Result<State, ClientError> {
        match self.ask(Request::State).await? {
            Reply::State(state) => Ok(state),
            _ => Err(ClientError::Confused),
        }
    }

    /// Asks the shim to end everything and itself, and waits until it is gone.
    ///
    /// # Errors
    /// [`ClientError::Timeout`] when it is not.
    pub async fn shutdown(&mut self) -> Result<(), ClientError> {
        match self.ask(Request::Shutdown).await {
            Ok(_) | Err(ClientError::Gone) => {}
            Err(error) => return Err(error),
        }
        timeout(PATIENCE, &mut self.worker)
            .await
            .map(drop)
            .map_err(|_| ClientError::Timeout)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn read(mut reader: OwnedReadHalf, waiting: &Waiting, events: mpsc::Sender<Event>) {
    let mut decoder = Decoder::default();
    let mut bytes = vec![0; 16 << 10];
    // If nobody wants events they are passed over; answers still are wanted.
    let mut wanted = true;
    loop {
        match reader.read(&mut bytes).await {
            Ok(0) | Err(_) => return,
            Ok(count) => decoder.feed(&bytes[..count]),
        }
        loop {
            let Ok(message) = decoder.message::<FromShim>() else {
                return;
            };
            match message {
                None => break,
                Some(FromShim { v, .. }) if v != VERSION => return,
                Some(FromShim {
                    body: Body::Reply { id, reply },
                    ..
                }) => {
                    let answer = lock(waiting)
                        .as_mut()
                        .and_then(|waiting| waiting.remove(&id));
                    if let Some(answer) = answer {
                        let _ = answer.send(reply);
                    }
                }
                Some(FromShim {
                    body: Body::Event(event),
                    ..
                }) => {
                    if wanted {
                        wanted = events.send(event).await.is_ok();
                    }
                }
            }
        }
    }
}
