//! Frames: a checked header and a body, perhaps compressed.

use std::io::{self, Read, Write};
use std::time::Instant;

use super::message::{Message, RefuseCode};
use super::squeeze::Squeeze;
use super::{BANNER, MAX_BODY_BYTES, MAX_HELLO_BYTES};
use crate::record::DecodeError;

const MAGIC: u32 = u32::from_le_bytes(*b"DTW1");
const HEADER_BYTES: usize = 24;
const FLAG_ZSTD: u8 = 1;

/// Why a session cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The other side closed the connection.
    #[error("the other side closed the connection")]
    Closed,
    /// More came than could be heard.
    #[error("the other side says more than it may without being heard")]
    Flood,
    /// Reading or writing failed.
    #[error("connection failed: {0}")]
    Io(#[source] io::Error),
    /// The other side is not dtfs, or not a version of it that we know.
    #[error("the other side is not dtfs (it began with \"{0}\")")]
    Banner(String),
    /// A frame's header or body is damaged or out of bounds.
    #[error("frame {frame}: {what}")]
    Frame {
        /// How many frames came before it.
        frame: u64,
        /// What is wrong.
        what: String,
    },
    /// A message's body does not decode.
    #[error("frame {frame}: {cause}")]
    Message {
        /// How many frames came before it.
        frame: u64,
        /// What is wrong.
        cause: DecodeError,
    },
}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> WireError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                WireError::Closed
            }
            _ => WireError::Io(error),
        }
    }
}

/// How bodies are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    /// Sent as they are.
    Off,
    /// zstd at this level, for bodies of at most `max_bytes`: on a fast link a large body takes longer to compress than to
    /// send, while small ones are mostly names and attributes and shrink to a third.
    Zstd {
        /// Level, -5 (fast) to 19.
        level: i32,
        /// Longest body that is compressed.
        max_bytes: usize,
    },
    /// zstd at a level that follows the link, for everything that shrinks.
    Adaptive,
}

/// Sends messages.
pub struct FrameWriter<W> {
    out: W,
    compression: Compression,
    squeeze: Squeeze,
    bytes_sent: u64,
}

impl<W: Write> FrameWriter<W> {
    /// Sends the banner.
    ///
    /// # Errors
    /// [`WireError`] when the connection does not take it.
    pub fn start(mut out: W, compression: Compression) -> Result<FrameWriter<W>, WireError> {
        out.write_all(BANNER)?;
        out.flush()?;
        Ok(FrameWriter { out, compression, squeeze: Squeeze::new(), bytes_sent: BANNER.len() as u64 })
    }

    /// Sends one message and says how many bytes it took on the wire.
    ///
    /// # Errors
    /// [`WireError`] when the connection does not take it.
    pub fn send(&mut self, message: &Message) -> Result<u64, WireError> {
        let body = message.encode();
        debug_assert!(body.len() <= MAX_BODY_BYTES);
        let began = Instant::now();
        let packed = self.pack(&body);
        let packing = began.elapsed();
        let (flags, stored) = match &packed {
            Some(packed) => (FLAG_ZSTD, packed.as_slice()),
            None => (0, body.as_slice()),
        };
        let header = header(message.kind(), flags, body.len(), stored);
        self.out.write_all(&header)?;
        self.out.write_all(stored)?;
        self.out.flush()?;
        if self.compression == Compression::Adaptive && packed.is_some() {
            self.squeeze.learn(body.len(), packing, began.elapsed() - packing);
        }
        let sent = (header.len() + stored.len()) as u64;
        self.bytes_sent += sent;
        Ok(sent)
    }

    /// The compressed body when that is worth it.
    fn pack(&self, body: &[u8]) -> Option<Vec<u8>> {
        const WORTH_IT_BYTES: usize = 256;
        if body.len() < WORTH_IT_BYTES {
            return None;
        }
        let packed = match self.compression {
            Compression::Off => return None,
            Compression::Zstd { max_bytes, .. } if body.len() > max_bytes => return None,
            Compression::Zstd { level, .. } => zstd::bulk::compress(body, level).ok()?,
            Compression::Adaptive => self.squeeze.pack(body)?,
        };
        (packed.len() < body.len()).then_some(packed)
    }

    /// Bytes sent so far, headers and banner included.
    pub fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }
}

/// Says no to whoever is at the other end, before anything is read from there.
///
/// # Errors
/// [`WireError`] when the connection does not take it.
pub fn refuse(out: impl Write, code: RefuseCode, text: &str) -> Result<(), WireError> {
    let mut writer = FrameWriter::start(out, Compression::Off)?;
    writer.send(&Message::Refuse { code, text: text.to_owned() }).map(drop)
}

fn header(kind: u8, flags: u8, raw_len: usize, stored: &[u8]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    header[4] = kind;
    header[5] = flags;
    header[8..12].copy_from_slice(&(raw_len as u32).to_le_bytes());
    header[12..16].copy_from_slice(&(stored.len() as u32).to_le_bytes());
    header[16..20].copy_from_slice(&crc32c::crc32c(stored).to_le_bytes());
    let crc = crc32c::crc32c(&header[..20]);
    header[20..24].copy_from_slice(&crc.to_le_bytes());
    header
}

