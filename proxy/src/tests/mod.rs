//! The proxy as a whole, over real sockets: an agent that hands out configurations, instances that answer what a test
//! tells them, clients that send exact bytes.

mod follow;
mod http1;
mod http2;
mod limits;
mod size;
mod smuggling;
mod tcp;

use std::{
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status};
use wharf_proto::v1::{
    self, ProxyConfigurationRequest, ProxyConfigurationResponse, ProxyProtocol, ProxySnapshot,
    proxy_configuration_response::Update,
    proxy_configuration_server::{ProxyConfiguration, ProxyConfigurationServer},
};

use crate::{ProxyError, ProxyOptions, Target, control, tuning::Tuning};

/// Nothing in these tests takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// An agent that serves one proxy.
struct Agent {
    address: SocketAddr,
    snapshot: watch::Sender<ProxySnapshot>,
    /// Refuses every new stream for good.
    refuses: Arc<std::sync::atomic::AtomicBool>,
    /// The second ends the open streams when it is dropped.
    serving: Option<(AbortOnDropHandle<()>, watch::Sender<()>)>,
}

struct Configuration {
    snapshot: watch::Sender<ProxySnapshot>,
    alive: watch::Receiver<()>,
    refuses: Arc<std::sync::atomic::AtomicBool>,
}

#[tonic::async_trait]
impl ProxyConfiguration for Configuration {
    type StreamStream = Pin<
        Box<dyn futures_util::Stream<Item = Result<ProxyConfigurationResponse, Status>> + Send>,
    >;

    async fn stream(
        &self,
        request: Request<ProxyConfigurationRequest>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        if request
            .metadata()
            .get("x-consul-token")
            .is_none_or(|token| token != "secret")
        {
            return Err(Status::permission_denied("no token"));
        }
        if self.refuses.load(Relaxed) {
            return Err(Status::invalid_argument("never"));
        }
        match request.into_inner().target {
            Some(v1::proxy_configuration_request::Target::SidecarFor(id)) if id == "bad" => {
                return Err(Status::invalid_argument("no proxy can be called that"));
            }
            Some(v1::proxy_configuration_request::Target::SidecarFor(_)) => {}
            other => return Err(Status::invalid_argument(format!("{other:?}"))),
        }
        let mut snapshot = self.snapshot.subscribe();
        snapshot.mark_changed();
        let state = (snapshot, self.alive.clone(), 1);
        let responses =
            futures_util::stream::unfold(state, |(mut snapshot, mut alive, version)| async move {
                tokio::select! {
                    changed = snapshot.changed() => changed.ok()?,
                    _ = alive.changed() => return None,
                }
                let update = Some(Update::Snapshot(snapshot.borrow_and_update().clone()));
                Some((
                    Ok(ProxyConfigurationResponse { version, update }),
                    (snapshot, alive, version + 1),
                ))
            });
        Ok(Response::new(Box::pin(responses)))
    }
}

impl Agent {
    async fn start(snapshot: ProxySnapshot) -> Self {
        let mut agent = Self {
            address: free_address(),
            snapshot: watch::Sender::new(snapshot),
            refuses: Arc::default(),
            serving: None,
        };
        agent.resume().await;
        agent
    }

    /// Comes (back) up at its address.
    async fn resume(&mut self) {
        let listener = TcpListener::bind(self.address)
            .await
            .expect("the agent's port is free");
        let (alive, receiver) = watch::channel(());
        let configuration = Configuration {
            snapshot: self.snapshot.clone(),
            alive: receiver,
            refuses: Arc::clone(&self.refuses),
        };
        let service = ProxyConfigurationServer::new(configuration);
        let incoming = futures_util::stream::unfold(listener, |listener| async move {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        let server = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming);
        let serving = tokio::spawn(async move {
            let _ = server.await;
        });
        self.serving = Some((AbortOnDropHandle::new(serving), alive));
    }

    fn change(&self, change: impl FnOnce(&mut ProxySnapshot)) {
        self.snapshot.send_modify(change);
    }
}

/// A running proxy; it is stopped, without a drain, when this is dropped.
struct Proxy {
    stop: mpsc::Sender<()>,
    thread: Option<thread::JoinHandle<Result<(), ProxyError>>>,
    admin: SocketAddr,
}

fn options(agent: SocketAddr) -> ProxyOptions {
    ProxyOptions {
        agent_grpc: agent.to_string(),
        token: Some("secret".into()),
        target: Target::SidecarFor("web-1".into()),
        admin: Some(free_address()),
        workers: Some(1),
        drain_timeout: Duration::ZERO,
        notify: None,
    }
}

impl Proxy {
    fn start(options: ProxyOptions, tuning: Tuning) -> Self {
        let (stop, stopped) = mpsc::channel(2);
        let admin = options.admin.expect("tests have an admin port");
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("runtime");
            runtime.block_on(control::run(options, tuning, stopped))
        });
        Self {
            stop,
            thread: Some(thread),
            admin,
        }
    }

    /// A proxy that follows `agent` and is ready.
    async fn ready(agent: &Agent) -> Self {
        Self::ready_with(options(agent.address), Tuning::default()).await
    }

    async fn ready_with(options: ProxyOptions, tuning: Tuning) -> Self {
        let proxy = Self::start(options, tuning);
        proxy
            .eventually("/ready", |body| {
                body.contains("ready\n") && !body.contains("not")
            })
            .await;
        proxy
    }

    async fn admin(&self, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        match TcpStream::connect(self.admin).await {
            Ok(stream) => talk(stream, request.as_bytes()).await,
            Err(_) => String::new(),
        }
    }

    /// Asks the admin port until the answer is as wanted.
    async fn eventually(&self, path: &str, wanted: impl Fn(&str) -> bool) -> String {
        eventually(path, async || {
            Some(self.admin(path).await).filter(|body| wanted(body))
        })
        .await
    }

    /// Waits for its end.
    async fn ended(mut self) -> Result<(), ProxyError> {
        let thread = self.thread.take().expect("it runs");
        let joined = tokio::task::spawn_blocking(|| thread.join());
        timeout(PATIENCE, joined)
            .await
            .expect("it ends")
            .expect("joined")
            .expect("no panic")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.stop.try_send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Asks until there is an answer: for what other threads and the kernel do in their own time.
async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "in vain: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("bound")
}

