use futures_util::FutureExt as _;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::*;

type Sent = mpsc::Sender<Result<Frame<Bytes>, Status>>;

const HELLO: &str = "/wharf.server.v1.Servers/Hello";
const PROPOSE: &str = "/wharf.server.v1.Servers/Propose";
const APPEND: &str = "/wharf.server.v1.Servers/Append";

fn incoming(path: &str, pending: &Arc<Pending>) -> (Sent, Body) {
    let (sender, frames) = mpsc::channel(64);
    let body = Body::new(StreamBody::new(ReceiverStream::new(frames)));
    let incoming = Incoming::new(body, Bounds::of(path), pending.clone(), None);
    (sender, Body::new(incoming))
}

/// A message that announces `length` bytes, and brings `sent` of them.
fn message(length: usize, sent: usize) -> Bytes {
    let head = u32::try_from(length).unwrap().to_be_bytes();
    [&[0], &head[..], &vec![7; sent]].concat().into()
}

fn send(sender: &Sent, data: Bytes) {
    sender.try_send(Ok(Frame::data(data))).unwrap();
}

/// Takes what there is.
fn take(body: &mut Body) -> Option<Result<usize, Status>> {
    let mut taken = 0;
    loop {
        match body.frame().now_or_never() {
            None => return Some(Ok(taken)),
            Some(None) => return None,
            Some(Some(Ok(frame))) => taken += frame.into_data().unwrap().len(),
            Some(Some(Err(status))) => return Some(Err(status)),
        }
    }
}

#[track_caller]
fn refused(body: &mut Body) -> Code {
    take(body).unwrap().unwrap_err().code()
}

