//! What a sender has to attend to. Bounded by what it is: of each wake-up one is kept, of acks that ask for nothing the
//! last, and of other messages a few hundred: whoever reads them from the connection waits, and so does the target, until
//! some were attended to. A target may have very much to ask for, and that is no reason to leave it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::base::Timespec;
use crate::wire::{Ack, Message, WireError};

/// Most messages that wait. An ack that asks for something has at most 128 KiB.
const MOST_MESSAGES: usize = 256;
/// Signs of life whose clocks are kept: one comes at least every two seconds.
const CLOCKS: usize = 8;

/// Most messages that are read behind the end of a session: a target may have some on their way.
const MOST_UNHEARD: usize = 4096;

/// The connection was closed, and nobody reads on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Closed;

/// Something to attend to.
#[derive(Debug)]
pub(super) enum Event {
    /// End the session and the thread.
    Stop,
    /// The target said something.
    Heard(Message),
    /// The connection ended.
    Ended(WireError),
    /// More records are durable.
    Durable,
    /// Someone waits for the target.
    Flush,
    /// Work rows were added.
    Work,
    /// The operator has decided something: no session is to be waited for.
    Retry,
    /// A mirror was begun anew, or held, or goes on.
    Mirror,
    /// Something is to become of orphans.
    Orphans,
}

/// A wake-up that carries nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Call {
    Stop,
    Durable,
    Flush,
    Work,
    Retry,
    Mirror,
    Orphans,
}

#[derive(Default)]
pub(super) struct Mailbox {
    /// Protects what waits. Rank: a leaf; held for a few assignments.
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    /// A message was attended to, or the connection is of no use any more.
    attended: Condvar,
}

#[derive(Default)]
struct Waiting {
    /// By [`Call`].
    called: [bool; 7],
    heard: VecDeque<Message>,
    last_heard: Option<Instant>,
    ended: Option<WireError>,
    /// By how many microseconds the target's clock was ahead when each of its last signs of life came.
    clock_offsets: VecDeque<i64>,
    /// Counts connections: what an old one still says is nobody's business.
    session: u64,
    /// Messages that came for nobody.
    unheard: usize,
}

impl Mailbox {
    /// Wakes the session.
    pub(super) fn call(&self, call: Call) {
        self.waiting.lock().called[call as usize] = true;
        self.arrived.notify_all();
    }

    /// A new connection begins; returns what its reader names itself by. What the last one said is of no use.
    pub(super) fn open_session(&self) -> u64 {
        let mut waiting = self.waiting.lock();
        waiting.forget();
        waiting.last_heard = Some(Instant::now());
        waiting.clock_offsets.clear();
        waiting.session
    }

    /// Nobody attends to the present connection any more: its reader is not to wait for that.
    pub(super) fn close_session(&self) {
        self.waiting.lock().forget();
        self.attended.notify_all();
    }

    /// A message of the target; waits while too many do. Acks are cumulative: the last of several that ask for nothing
    /// stands for all.
    ///
    /// # Errors
    /// [`Closed`] when the connection is closed and the target goes on and on.
    pub(super) fn hear(&self, session: u64, message: Message) -> Result<(), Closed> {
        let mut waiting = self.waiting.lock();
        while waiting.session == session && waiting.is_full_for(&message) {
            self.attended.wait(&mut waiting);
        }
        if waiting.session != session {
            waiting.unheard += 1;
            return if waiting.unheard > MOST_UNHEARD { Err(Closed) } else { Ok(()) };
        }
        waiting.last_heard = Some(Instant::now());
        match (waiting.heard.back_mut(), message) {
            (Some(Message::Ack(last)), Message::Ack(new)) if replaces(&new, last) => *last = new,
            (_, Message::Pong { clock_micros }) => waiting.note_clock(clock_micros),
            (_, message) => waiting.heard.push_back(message),
        }
        drop(waiting);
        self.arrived.notify_all();
        Ok(())
    }

