//! Bytes from a peer: a frame is refused or understood within bounded memory, before and after the peer is known.
#![no_main]

use dtfs::wire::{FrameReader, MAX_HELLO_BYTES};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    read(data, false);
    read(data, true);
    if let Some(bytes) = checked(data) {
        read(&bytes, false);
        read(&bytes, true);
    }
});

fn read(bytes: &[u8], trusted: bool) {
    let Ok(mut reader) = FrameReader::start(bytes) else { return };
    if trusted {
        reader.trust();
    }
    while let Ok(message) = reader.receive() {
        assert!(trusted || message.encode().len() <= 2 * MAX_HELLO_BYTES, "a long message from nobody");
    }
}

/// Puts the right banner and the right checksums around what `data` says of kind, flags, lengths and body.
fn checked(data: &[u8]) -> Option<Vec<u8>> {
    let (head, stored) = data.split_at_checked(8)?;
    let raw_len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    let frame = dtfs_fuzz::framed([head[0], head[1], head[2], head[3]], raw_len, stored);
    Some([dtfs::wire::BANNER, &frame].concat())
}