#[tokio::test(start_paused = true)]
async fn a_message_is_as_long_as_its_method_needs() {
    let pending = Pending::new(1 << 30);
    for (path, most) in [
        (HELLO, SMALL),
        ("/wharf.server.v1.Servers/Heartbeat", SMALL),
        ("/wharf.server.v1.Servers/Snapshot", MAX_PART),
        (APPEND, MAX_MESSAGE),
        (PROPOSE, MAX_MESSAGE),
        ("/wharf.server.v1.Agents/Call", MAX_MESSAGE),
    ] {
        let (sender, mut body) = incoming(path, &pending);
        send(&sender, message(most, most));
        assert_eq!(take(&mut body).unwrap().unwrap(), HEAD + most, "{path}");
        let (sender, mut body) = incoming(path, &pending);
        // The head in two pieces.
        let head = message(most + 1, 0);
        send(&sender, head.slice(..3));
        assert_eq!(take(&mut body).unwrap().unwrap(), 3);
        send(&sender, head.slice(3..));
        assert_eq!(refused(&mut body), Code::OutOfRange, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_has_many_messages_and_a_request_one() {
    let pending = Pending::new(1 << 30);
    let three = [message(3, 3), message(0, 0), message(70_000, 70_000)].concat();
    let (sender, mut body) = incoming(APPEND, &pending);
    for byte in three.chunks(1000) {
        send(&sender, Bytes::copy_from_slice(byte));
        if sender.capacity() == 0 {
            take(&mut body).unwrap().unwrap();
        }
    }
    take(&mut body).unwrap().unwrap();
    // Nothing is on its way: it may be silent.
    tokio::time::advance(Duration::from_secs(3600)).await;
    take(&mut body).unwrap().unwrap();
    // One after the other, without a moment between them.
    for _ in 0..10 {
        send(&sender, message(10, 5));
        take(&mut body).unwrap().unwrap();
        tokio::time::advance(Duration::from_secs(8)).await;
        take(&mut body).unwrap().unwrap();
        send(&sender, [&[7; 5][..], &message(10, 5)].concat().into());
        take(&mut body).unwrap().unwrap();
        tokio::time::advance(Duration::from_secs(8)).await;
        send(&sender, vec![7; 5].into());
        take(&mut body).unwrap().unwrap();
    }
    drop(sender);
    assert!(take(&mut body).is_none());

    let (sender, mut body) = incoming(PROPOSE, &pending);
    send(&sender, three.into());
    assert_eq!(refused(&mut body), Code::InvalidArgument);
}

#[tokio::test(start_paused = true)]
async fn a_message_comes_to_its_end_in_time() {
    let pending = Pending::new(1 << 30);
    let large = 10 << 20;
    let slowest = 10 + large as u64 / SLOWEST;
    for (path, sent, seconds) in [
        // Nothing at all, half of a head, a message without its end, and one whose request does not end.
        (HELLO, Bytes::new(), 10),
        (HELLO, message(100, 0).slice(..3), 10),
        (HELLO, message(100, 99), 10),
        (HELLO, message(100, 100), 10),
        (APPEND, message(100, 99), 10),
        // At the pace of the slowest link.
        (APPEND, message(large, large - 1), slowest),
        (PROPOSE, message(large, large - 1), slowest),
    ] {
        let (sender, mut body) = incoming(path, &pending);
        send(&sender, sent);
        take(&mut body).unwrap().unwrap();
        tokio::time::advance(Duration::from_secs(seconds - 1)).await;
        take(&mut body).unwrap().unwrap();
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(refused(&mut body), Code::Aborted, "{path} {seconds}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_too_much_together_costs_who_began_first() {
    let pending = Pending::new(1000);
    let mut bodies: Vec<_> = (0..3).map(|_| incoming(APPEND, &pending)).collect();
    for (sender, body) in &mut bodies {
        send(sender, message(400, 300));
        take(body).unwrap().unwrap();
    }
    // It waits, and is woken for this.
    let (mut later, mut body) = incoming(PROPOSE, &pending);
    let (_, first) = &mut bodies[0];
    let first = first.frame();
    let (first, ()) = tokio::join!(first, async {
        tokio::task::yield_now().await;
        send(&later, message(400, 200));
        take(&mut body).unwrap().unwrap();
    });
    let code = first.unwrap().unwrap_err().code();
    assert_eq!(code, Code::ResourceExhausted);
    for (sender, body) in &mut bodies[1..] {
        send(sender, vec![7; 100].into());
        assert_eq!(take(body).unwrap().unwrap(), 100, "it goes on");
    }
    // What has come whole, or is of no use any more, counts no longer.
    drop(bodies);
    for _ in 0..10 {
        (later, body) = incoming(PROPOSE, &pending);
        send(&later, message(900, 899));
        take(&mut body).unwrap().unwrap();
    }
    send(&later, vec![7; 1].into());
    drop(later);
    assert_eq!(body.collect().await.unwrap().to_bytes().len(), 1);
    let (sender, mut body) = incoming(APPEND, &pending);
    send(&sender, message(5000, 5000));
    assert_eq!(take(&mut body).unwrap().unwrap(), 5005, "it came at once");
    send(&sender, message(5000, 1001));
    assert_eq!(refused(&mut body), Code::ResourceExhausted, "even alone");
}

fn request(path: &str, headers: &[&str], requests: &ConnectionCount) -> http::Request<Body> {
    let mut request = http::Request::builder().uri(path);
    for name in headers {
        request = request.header(*name, "x");
    }
    let mut request = request.body(Body::empty()).unwrap();
    request.extensions_mut().insert(requests.clone());
    request
}

#[test]
fn what_has_no_envelope_is_not_read_but_for_greetings_and_few_of_them() {
    let here = ConnectionCount::default();
    let ask = |path, headers: &[&str]| {
        let request = request(path, headers, &here);
        admit(&request, Bounds::of(path).sender).map_err(|status| status.code())
    };
    let envelope = ["wharf-cluster", "wharf-from", "wharf-to"];
    for path in [PROPOSE, APPEND, "/wharf.server.v1.Servers/Anything"] {
        assert_eq!(ask(path, &[]).unwrap_err(), Code::InvalidArgument);
        assert_eq!(
            ask(path, &envelope[..2]).unwrap_err(),
            Code::InvalidArgument
        );
        assert!(ask(path, &envelope).unwrap().is_none());
    }
    assert!(ask("/wharf.server.v1.Agents/Call", &[]).unwrap().is_none());
    let mut greetings: Vec<_> = (0..STRANGERS).map(|_| ask(HELLO, &[]).unwrap()).collect();
    assert_eq!(ask(HELLO, &[]).unwrap_err(), Code::ResourceExhausted);
    assert!(ask(PROPOSE, &envelope).is_ok(), "others are not concerned");
    greetings.pop();
    assert!(ask(HELLO, &[]).is_ok());
}
