//! Checks over HTTP/2: gRPC health (`grpc.health.v1.Health/Check`) and a ping.
//!
//! One exchange on a connection of its own, spoken directly: what is read is bounded, and everything
//! ends with the future that runs it.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::{Ping, RecvStream, client::Connection};
use http::{HeaderMap, Request, header::CONTENT_TYPE};
use prost::Message as _;
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
};

use super::{
    Finding,
    connect::{self, ConnectError, Stream, split_address},
};
use crate::local::CheckTls;

/// A health response is a few bytes.
const MAX_MESSAGE: usize = 1 << 10;

#[derive(Debug, thiserror::Error)]
enum H2Error {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("invalid request: {0}")]
    Request(#[from] http::Error),
    #[error("{0}")]
    Exchange(#[from] h2::Error),
    #[error("HTTP status {0} instead of a gRPC answer")]
    Status(http::StatusCode),
    #[error("gRPC status {code}: {message}")]
    Grpc { code: String, message: String },
    #[error("an answer that is no health response")]
    Malformed,
    #[error("serving status: {0}")]
    NotServing(&'static str),
}

type Driver = Connection<Box<dyn Stream>, Bytes>;

/// Asks a server how the service `name` is; an empty one stands for the server itself.
pub(super) async fn grpc(address: &str, name: &str, tls: Option<&CheckTls>) -> Finding {
    let target = match name {
        "" => address.to_owned(),
        name => format!("{address}/{name}"),
    };
    match ask_health(address, name, tls).await {
        Ok(()) => Finding::passing(format!("gRPC check {target}: success")),
        Err(error) => Finding::critical(format!("gRPC check {target}: {error}")),
    }
}

async fn ask_health(address: &str, name: &str, tls: Option<&CheckTls>) -> Result<(), H2Error> {
    let (mut sender, driver) = connect(address, tls).await?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let request = Request::post(format!("{scheme}://{address}/grpc.health.v1.Health/Check"))
        .header(CONTENT_TYPE, "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let message = HealthCheckRequest {
        service: name.to_owned(),
    };
    // A gRPC frame: not compressed, length, message.
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(0);
    frame.put_u32(length as u32);
    frame.extend_from_slice(&message.encode_to_vec());

    let exchange = async move {
        std::future::poll_fn(|cx| sender.poll_ready(cx)).await?;
        let (response, mut body) = sender.send_request(request, false)?;
        body.send_data(frame.freeze(), true)?;
        let (head, body) = response.await?.into_parts();
        if !head.status.is_success() {
            return Err(H2Error::Status(head.status));
        }
        grpc_status(&head.headers)?;
        read_answer(body).await
    };
    drive(driver, exchange).await
}

/// A call that failed says so in its trailers, or in its headers if there is no message.
fn grpc_status(headers: &HeaderMap) -> Result<(), H2Error> {
    let text = |name| {
        let value = headers.get(name)?;
        Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    match text("grpc-status") {
        None => Ok(()),
        Some(code) if code == "0" => Ok(()),
        Some(code) => Err(H2Error::Grpc {
            code,
            message: text("grpc-message").unwrap_or_default(),
        }),
    }
}

async fn read_answer(mut body: RecvStream) -> Result<(), H2Error> {
    let mut content = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        if content.len() + data.len() > MAX_MESSAGE {
            return Err(H2Error::Malformed);
        }
        content.extend_from_slice(&data);
    }
    if let Some(trailers) = body.trailers().await? {
        grpc_status(&trailers)?;
    }
    if content.len() < 5 || content.get_u8() != 0 {
        return Err(H2Error::Malformed);
    }
    let length = content.get_u32() as usize;
    let message = content.get(..length).ok_or(H2Error::Malformed)?;
    let answer = HealthCheckResponse::decode(message).map_err(|_| H2Error::Malformed)?;
    match answer.status() {
        ServingStatus::Serving => Ok(()),
        other => Err(H2Error::NotServing(other.as_str_name())),
    }
}

/// Waits for the answer to an HTTP/2 ping.
pub(super) async fn ping(address: &str, tls: Option<&CheckTls>) -> Finding {
    let result = async {
        let (_sender, mut driver) = connect(address, tls).await?;
        let Some(mut pinger) = driver.ping_pong() else {
            return Err(H2Error::Malformed);
        };
        let exchange = async move {
            pinger.ping(Ping::opaque()).await?;
            Ok(())
        };
        drive(driver, exchange).await
    };
    match result.await {
        Ok(()) => Finding::passing("HTTP2 ping was successful".to_owned()),
        Err(error) => Finding::critical(format!("HTTP2 ping to {address} failed: {error}")),
    }
}

async fn connect(
    address: &str,
    tls: Option<&CheckTls>,
) -> Result<(h2::client::SendRequest<Bytes>, Driver), H2Error> {
    let (host, port) = split_address(address)?;
    let stream = connect::stream(host, port, tls, &[b"h2"]).await?;
    Ok(h2::client::handshake(stream).await?)
}

/// Runs an exchange together with the connection that carries it.
async fn drive<T>(
    mut driver: Driver,
    exchange: impl Future<Output = Result<T, H2Error>>,
) -> Result<T, H2Error> {
    tokio::pin!(exchange);
    tokio::select! {
        biased;
        result = &mut exchange => result,
        ended = &mut driver => {
            ended?;
            // The connection is closed: what the exchange can still see has arrived.
            exchange.await
        }
    }
}