/// Receives messages.
pub struct FrameReader<R> {
    input: R,
    max_body_bytes: usize,
    frames: u64,
}

impl<R: Read> FrameReader<R> {
    /// Waits for the banner. Until [`FrameReader::trust`] only short frames are taken.
    ///
    /// # Errors
    /// [`WireError::Banner`] when something else answers.
    pub fn start(mut input: R) -> Result<FrameReader<R>, WireError> {
        let mut banner = vec![0; BANNER.len()];
        let mut filled = 0;
        while filled < banner.len() {
            match input.read(&mut banner[filled..]) {
                Ok(0) if filled == 0 => return Err(WireError::Closed),
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if banner != BANNER {
            let seen = String::from_utf8_lossy(&banner[..filled]).escape_default().to_string();
            return Err(WireError::Banner(seen));
        }
        Ok(FrameReader { input, max_body_bytes: MAX_HELLO_BYTES, frames: 0 })
    }

    /// The other side is known: from now on frames may have their full length.
    pub fn trust(&mut self) {
        self.max_body_bytes = MAX_BODY_BYTES;
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// [`WireError`] when the connection ends or the frame is damaged, too long, or does not decode.
    pub fn receive(&mut self) -> Result<Message, WireError> {
        let mut header = [0; HEADER_BYTES];
        self.input.read_exact(&mut header)?;
        let frame = self.frames;
        self.frames += 1;
        let bad = |what: &str| WireError::Frame { frame, what: what.to_owned() };
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        if word(0) != MAGIC {
            return Err(bad("magic is wrong"));
        }
        if word(20) != crc32c::crc32c(&header[..20]) {
            return Err(bad("header checksum is wrong"));
        }
        let (kind, flags, raw_len, stored_len) = (header[4], header[5], word(8) as usize, word(12) as usize);
        if raw_len > self.max_body_bytes || stored_len > raw_len || header[6..8] != [0, 0] || flags > FLAG_ZSTD {
            return Err(bad("length or flags are out of bounds"));
        }
        let mut stored = vec![0; stored_len];
        self.input.read_exact(&mut stored)?;
        if word(16) != crc32c::crc32c(&stored) {
            return Err(bad("body checksum is wrong"));
        }
        let body = match flags & FLAG_ZSTD {
            0 => stored,
            // The output is bounded by `raw_len`, which was checked: a bomb ends with an error, not with memory.
            _ => zstd::bulk::decompress(&stored, raw_len).map_err(|_| bad("body does not decompress"))?,
        };
        if body.len() != raw_len {
            return Err(bad("body has another length than its header says"));
        }
        Message::decode(kind, body).map_err(|cause| WireError::Message { frame, cause })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Compression = Compression::Zstd { level: 1, max_bytes: MAX_BODY_BYTES };

    fn wire(messages: &[Message], compression: Compression) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = FrameWriter::start(&mut bytes, compression).unwrap();
        for message in messages {
            writer.send(message).unwrap();
        }
        bytes
    }

    fn state(len: usize) -> Message {
        Message::State { batch: 3, body: vec![7; len] }
    }

    #[test]
    fn messages_arrive_with_and_without_compression() {
        for compression in [Compression::Off, FAST, Compression::Adaptive] {
            let bytes = wire(&[Message::Ping, state(100_000)], compression);
            let mut reader = FrameReader::start(bytes.as_slice()).unwrap();
            reader.trust();
            assert_eq!(reader.receive().unwrap(), Message::Ping);
            assert_eq!(reader.receive().unwrap(), state(100_000));
            assert!(matches!(reader.receive(), Err(WireError::Closed)));
        }
        assert!(wire(&[state(100_000)], FAST).len() < 1000);
    }

    #[test]
    fn long_frames_need_trust() {
        let bytes = wire(&[state(MAX_HELLO_BYTES + 1)], Compression::Off);
        let mut reader = FrameReader::start(bytes.as_slice()).unwrap();
        assert!(matches!(reader.receive(), Err(WireError::Frame { frame: 0, .. })));
    }

    #[test]
    fn a_bomb_is_refused() {
        let body = vec![0; 1 << 20];
        let stored = zstd::bulk::compress(&body, 1).unwrap();
        let mut bytes = BANNER.to_vec();
        bytes.extend_from_slice(&header(5, FLAG_ZSTD, 2000, &stored));
        bytes.extend_from_slice(&stored);
        let mut reader = FrameReader::start(bytes.as_slice()).unwrap();
        assert!(matches!(reader.receive(), Err(WireError::Frame { .. })));
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let bytes = wire(&[state(300)], FAST);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            let outcome = FrameReader::start(damaged.as_slice()).and_then(|mut r| r.receive());
            assert!(outcome.is_err(), "flip at {at} went unnoticed");
        }
    }

    #[test]
    fn something_else_than_dtfs_is_named() {
        let error = FrameReader::start(&b"SSH-2.0-OpenSSH_9.2 and so on and on"[..]).err().unwrap();
        assert!(error.to_string().contains("SSH-2.0"), "{error}");
    }
}
