//! One message in, at most one message out, whatever the message.

use std::{
    net::SocketAddr,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::FutureExt as _;
use hickory_server::{
    net::{NetError, runtime::TokioTime, xfer::Protocol},
    proto::{op::ResponseCode, rr::Record, serialize::binary::BinEncoder},
    server::{Request, RequestHandler as _, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponse,
};

use super::Handler;
use crate::{
    metering::Outcome,
    screen::{Refusal, Screened, malformed, screen},
};

/// Answers one message; `None` when it must not be answered.
pub(super) async fn exchange(
    handler: &Handler,
    message: &[u8],
    client: SocketAddr,
    protocol: Protocol,
) -> Option<Vec<u8>> {
    let mut screened = screen(message);
    if screened == Screened::Pass {
        match Request::from_bytes(message.to_vec(), client, protocol) {
            Ok(request) => return respond(handler, &request).await,
            Err(_) => screened = malformed(message),
        }
    }
    match screened {
        Screened::Reply(header, refusal) => {
            let code = match refusal {
                Refusal::FormErr => ResponseCode::FormErr,
                Refusal::NotImp => ResponseCode::NotImp,
            };
            let outcome = Outcome {
                kind: None,
                code,
                truncated: false,
            };
            handler.metering.answered(protocol, outcome, 0.0);
            Some(header.to_vec())
        }
        Screened::Drop(reason) => {
            handler.metering.dropped(protocol, reason);
            None
        }
        Screened::Pass => None,
    }
}

/// A panic is a bug, in our code or below it; a stranger who finds it must not end the server.
async fn respond(handler: &Handler, request: &Request) -> Option<Vec<u8>> {
    let reply = Reply::default();
    let handled = handler.handle_request::<_, TokioTime>(request, reply.clone());
    if AssertUnwindSafe(handled).catch_unwind().await.is_err() {
        handler.metering.panics.increment(1);
        tracing::error!(client = %request.src(), "DNS: answering a query panicked");
        return None;
    }
    let bytes = std::mem::take(&mut *reply.0.lock().unwrap_or_else(PoisonError::into_inner));
    (!bytes.is_empty()).then_some(bytes)
}

/// Keeps the encoded response. The answer function has made it fit; the encoder has no limit of its
/// own but that of a message.
#[derive(Clone, Default)]
struct Reply(Arc<Mutex<Vec<u8>>>);

#[async_trait::async_trait]
impl ResponseHandler for Reply {
    async fn send_response<'a>(
        &mut self,
        response: MessageResponse<
            '_,
            'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
        >,
    ) -> Result<ResponseInfo, NetError> {
        let mut bytes = Vec::with_capacity(512);
        let info = response.destructive_emit(&mut BinEncoder::new(&mut bytes))?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
        Ok(info)
    }
}
