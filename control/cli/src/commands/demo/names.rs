//! Asking a DNS server for the addresses of a name, again and again (RFC 1035 §4).

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

const EVERY: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_millis(500);
const TYPE_A: [u8; 2] = [0, 1];
const CLASS_IN: [u8; 2] = [0, 1];

/// What a name had, from a moment on.
type Answer = (Instant, BTreeSet<Ipv4Addr>);

/// The addresses that a name had, and since when it had them.
#[derive(Clone, Debug, Default)]
pub(super) struct Answers(Arc<Mutex<Vec<Answer>>>);

impl Answers {
    pub(super) fn latest(&self) -> BTreeSet<Ipv4Addr> {
        self.with(|all| {
            all.last()
                .map(|(_, addresses)| addresses.clone())
                .unwrap_or_default()
        })
    }

    /// When the answer last became what it is, if that is `wanted` and was after `since` or stood then.
    pub(super) fn became(
        &self,
        since: Instant,
        wanted: impl Fn(&BTreeSet<Ipv4Addr>) -> bool,
    ) -> Option<Duration> {
        self.with(|all| {
            let (at, addresses) = all.last()?;
            wanted(addresses).then(|| at.saturating_duration_since(since))
        })
    }

    /// When the answer was first like this, at `since` or later, whatever it is by now.
    pub(super) fn once(
        &self,
        since: Instant,
        wanted: impl Fn(&BTreeSet<Ipv4Addr>) -> bool,
    ) -> Option<Duration> {
        self.with(|all| {
            // Each answer stood until the next one came.
            let ends = all.iter().skip(1).map(|(at, _)| Some(*at)).chain([None]);
            let mut later = all
                .iter()
                .zip(ends)
                .filter(|(_, end)| end.is_none_or(|end| end > since));
            let ((at, _), _) = later.find(|((_, addresses), _)| wanted(addresses))?;
            Some(at.saturating_duration_since(since))
        })
    }

    fn with<T>(&self, read: impl FnOnce(&[Answer]) -> T) -> T {
        read(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, addresses: BTreeSet<Ipv4Addr>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.last().is_none_or(|(_, before)| *before != addresses) {
            all.push((Instant::now(), addresses));
        }
    }
}

/// Asks every five milliseconds until it is aborted.
pub(super) fn follow(server: SocketAddr, name: &str, answers: Answers) -> JoinHandle<()> {
    let question = question(name);
    tokio::spawn(async move {
        let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await else {
            return;
        };
        let mut tick = interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut id = 0u16;
        loop {
            tick.tick().await;
            id = id.wrapping_add(1);
            // A question that is lost is asked again.
            if let Ok(Ok(addresses)) = timeout(PATIENCE, ask(&socket, server, id, &question)).await
            {
                answers.add(addresses);
            }
        }
    })
}

async fn ask(
    socket: &UdpSocket,
    server: SocketAddr,
    id: u16,
    question: &[u8],
) -> io::Result<BTreeSet<Ipv4Addr>> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend_from_slice(question);
    socket.send_to(&message, server).await?;
    let mut buffer = [0; 4096];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await?;
        if from == server && buffer[..2] == id.to_be_bytes() {
            return Ok(addresses(&buffer[..length]).unwrap_or_default());
        }
    }
}

/// A question for the addresses of a name, without its id.
fn question(name: &str) -> Vec<u8> {
    // No flags, one question, nothing else.
    let mut message = vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        message.push(u8::try_from(label.len().min(63)).unwrap_or(63));
        message.extend_from_slice(&label.as_bytes()[..label.len().min(63)]);
    }
    message.push(0);
    message.extend_from_slice(&TYPE_A);
    message.extend_from_slice(&CLASS_IN);
    message
}

/// The addresses in an answer; `None` if it cannot be read.
fn addresses(message: &[u8]) -> Option<BTreeSet<Ipv4Addr>> {
    let count = |at: usize| {
        Some(u16::from_be_bytes([
            *message.get(at)?,
            *message.get(at + 1)?,
        ]))
    };
    let (questions, answers) = (count(4)?, count(6)?);
    let mut at = 12;
    for _ in 0..questions {
        at = after_name(message, at)? + 4;
    }
    let mut found = BTreeSet::new();
    for _ in 0..answers {
        at = after_name(message, at)?;
        let kind = message.get(at..at + 2)?;
        let length = usize::from(count(at + 8)?);
        let value = message.get(at + 10..at + 10 + length)?;
        if kind == TYPE_A {
            found.insert(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?));
        }
        at += 10 + length;
    }
    Some(found)
}

/// Where a name ends: at its empty label, or at a pointer to the rest of it.
fn after_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length >= 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_of_an_answer_are_read_and_damage_is_not() {
        let mut message = vec![0, 7];
        message.extend(question("web.service.consul."));
        message[7] = 2;
        for last in [1, 2] {
            message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 10, 0, 0, last]);
        }
        let found = addresses(&message).expect("readable");
        assert_eq!(
            found,
            [[10, 0, 0, 1], [10, 0, 0, 2]].map(Ipv4Addr::from).into()
        );
        for end in 0..message.len() {
            assert_eq!(addresses(&message[..end]), None, "{end}");
        }
    }

    #[test]
    fn what_stands_is_known_with_its_time() {
        let answers = Answers::default();
        let start = Instant::now();
        let two = |set: &BTreeSet<Ipv4Addr>| set.len() == 2;
        assert_eq!(answers.became(start, two), None);
        answers.add([[1, 1, 1, 1], [1, 1, 1, 2]].map(Ipv4Addr::from).into());
        let when = answers.became(start, two).expect("there");
        answers.add(answers.latest());
        assert_eq!(
            answers.became(start, two),
            Some(when),
            "the same again is no news"
        );
        answers.add(BTreeSet::new());
        assert_eq!(answers.became(start, two), None);
        assert_eq!(answers.once(start, two), Some(when), "it was so once");
        assert_eq!(answers.once(Instant::now(), two), None, "but not since now");
    }
}
