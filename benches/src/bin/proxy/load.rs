//! The two ends of a measurement: a trivial backend, and clients.

use std::{
    error::Error,
    net::Ipv4Addr,
    process::{Command, Output},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{CLIENT_CORE, CONNECTIONS};

const SIZE: usize = 100;

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// Answers on one port every HTTP head with 100 bytes, on the other every message with itself.
pub(crate) fn run_backend(http: u16, tcp: u16) -> Result<(), Box<dyn Error>> {
    let body = "x".repeat(SIZE);
    let response: &'static str = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {SIZE}\r\n\r\n{body}"
    )
    .leak();
    runtime()?.block_on(async {
        let http = TcpListener::bind((Ipv4Addr::LOCALHOST, http)).await?;
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, tcp)).await?;
        let mut connections = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                accepted = http.accept() => connections.spawn(answer(accepted?.0, response)),
                accepted = tcp.accept() => connections.spawn(echo(accepted?.0)),
            };
        }
    })
}

async fn answer(mut stream: TcpStream, response: &'static str) {
    let _ = stream.set_nodelay(true);
    let mut read = Vec::with_capacity(4096);
    while matches!(stream.read_buf(&mut read).await, Ok(1..)) {
        if read.ends_with(b"\r\n\r\n") {
            read.clear();
            if stream.write_all(response.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

async fn echo(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buf = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buf).await {
        if stream.write_all(&buf[..n]).await.is_err() {
            return;
        }
    }
}

/// Prints how many requests per second the TCP client got through.
pub(crate) fn run_client(port: u16, time: Duration) -> Result<(), Box<dyn Error>> {
    let count: u64 = runtime()?.block_on(async {
        let end = Instant::now() + time;
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..CONNECTIONS {
            clients.spawn(async move {
                let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
                stream.set_nodelay(true)?;
                let mut buf = [b'x'; SIZE];
                let mut count = 0;
                while Instant::now() < end {
                    stream.write_all(&buf).await?;
                    stream.read_exact(&mut buf).await?;
                    count += 1;
                }
                Ok::<u64, std::io::Error>(count)
            });
        }
        let mut sum = 0;
        while let Some(count) = clients.join_next().await {
            sum += count??;
        }
        Ok::<u64, Box<dyn Error>>(sum)
    })?;
    println!("{}", count as f64 / time.as_secs_f64());
    Ok(())
}

/// Requests per second.
pub(crate) fn tcp(port: u16, seconds: u64) -> Result<f64, Box<dyn Error>> {
    let program = std::env::current_exe()?;
    let args = ["as-client", &port.to_string(), &seconds.to_string()];
    let output = Command::new("taskset")
        .args(["-c", CLIENT_CORE])
        .arg(program)
        .args(args)
        .output()?;
    Ok(text(&output)?.trim().parse()?)
}

/// Requests per second; a run with errors is not a result.
pub(crate) fn http(port: u16, seconds: u64) -> Result<f64, Box<dyn Error>> {
    let output = Command::new("taskset")
        .args([
            "-c",
            CLIENT_CORE,
            "wrk",
            "-t1",
            &format!("-c{CONNECTIONS}"),
            &format!("-d{seconds}s"),
        ])
        .arg(format!("http://127.0.0.1:{port}/"))
        .output()?;
    let text = text(&output)?;
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        return Err(format!("wrk saw errors:\n{text}").into());
    }
    let rate = text.lines().find_map(|l| l.strip_prefix("Requests/sec:"));
    Ok(rate
        .ok_or_else(|| format!("wrk says:\n{text}"))?
        .trim()
        .parse()?)
}

fn text(output: &Output) -> Result<String, Box<dyn Error>> {
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(String::from_utf8(output.stdout.clone())?)
}
