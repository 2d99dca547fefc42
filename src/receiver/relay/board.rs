//! `relay/board`: where a copy's tree is, told by the process that performs records on it to the daemon that passes them on.
//!
//! One record of 64 bytes, written in one piece: 8 bytes `dtfsbrd1`, the kernel's name of this boot (16), position (epoch 16,
//! TID 8, digest 8), 1 byte of flags (1: settled, 2: unsure), 3 zeros, crc32c of all before (4). Never synced: after a restart
//! of the system it says nothing, for the boot is another.
//!
//! The crc changes with the record, so it is also what a reader waits on (futex(2), on the file as shared memory).

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::base::Position;
use crate::journal::{JournalError, boot_id};
use crate::sys::SharedMap;

const MAGIC: &[u8; 8] = b"dtfsbrd1";
const LEN: usize = 64;
/// Where the crc lies.
const CRC: usize = 60;
const SETTLED: u8 = 1;
const UNSURE: u8 = 2;
/// A record that is being written is read again so many times.
const TRIES: u32 = 100;

/// What the board says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Said {
    /// Every record up to here was performed.
    pub(super) at: Position,
    /// Whether the source said last that the tree is a past state of it.
    pub(super) is_settled: bool,
    /// Whether the tree may have changed since it was last durable together with its catalog.
    pub(super) is_unsure: bool,
}

pub(super) struct Board {
    file: File,
    /// The same bytes, to wait on.
    map: SharedMap,
    boot: [u8; 16],
}

/// A record that may be followed by another one.
#[derive(Clone, Copy)]
pub(super) struct Seen(u32);

impl Board {
    /// The board in `dir`, made when it is missing.
    pub(super) fn open(dir: &Path) -> Result<Board, JournalError> {
        let path = dir.join("board");
        let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(|error| super::io("open", &path, &error))?;
        // Never shorter, whoever else opens it; a page without a file behind it would end the process.
        if file.metadata().map_err(|error| super::io("stat", &path, &error))?.len() < LEN as u64 {
            file.set_len(LEN as u64).map_err(|error| super::io("extend", &path, &error))?;
        }
        let map = SharedMap::new(file.as_fd(), LEN).map_err(|errno| super::io("map", &path, &errno.into()))?;
        Ok(Board { file, map, boot: boot_id()? })
    }

    pub(super) fn write(&self, said: Said) -> io::Result<()> {
        self.file.write_all_at(&encode(self.boot, said), 0)?;
        self.map.wake(CRC);
        Ok(())
    }

    /// What is there now, to be read afterwards.
    pub(super) fn seen(&self) -> Seen {
        Seen(self.map.half(CRC).load(Ordering::Acquire))
    }

    /// Waits until something else is written than what was `seen`, at most `timeout`.
    pub(super) fn wait(&self, seen: Seen, timeout: Duration) {
        self.map.wait(CRC, seen.0, timeout);
    }

    /// What was written in this boot, if anything was.
    pub(super) fn read(&self) -> Option<Said> {
        let mut bytes = [0; LEN];
        (0..TRIES).find_map(|_| {
            self.file.read_exact_at(&mut bytes, 0).ok()?;
            decode(self.boot, &bytes)
        })
    }
}

fn encode(boot: [u8; 16], said: Said) -> [u8; LEN] {
    let mut out = [0; LEN];
    out[..8].copy_from_slice(MAGIC);
    out[8..24].copy_from_slice(&boot);
    out[24..56].copy_from_slice(&said.at.to_bytes());
    out[56] = u8::from(said.is_settled) * SETTLED + u8::from(said.is_unsure) * UNSURE;
    let crc = crc32c::crc32c(&out[..CRC]);
    out[CRC..].copy_from_slice(&crc.to_le_bytes());
    out
}

fn decode(boot: [u8; 16], bytes: &[u8; LEN]) -> Option<Said> {
    let (rest, crc) = bytes.split_last_chunk::<4>()?;
    let whole = crc32c::crc32c(rest).to_le_bytes() == *crc && rest.starts_with(MAGIC) && rest[8..24] == boot;
    let at = Position::from_bytes(rest[24..56].try_into().ok()?);
    whole.then_some(Said { at, is_settled: rest[56] & SETTLED != 0, is_unsure: rest[56] & UNSURE != 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{ChainDigest, EpochId, Tid};

    #[test]
    fn who_waits_hears_of_the_next_record() {
        let dir = tempfile::tempdir().unwrap();
        let (there, here) = (Board::open(dir.path()).unwrap(), Board::open(dir.path()).unwrap());
        assert_eq!(here.read(), None);
        let at = Position { epoch: EpochId([7; 16]), tid: Tid(9), digest: ChainDigest([3; 8]) };
        let said = Said { at, is_settled: true, is_unsure: false };
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let began = std::time::Instant::now();
                loop {
                    let seen = here.seen();
                    if here.read() == Some(said) {
                        return began.elapsed();
                    }
                    here.wait(seen, Duration::from_secs(600));
                }
            });
            there.write(said).unwrap();
            assert!(waiting.join().unwrap() < Duration::from_secs(300), "only the timeout woke it");
        });
    }

    #[test]
    fn what_another_boot_wrote_or_is_half_written_says_nothing() {
        let at = Position { epoch: EpochId([7; 16]), tid: Tid(9), digest: ChainDigest([3; 8]) };
        let said = Said { at, is_settled: true, is_unsure: false };
        let bytes = encode([1; 16], said);
        assert_eq!(decode([1; 16], &bytes), Some(said));
        assert_eq!(decode([2; 16], &bytes), None);
        for at in 0..LEN {
            let mut torn = bytes;
            torn[at] ^= 1;
            assert_eq!(decode([1; 16], &torn), None, "{at}");
        }
    }
}
