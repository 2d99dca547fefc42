//! What this side has to say and the source has not taken yet, with its size. Nobody who has something to say waits for the
//! source, so the accounts are kept here: a source that takes nothing loses its session, and what can be said later waits
//! where it takes least room.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use crate::record::Difference;
use crate::wire::{Message, Need};

/// Memory that answers may have which the source does not take. It takes them at once unless the connection is stuck, and
/// then its silence ends the session.
const MOST_ANSWERS_BYTES: usize = 32 << 20;
/// What any answer counts for: no more than 4096 of them wait, however short.
const ANSWER_BYTES: usize = MOST_ANSWERS_BYTES / 4096;
/// With as much asked for that the source has not taken there is no hurry to ask for more.
const ASKED_AHEAD_BYTES: usize = 1 << 20;

/// Where messages are put.
#[derive(Clone)]
pub(super) struct Outbox {
    messages: Sender<Message>,
    accounts: Arc<Accounts>,
}

/// Where they are taken out.
pub(super) struct Outgoing {
    messages: Receiver<Message>,
    accounts: Arc<Accounts>,
}

/// What waits, in bytes. What is asked for is told apart: it is no answer, and no more than this side has objects.
#[derive(Default)]
struct Accounts {
    answers: AtomicUsize,
    asked: AtomicUsize,
}

/// An empty one.
pub(super) fn outbox() -> (Outbox, Outgoing) {
    let (sender, receiver) = unbounded();
    let accounts = Arc::<Accounts>::default();
    (Outbox { messages: sender, accounts: accounts.clone() }, Outgoing { messages: receiver, accounts })
}

impl Outbox {
    /// Never waits. When the source has gone nobody hears it.
    pub(super) fn send(&self, message: Message) {
        let (account, bytes) = self.accounts.of(&message);
        account.fetch_add(bytes, Ordering::Relaxed);
        if self.messages.send(message).is_err() {
            account.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Whether more answers wait than a source that listens ever leaves.
    pub(super) fn is_full(&self) -> bool {
        self.accounts.answers.load(Ordering::Relaxed) > MOST_ANSWERS_BYTES
    }

    /// Whether asking for more should wait.
    pub(super) fn is_busy(&self) -> bool {
        self.accounts.asked.load(Ordering::Relaxed) > ASKED_AHEAD_BYTES
    }
}

impl Outgoing {
    /// The next message; an error when there is none for `patience`, or nobody is left who could have one.
    pub(super) fn next(&self, patience: Duration) -> Result<Message, RecvTimeoutError> {
        let message = self.messages.recv_timeout(patience)?;
        let (account, bytes) = self.accounts.of(&message);
        account.fetch_sub(bytes, Ordering::Relaxed);
        Ok(message)
    }
}

impl Accounts {
    /// Where a message counts, and for how much.
    fn of(&self, message: &Message) -> (&AtomicUsize, usize) {
        match message {
            Message::Ack(ack) if !ack.needs.is_empty() => (&self.asked, ack.needs.len() * size_of::<Need>()),
            Message::Checked { found, .. } => {
                let size = |difference: &Difference| size_of::<Difference>() + difference.name.len();
                (&self.answers, ANSWER_BYTES + found.iter().map(size).sum::<usize>())
            }
            _ => (&self.answers, ANSWER_BYTES),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Oid;
    use crate::record::DifferenceKind;
    use crate::wire::Ack;

    #[test]
    fn answers_are_counted_in_number_and_in_bytes() {
        let (outbox, outgoing) = outbox();
        (0..4096).for_each(|_| outbox.send(Message::pong()));
        assert!(!outbox.is_full());
        outbox.send(Message::pong());
        assert!(outbox.is_full());
        while outgoing.next(Duration::ZERO).is_ok() {}
        assert!(!outbox.is_full());
        let found = vec![Difference::of(Oid::ROOT, DifferenceKind::Missing); 4096];
        let answer = Message::Checked { batch: 1, more: 0, found };
        let waiting = (0..4096).take_while(|_| !outbox.is_full()).map(|_| outbox.send(answer.clone())).count();
        assert!(waiting < 200, "{waiting} long answers wait");
        while outgoing.next(Duration::ZERO).is_ok() {}
        assert_eq!(outbox.accounts.answers.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_asked_for_waits_and_is_no_flood() {
        let (outbox, outgoing) = outbox();
        let needs = vec![Need { oid: Oid::ROOT, offset: 0, len: 0 }; 4096];
        let asks = Message::Ack(Ack { needs, ..Ack::default() });
        (0..1000).for_each(|_| outbox.send(asks.clone()));
        assert!(outbox.is_busy() && !outbox.is_full());
        while outgoing.next(Duration::ZERO).is_ok() {}
        assert!(!outbox.is_busy());
    }
}