    /// The connection of `session` has ended.
    pub(super) fn end(&self, session: u64, error: WireError) {
        let mut waiting = self.waiting.lock();
        if waiting.session == session {
            waiting.ended = Some(error);
        }
        drop(waiting);
        self.arrived.notify_all();
    }

    /// How long the target has said nothing.
    pub(super) fn silence(&self) -> Duration {
        self.waiting.lock().last_heard.map_or(Duration::ZERO, |heard| heard.elapsed())
    }

    /// By how many microseconds the target's clock is ahead of ours (behind when negative), if it said so. A message takes
    /// some time, so of the last few the one that took least tells most.
    pub(super) fn clock_offset_micros(&self) -> Option<i64> {
        self.waiting.lock().clock_offsets.iter().max().copied()
    }

    /// What there is to attend to, if anything.
    pub(super) fn try_next(&self) -> Option<Event> {
        let event = self.waiting.lock().take();
        self.attended.notify_all();
        event
    }

    /// Waits for something, at most until `deadline`.
    pub(super) fn next(&self, deadline: Instant) -> Option<Event> {
        let mut waiting = self.waiting.lock();
        loop {
            if let Some(event) = waiting.take() {
                self.attended.notify_all();
                return Some(event);
            }
            if self.arrived.wait_until(&mut waiting, deadline).timed_out() {
                return waiting.take();
            }
        }
    }
}

/// Whether `new` says all that `last` says. One that takes something back is kept beside it, to be found out.
fn replaces(new: &Ack, last: &Ack) -> bool {
    let forward = new.batch_taken >= last.batch_taken
        && new.batch_durable >= last.batch_durable
        && new.applied >= last.applied
        && new.received >= last.received;
    forward && last.needs.is_empty() && new.needs.is_empty()
}

impl Waiting {
    fn forget(&mut self) {
        self.heard.clear();
        self.ended = None;
        self.session += 1;
        self.unheard = 0;
    }

    /// Whether `message` has to wait for its place.
    fn is_full_for(&self, message: &Message) -> bool {
        let needs_place = match (self.heard.back(), message) {
            (_, Message::Pong { .. }) => false,
            (Some(Message::Ack(last)), Message::Ack(new)) => !replaces(new, last),
            _ => true,
        };
        needs_place && self.heard.len() >= MOST_MESSAGES
    }

    fn note_clock(&mut self, clock_micros: u64) {
        let offset = i128::from(clock_micros) - i128::from(Timespec::now().as_nanos() / 1000);
        self.clock_offsets.push_back(offset.clamp(i64::MIN.into(), i64::MAX.into()) as i64);
        if self.clock_offsets.len() > CLOCKS {
            self.clock_offsets.pop_front();
        }
    }

