//! Bytes from a peer: a frame is refused or understood within bounded memory, before and after the peer is known.
#![no_main]

use dtfs::wire::{FrameReader, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for trusted in [false, true] {
        if let Ok(mut reader) = FrameReader::start(data) {
            if trusted {
                reader.trust();
            }
            while reader.receive().is_ok() {}
        }
    }
    // Past the checksums of a frame.
    if let Some((kind, body)) = data.split_first() {
        if let Ok(message) = Message::decode(*kind, body.to_vec()) {
            assert_eq!(Message::decode(message.kind(), message.encode()).as_ref(), Ok(&message));
        }
    }
});
