//! The bytes of all messages that have not come whole.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
};

/// Bounds what is held of them together. When it is too much, the one that has been on its way for longest is given up:
/// who means well ends what it began.
#[derive(Debug)]
pub(in super::super) struct Pending {
    most: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    bytes: usize,
    next: u64,
    /// In the order in which they began.
    messages: BTreeMap<u64, Message>,
}

#[derive(Debug)]
struct Message {
    bytes: usize,
    waker: Waker,
}

/// One message that has not come whole. Dropped when it has, or nobody waits for it any more.
#[derive(Debug)]
pub(super) struct Ticket {
    pending: Arc<Pending>,
    number: u64,
}

impl Pending {
    /// No more than `most` bytes.
    pub(in super::super) fn new(most: usize) -> Arc<Pending> {
        Arc::new(Pending {
            most,
            held: Mutex::default(),
        })
    }

    pub(super) fn begin(self: &Arc<Self>) -> Ticket {
        let mut held = self.lock();
        let number = held.next;
        held.next += 1;
        let message = Message {
            bytes: 0,
            waker: Waker::noop().clone(),
        };
        held.messages.insert(number, message);
        drop(held);
        Ticket {
            pending: self.clone(),
            number,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// So much of it is here, and `waker` is to be woken if it is given up. False: it has been.
    pub(super) fn holds(&self, bytes: usize, waker: &Waker) -> bool {
        let mut held = self.pending.lock();
        let Some(message) = held.messages.get_mut(&self.number) else {
            return false;
        };
        let before = std::mem::replace(&mut message.bytes, bytes);
        message.waker.clone_from(waker);
        held.bytes = held.bytes - before + bytes;
        let mut given_up = Vec::new();
        while held.bytes > self.pending.most
            && let Some((_, oldest)) = held.messages.pop_first()
        {
            held.bytes -= oldest.bytes;
            given_up.push(oldest.waker);
        }
        let stays = held.messages.contains_key(&self.number);
        drop(held);
        given_up.into_iter().for_each(Waker::wake);
        stays
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut held = self.pending.lock();
        if let Some(message) = held.messages.remove(&self.number) {
            held.bytes -= message.bytes;
        }
    }
}