fn listener(
    name: &str,
    address: SocketAddr,
    protocol: ProxyProtocol,
    cluster: &str,
) -> v1::Listener {
    v1::Listener {
        name: name.into(),
        direction: v1::ListenerDirection::Outbound as i32,
        address: address.ip().to_string(),
        port: address.port().into(),
        protocol: protocol as i32,
        cluster: cluster.into(),
        max_connections: 0,
    }
}

fn endpoint(address: SocketAddr) -> v1::Endpoint {
    v1::Endpoint {
        address: address.ip().to_string(),
        port: address.port().into(),
        weight: 1,
        node: "n1".into(),
        instance_id: format!("web-{}", address.port()),
    }
}

fn cluster(name: &str, protocol: ProxyProtocol, endpoints: &[SocketAddr]) -> v1::Cluster {
    v1::Cluster {
        name: name.into(),
        service: name.into(),
        protocol: protocol as i32,
        connect_timeout_ms: 2000,
        endpoints: endpoints.iter().copied().map(endpoint).collect(),
        ..v1::Cluster::default()
    }
}

/// One listener for one cluster `web`.
fn one(at: SocketAddr, protocol: ProxyProtocol, endpoints: &[SocketAddr]) -> ProxySnapshot {
    ProxySnapshot {
        listeners: vec![listener("web", at, protocol, "web")],
        clusters: vec![cluster("web", protocol, endpoints)],
        ..ProxySnapshot::default()
    }
}

/// An agent, a ready proxy, and where it listens.
async fn serve(protocol: ProxyProtocol, endpoints: &[SocketAddr]) -> (Agent, Proxy, SocketAddr) {
    let at = free_address();
    let agent = Agent::start(one(at, protocol, endpoints)).await;
    let proxy = Proxy::ready(&agent).await;
    (agent, proxy, at)
}

/// A service instance: a port, and what happens on each connection to it.
struct Instance {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    _accepting: AbortOnDropHandle<()>,
}

impl Instance {
    /// `serve` gets each connection with its number, from 0.
    async fn start<F, R>(serve: F) -> Self
    where
        F: Fn(usize, TcpStream) -> R + Send + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a free port");
        let address = listener.local_addr().expect("bound");
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        let accepting: JoinHandle<()> = tokio::spawn(async move {
            let mut serving = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                serving.spawn(serve(counter.fetch_add(1, Relaxed), stream));
            }
        });
        Self {
            address,
            connections,
            _accepting: AbortOnDropHandle::new(accepting),
        }
    }

    /// Answers every request head with the same bytes. Requests must have no body.
    async fn answering(response: &'static str) -> Self {
        Self::start(move |_, mut stream| async move {
            while read_head(&mut stream).await.is_some() {
                if stream.write_all(response.as_bytes()).await.is_err() {
                    return;
                }
            }
        })
        .await
    }

    fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }
}

/// Reads up to and with the empty line; `None` when the peer ends before.
async fn read_head(stream: &mut TcpStream) -> Option<String> {
    read_until(stream, "\r\n\r\n").await
}

/// Reads byte by byte, so that nothing behind `end` is lost.
async fn read_until(stream: &mut TcpStream, end: &str) -> Option<String> {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        let mut byte = [0];
        match timeout(PATIENCE, stream.read(&mut byte))
            .await
            .expect("bytes come in time")
        {
            Ok(1) => read.push(byte[0]),
            _ => return None,
        }
    }
    Some(String::from_utf8_lossy(&read).into_owned())
}

/// Sends, then reads until the peer closes.
async fn talk(mut stream: TcpStream, request: &[u8]) -> String {
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let ended = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    let text = String::from_utf8_lossy;
    assert!(
        ended.is_ok(),
        "no end after {:?} to {:?}",
        text(&answer),
        text(request)
    );
    String::from_utf8_lossy(&answer).into_owned()
}

/// One request on its own connection.
async fn get(at: SocketAddr) -> String {
    let stream = TcpStream::connect(at).await.expect("the proxy listens");
    talk(
        stream,
        b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n",
    )
    .await
}

fn status(response: &str) -> &str {
    response.split(' ').nth(1).unwrap_or(response)
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
