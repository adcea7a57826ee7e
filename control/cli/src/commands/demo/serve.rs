//! `demo serve`: a tiny HTTP server that says who it is.
//!
//! On SIGTERM it takes no new connections, finishes the requests it has, closes idle connections, and ends.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use clap::{ArgMatches, Command};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};

use crate::{
    failure::Failure,
    flags::{Given, value},
    shell::Shell,
};

/// Connections at once; more wait.
const MAX_CONNECTIONS: usize = 1024;
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long requests may take to end after SIGTERM.
const DRAIN: Duration = Duration::from_secs(5);

pub(super) fn command() -> Command {
    Command::new("serve")
        .about("Serve HTTP and say who it is")
        .hide(true)
        .after_help("  $ wharf demo serve -port=8080 -name=web-0")
        .args([
            value("port", "port", "The port to serve on").value_parser(clap::value_parser!(u16)),
            value("address", "ip", "The address to serve on (default 0.0.0.0)")
                .value_parser(clap::value_parser!(IpAddr)),
            value("name", "text", "Who it is (default: WHARF_ALLOC_NAME)"),
        ])
}

pub(super) async fn run(matches: &ArgMatches, shell: &mut Shell<'_>) -> Result<(), Failure> {
    let Some(port) = matches.get_one::<u16>("port").copied() else {
        return Err(Failure::new("-port is needed").hint("wharf demo serve -port=8080 -name=web-0"));
    };
    let ip = matches.get_one::<IpAddr>("address").copied();
    let name = matches
        .text("name")
        .map(str::to_owned)
        .or_else(|| (shell.env)("WHARF_ALLOC_NAME"))
        .unwrap_or_else(|| "demo".to_owned());
    let address = SocketAddr::new(ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), port);
    let failed =
        |error| Failure::new(format!("demo serve: cannot serve on {address}")).because(error);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    shell.line(format_args!("{name} serves on {address}"))?;
    shell.out.flush()?;
    // The name and a mark of this process: one that was started again is another one, also where every process is
    // the first of its namespace.
    let who: Bytes = format!("{name} {:08x}\n", rand::random::<u32>()).into();
    let (drain, draining) = watch::channel(false);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            accepted = accept(&listener, &slots) => {
                if let Some((stream, slot)) = accepted {
                    let (who, draining) = (who.clone(), draining.clone());
                    connections.spawn(async move {
                        serve(stream, who, draining).await;
                        drop(slot);
                    });
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    drain.send_replace(true);
    // What has not ended by then ends with the process.
    let _ = timeout(DRAIN, async {
        while connections.join_next().await.is_some() {}
    })
    .await;
    shell.line(format_args!("{name} has ended"))
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, slot)),
        Err(_) => {
            // Usually out of descriptors, which only others can give back.
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

async fn serve(stream: TcpStream, who: Bytes, mut draining: watch::Receiver<bool>) {
    // A socket that cannot do it still works.
    let _ = stream.set_nodelay(true);
    let healthy = draining.clone();
    let answer = service_fn(move |request: Request<Incoming>| {
        let (status, body) = match request.uri().path() {
            "/healthz" if *healthy.borrow() => {
                (StatusCode::SERVICE_UNAVAILABLE, "draining\n".into())
            }
            "/healthz" => (StatusCode::OK, "ok\n".into()),
            "/" => (StatusCode::OK, who.clone()),
            _ => (StatusCode::NOT_FOUND, "there is / and /healthz\n".into()),
        };
        let mut response = Response::new(Full::<Bytes>::new(body));
        *response.status_mut() = status;
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), answer));
    let drained = async {
        let _ = draining.wait_for(|draining| *draining).await;
    };
    tokio::select! {
        _ = connection.as_mut() => return,
        () = drained => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
