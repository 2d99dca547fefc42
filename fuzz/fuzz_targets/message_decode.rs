//! Messages of every kind, past the checksums of a frame: the first byte is the kind, the rest its body. What is understood
//! has one meaning, and no text in it can act on a terminal.
#![no_main]

use dtfs::wire::Message;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, body)) = data.split_first() else { return };
    let Ok(message) = Message::decode(*kind, body.to_vec()) else { return };
    assert_eq!(Message::decode(message.kind(), message.encode()).as_ref(), Ok(&message));
    let text = match &message {
        Message::Hello(hello) => &hello.label,
        Message::HelloReply(reply) => &reply.doubt,
        Message::Refuse { text, .. } => text,
        _ => return,
    };
    assert!(!text.chars().any(char::is_control));
});
