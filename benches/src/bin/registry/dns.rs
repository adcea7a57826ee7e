//! The DNS client of all sides: UDP sockets, each with one question at a time.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{net::UdpSocket, task::JoinSet};

use super::client::{Failure, Run};

/// After this long a question counts as lost.
const PATIENCE: Duration = Duration::from_secs(1);

/// A question for the A records of a name (RFC 1035, section 4.1), with the payload size of EDNS if one
/// is given (RFC 6891, section 6.1.2).
fn question(name: &str, payload: Option<u16>) -> Vec<u8> {
    let mut message = vec![0, 0, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    if let Some(payload) = payload {
        let [high, low] = payload.to_be_bytes();
        message.extend_from_slice(&[0, 0, 41, high, low, 0, 0, 0, 0, 0, 0]);
        message[11] = 1;
    }
    message
}

/// Asks for the A records of `name`: every answer must come, and be NOERROR with at least one.
pub(crate) async fn ask(
    port: u16,
    sockets: usize,
    time: Duration,
    name: &str,
    payload: Option<u16>,
) -> Result<Run, Failure> {
    let (answered, lost) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut loops = JoinSet::new();
    let begin = Instant::now();
    for _ in 0..sockets {
        let (answered, lost) = (answered.clone(), lost.clone());
        let mut message = question(name, payload);
        loops.spawn(async move {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            socket.connect((Ipv4Addr::LOCALHOST, port)).await?;
            let mut buffer = [0; 4096];
            let mut id = 0u16;
            while begin.elapsed() < time {
                id = id.wrapping_add(1);
                message[..2].copy_from_slice(&id.to_be_bytes());
                socket.send(&message).await?;
                let reply = loop {
                    match tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await {
                        Err(_) => break None,
                        Ok(length) => {
                            let reply = &buffer[..length?];
                            if reply.get(..2) == Some(&message[..2]) {
                                break Some(reply);
                            }
                        }
                    }
                };
                let Some(reply) = reply else {
                    lost.fetch_add(1, Ordering::Relaxed);
                    continue;
                };
                if reply.len() < 12 || reply[3] & 0x0f != 0 || reply[6..8] == [0, 0] {
                    let head = &reply[..reply.len().min(64)];
                    return Err::<(), Failure>(format!("not an answer: {head:02x?}").into());
                }
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
    }
    while let Some(ended) = loops.join_next().await {
        ended??;
    }
    let run = Run {
        answers: answered.load(Ordering::Relaxed),
        elapsed: begin.elapsed(),
    };
    match lost.load(Ordering::Relaxed) {
        0 => Ok(run),
        lost => Err(format!("{lost} of {} questions had no answer", run.answers + lost).into()),
    }
}