    fn take(&mut self) -> Option<Event> {
        // Stopping stays: whoever asks next is to know it too.
        if self.called[Call::Stop as usize] {
            return Some(Event::Stop);
        }
        if let Some(message) = self.heard.pop_front() {
            // What the target says next may have waited for this one.
            self.last_heard = Some(Instant::now());
            return Some(Event::Heard(message));
        }
        if let Some(error) = self.ended.take() {
            return Some(Event::Ended(error));
        }
        let calls = [
            (Call::Durable, Event::Durable),
            (Call::Work, Event::Work),
            (Call::Retry, Event::Retry),
            (Call::Mirror, Event::Mirror),
            (Call::Orphans, Event::Orphans),
            (Call::Flush, Event::Flush),
        ];
        calls.into_iter().find_map(|(call, event)| std::mem::take(&mut self.called[call as usize]).then_some(event))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::base::{Oid, Tid};
    use crate::wire::Need;

    fn ack(taken: u64) -> Message {
        Message::Ack(Ack { batch_taken: taken, ..Ack::default() })
    }

    fn heard(mailbox: &Mailbox) -> Vec<Message> {
        std::iter::from_fn(|| mailbox.try_next())
            .map(|event| match event {
                Event::Heard(message) => message,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn the_last_of_many_acks_stands_for_all() {
        let mailbox = Mailbox::default();
        let session = mailbox.open_session();
        for taken in 1..100_000 {
            mailbox.hear(session, ack(taken)).unwrap();
        }
        assert_eq!(heard(&mailbox), [ack(99_999)]);
    }

    #[test]
    fn nothing_that_is_asked_for_is_lost_and_nothing_taken_back_is_hidden() {
        let mailbox = Mailbox::default();
        let session = mailbox.open_session();
        let needs = vec![Need { oid: Oid::ROOT, offset: 0, len: 0 }];
        let asks = Message::Ack(Ack { batch_taken: 2, needs, ..Ack::default() });
        for message in [ack(1), asks.clone(), ack(3), ack(2)] {
            mailbox.hear(session, message).unwrap();
        }
        assert_eq!(heard(&mailbox), [ack(1), asks, ack(3), ack(2)]);
    }

    /// Very much is asked for, faster than it can be attended to: nothing is lost, and only so much waits.
    #[test]
    fn whoever_says_much_waits_until_it_is_heard() {
        let mailbox = Arc::new(Mailbox::default());
        let session = mailbox.open_session();
        let asks = |taken| {
            let needs = vec![Need { oid: Oid::ROOT, offset: 0, len: 0 }];
            Message::Ack(Ack { batch_taken: taken, needs, ..Ack::default() })
        };
        let speaker = mailbox.clone();
        let says = std::thread::spawn(move || (0..5_000).for_each(|taken| speaker.hear(session, asks(taken)).unwrap()));
        for taken in 0..5_000 {
            assert!(mailbox.waiting.lock().heard.len() <= MOST_MESSAGES);
            let event = mailbox.next(Instant::now() + Duration::from_secs(60));
            assert!(matches!(event, Some(Event::Heard(message)) if message == asks(taken)), "{taken}");
        }
        says.join().unwrap();
    }

    #[test]
    fn who_waits_to_be_heard_does_not_outlive_the_session() {
        let mailbox = Arc::new(Mailbox::default());
        let session = mailbox.open_session();
        let speaker = mailbox.clone();
        let floods = std::thread::spawn(move || {
            (0..1_000_000).position(|_| speaker.hear(session, Message::Ping) == Err(Closed))
        });
        while mailbox.waiting.lock().heard.len() < MOST_MESSAGES {
            std::thread::yield_now();
        }
        mailbox.close_session();
        assert_eq!(floods.join().unwrap(), Some(MOST_MESSAGES + MOST_UNHEARD));
        assert!(mailbox.try_next().is_none());
    }

    #[test]
    fn the_clock_of_the_sign_that_took_least_time_counts() {
        let mailbox = Mailbox::default();
        let session = mailbox.open_session();
        assert_eq!(mailbox.clock_offset_micros(), None);
        let now = Timespec::now().as_nanos() as u64 / 1000;
        for behind in [9_000_000, 5_000_000, 7_000_000] {
            mailbox.hear(session, Message::Pong { clock_micros: now - behind }).unwrap();
        }
        let offset = mailbox.clock_offset_micros().unwrap();
        assert!((-65_000_000..=-5_000_000).contains(&offset), "{offset}");
        mailbox.hear(session, Message::Pong { clock_micros: u64::MAX }).unwrap();
        assert_eq!(mailbox.clock_offset_micros(), Some(i64::MAX));
        mailbox.open_session();
        assert_eq!(mailbox.clock_offset_micros(), None, "another target may have come");
    }

    #[test]
    fn what_an_old_connection_says_is_not_heard() {
        let mailbox = Mailbox::default();
        let old = mailbox.open_session();
        mailbox.hear(old, ack(1)).unwrap();
        mailbox.open_session();
        mailbox.hear(old, Message::Ack(Ack { received: Tid(9), ..Ack::default() })).unwrap();
        mailbox.end(old, WireError::Closed);
        assert!(mailbox.try_next().is_none());
        mailbox.call(Call::Stop);
        assert!(matches!(mailbox.try_next(), Some(Event::Stop)));
        assert!(matches!(mailbox.try_next(), Some(Event::Stop)), "it stays stopped");
    }
}
