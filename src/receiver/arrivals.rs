//! What has come from the source: read ahead of whoever takes it, so that the link is in use while a disk is, and so that
//! what came meanwhile becomes durable together.

use std::io::Read;

use crossbeam_channel::{Receiver, TryRecvError, bounded};

use crate::wire::{FrameReader, Message, WireError};

/// Messages that may wait: a batch has at most a few MiB.
const AHEAD: usize = 8;

pub(super) struct Arrivals {
    messages: Receiver<Result<Message, WireError>>,
}

impl Arrivals {
    /// Begins to read. Nobody waits for the thread that does: it ends with the connection, or with whoever takes what it reads,
    /// and until then a read may last as long as the source is silent.
    pub(super) fn of<R: Read + Send + 'static>(mut reader: FrameReader<R>) -> Arrivals {
        let (ahead, messages) = bounded(AHEAD);
        std::thread::spawn(move || {
            loop {
                let message = reader.receive();
                let is_last = matches!(message, Ok(Message::Bye) | Err(_));
                if ahead.send(message).is_err() || is_last {
                    return;
                }
            }
        });
        Arrivals { messages }
    }

    /// The next message, if it has come.
    pub(super) fn come(&self) -> Option<Result<Message, WireError>> {
        match self.messages.try_recv() {
            Ok(message) => Some(message),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(WireError::Closed)),
        }
    }

    /// Waits for the next message.
    pub(super) fn next(&self) -> Result<Message, WireError> {
        self.messages.recv().unwrap_or(Err(WireError::Closed))
    }

    /// How many messages have come and were not taken.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.messages.len()
    }
}
