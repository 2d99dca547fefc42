//! The memory that outlives the process: records that are not in the log yet, and the changes that are under way. After a
//! kill the next open finds there what the log and the tree do not say. MEMORY.md has the layout.
//!
//! Invariants:
//! - The file is used again only by the same boot, for the same journal, by the very next life: `state.db` names it.
//! - A length is published after the bytes it counts, a slot's word after what is in the slot. A kill leaves a prefix.
//! - All space is allocated when the file is made: a store can never fail.

use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use nix::errno::Errno;

use crate::base::{Tid, VolumeUuid, faults, random_bytes};
use crate::journal::error::{JournalError, io, std_io};
use crate::journal::log::Position;
use crate::record::{FieldReader, FieldWriter, Header};
use crate::sys::{self, SharedMap};

const MAGIC: &[u8; 8] = b"DTFSMEM\n";
const VERSION: u32 = 1;
const PAGE: usize = 4096;
/// Bytes of the identity that its checksum covers.
const IDENTITY_BYTES: usize = 72;
/// Changes that can be under way at once.
pub(super) const SLOTS: usize = 512;
/// Size of one slot.
pub(super) const SLOT_BYTES: usize = 512;
const SLOTS_AT: usize = 2 * PAGE;
const RING_AT: usize = SLOTS_AT + SLOTS * SLOT_BYTES;

/// The words of the second page, in bytes from its start.
mod word {
    pub(super) const HEAD: usize = 0;
    pub(super) const TAIL: usize = 8;
    pub(super) const LAST: usize = 16;
    pub(super) const FAILED: usize = 24;
    /// Which of the two banks below holds.
    pub(super) const BANK: usize = 32;
    pub(super) const BANKS: [usize; 2] = [64, 128];
}

/// State of an extent of the ring, in the upper half of the word before it; its length is in the lower.
mod extent {
    pub(super) const TAKEN: u64 = 1 << 32;
    pub(super) const FILLED: u64 = 2 << 32;
    /// Nothing: the next extent begins at the ring's start.
    pub(super) const SKIPPED: u64 = 3 << 32;
    pub(super) const STATE: u64 = 0xffff_ffff << 32;
}

/// Which life of which journal the memory belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Life {
    pub(super) volume: VolumeUuid,
    /// The kernel's name of the boot.
    pub(super) boot: [u8; 16],
    /// Random, new for every open of the journal.
    pub(super) life: [u8; 16],
}

/// Room for one record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Extent {
    /// Byte of the mapping.
    at: usize,
    len: usize,
}

/// The mapped file.
pub(super) struct Shared {
    map: SharedMap,
    /// Bytes of the ring.
    capacity: usize,
    path: PathBuf,
}

/// What a life left behind.
pub(super) struct Left {
    /// Records that may not be in the log, in order.
    pub(super) records: Vec<Vec<u8>>,
    /// Last TID that was given.
    pub(super) last: Tid,
    /// The slots that were not cleared.
    pub(super) slots: Vec<[u8; SLOT_BYTES]>,
    /// Up to here the log was durable.
    pub(super) durable: Durable,
    /// The life had failed: what it wrote after `durable` may be in the page cache only.
    pub(super) failed: bool,
}

/// A known lower bound of the log's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Durable {
    pub(super) tid: Tid,
    pub(super) end: Position,
}

impl Life {
    /// A new life in this boot.
    pub(super) fn begin(volume: VolumeUuid) -> Result<Life, JournalError> {
        Ok(Life { volume, boot: boot_id()?, life: random_bytes() })
    }
}

/// The kernel's name of this boot.
pub fn boot_id() -> Result<[u8; 16], JournalError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = std::fs::read_to_string(path).map_err(std_io("read", path))?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let number = u128::from_str_radix(&digits, 16).map_err(|_| io("read", path)(Errno::EINVAL))?;
    Ok(number.to_be_bytes())
}

impl Shared {
    /// Makes the file anew for `life`, with a ring of at least `ring_bytes`, each record at most `most_bytes`.
    ///
    /// # Errors
    /// `Io`, with ENOSPC when there is not enough memory.
    pub(super) fn create(
        path: &Path,
        life: &Life,
        ring_bytes: usize,
        most_bytes: usize,
    ) -> Result<Shared, JournalError> {
        // An extent never wraps: what is lost at the end of the ring is less than one record.
        let capacity = (ring_bytes + most_bytes + 2 * PAGE).next_multiple_of(PAGE);
        // A new inode: whoever still maps the old one must not see it change.
        match std::fs::remove_file(path) {
            Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => return Err(std_io("remove", path)(cause)),
            _ => {}
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(std_io("create", path))?;
        let len = RING_AT + capacity;
        faults::point("shared.allocate")
            .and_then(|()| sys::fallocate(file.as_fd(), 0, 0, len as u64))
            .map_err(io("allocate", path))?;
        let map = SharedMap::new(file.as_fd(), len).map_err(io("map", path))?;
        let shared = Shared { map, capacity, path: path.to_owned() };
        shared.map.store(0, &identity(life, capacity));
        Ok(shared)
    }

    /// What `life` left; `None` when the file is gone, another life's, or damaged.
    pub(super) fn left_by(path: &Path, life: &Life) -> Option<Left> {
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(path).ok()?;
        let meta = file.metadata().ok()?;
        let ours =
            meta.is_file() && meta.uid() == nix::unistd::geteuid().as_raw() && meta.permissions().mode() & 0o77 == 0;
        let len = usize::try_from(meta.len()).ok()?;
        if !ours || len <= RING_AT {
            return None;
        }
        let map = SharedMap::new(file.as_fd(), len).ok()?;
        let shared = Shared { map, capacity: len - RING_AT, path: path.to_owned() };
        let known = shared.map.bytes(0, IDENTITY_BYTES) == identity(life, shared.capacity).as_slice();
        if known { shared.left() } else { None }
    }

    /// Removes the name. The mapping stays until it is dropped.
    pub(super) fn remove(&self) {
        let _ = std::fs::remove_file(&self.path);
    }

    fn word(&self, at: usize) -> &std::sync::atomic::AtomicU64 {
        self.map.word(PAGE + at)
    }

    /// Takes an extent of `len` bytes, a multiple of 8, behind `head`; returns it and the new head. The caller has the ring's
    /// lock and has seen to the room.
    pub(super) fn take(&self, mut head: u64, len: usize) -> (Extent, u64) {
        let mut at = (head % self.capacity as u64) as usize;
        let rest = self.capacity - at;
        if rest < 8 + len {
            self.map.word(RING_AT + at).store(extent::SKIPPED | (rest as u64 - 8), Ordering::Relaxed);
            head += rest as u64;
            at = 0;
        }
        self.map.word(RING_AT + at).store(extent::TAKEN | len as u64, Ordering::Relaxed);
        head += 8 + len as u64;
        self.word(word::HEAD).store(head, Ordering::Release);
        (Extent { at: RING_AT + at + 8, len }, head)
    }

    /// Notes the last TID that was given.
    pub(super) fn set_last(&self, tid: Tid) {
        self.word(word::LAST).store(tid.0, Ordering::Release);
    }

    /// Stores a record, in parts, in its extent. From here on it survives a kill.
    pub(super) fn fill(&self, extent: Extent, parts: &[&[u8]]) {
        let mut at = extent.at;
        for part in parts {
            self.map.store(at, part);
            at += part.len();
        }
        debug_assert_eq!(at, extent.at + extent.len, "a record fills its extent");
        self.map.word(extent.at - 8).store(extent::FILLED | extent.len as u64, Ordering::Release);
    }

    /// The record in an extent, as soon as whoever took it has filled it: a copy of at most one transfer.
    pub(super) fn record(&self, extent: Extent) -> &[u8] {
        let state = self.map.word(extent.at - 8);
        let mut turns = 0_u32;
        while state.load(Ordering::Acquire) & extent::STATE != extent::FILLED {
            turns += 1;
            if turns.is_multiple_of(64) { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        self.map.bytes(extent.at, extent.len)
    }

    /// Everything before `tail` is in the log, which is durable up to `durable`.
    pub(super) fn settle(&self, tail: u64, durable: Durable) {
        self.set_durable(durable);
        self.word(word::TAIL).store(tail, Ordering::Release);
    }

    /// Notes up to where the log is durable.
    pub(super) fn set_durable(&self, durable: Durable) {
        let next = 1 - (self.word(word::BANK).load(Ordering::Relaxed) & 1) as usize;
        let words = [durable.tid.0, durable.end.segment, durable.end.offset];
        for (no, value) in words.into_iter().enumerate() {
            self.word(word::BANKS[next] + 8 * no).store(value, Ordering::Relaxed);
        }
        self.word(word::BANK).store(next as u64, Ordering::Release);
    }

    /// The log has failed: after a restart nothing that is not known to be durable counts.
    pub(super) fn set_failed(&self) {
        self.word(word::FAILED).store(1, Ordering::Release);
    }

    /// Fills slot `no`.
    pub(super) fn fill_slot(&self, no: usize, content: &[u8]) {
        let at = SLOTS_AT + no * SLOT_BYTES;
        self.map.store(at + 8, content);
        self.map.word(at).store(content.len() as u64, Ordering::Release);
    }

    /// Clears slot `no`.
    pub(super) fn clear_slot(&self, no: usize) {
        self.map.word(SLOTS_AT + no * SLOT_BYTES).store(0, Ordering::Release);
    }

    fn left(&self) -> Option<Left> {
        let bank = word::BANKS[(self.word(word::BANK).load(Ordering::Acquire) & 1) as usize];
        let value = |no: usize| self.word(bank + 8 * no).load(Ordering::Relaxed);
        let durable = Durable { tid: Tid(value(0)), end: Position { segment: value(1), offset: value(2) } };
        let slots = (0..SLOTS).map(|no| SLOTS_AT + no * SLOT_BYTES);
        let filled = slots.filter(|at| self.map.word(*at).load(Ordering::Acquire) != 0);
        Some(Left {
            records: self.records()?,
            last: Tid(self.word(word::LAST).load(Ordering::Acquire)),
            slots: filled.filter_map(|at| self.map.bytes(at, SLOT_BYTES).try_into().ok()).collect(),
            durable,
            failed: self.word(word::FAILED).load(Ordering::Acquire) != 0,
        })
    }

    /// The filled extents between tail and head. `None` when they are not what a life can have left.
    fn records(&self) -> Option<Vec<Vec<u8>>> {
        let (mut at, head) =
            (self.word(word::TAIL).load(Ordering::Acquire), self.word(word::HEAD).load(Ordering::Acquire));
        let capacity = self.capacity as u64;
        if head < at || head - at > capacity {
            return None;
        }
        let (mut records, mut last) = (Vec::new(), Tid::ZERO);
        while at < head {
            let place = (at % capacity) as usize;
            if !place.is_multiple_of(8) {
                return None;
            }
            let prefix = self.map.word(RING_AT + place).load(Ordering::Acquire);
            let len = (prefix & !extent::STATE) as usize;
            if self.capacity - place < 8 + len {
                return None;
            }
            if prefix & extent::STATE == extent::FILLED {
                let bytes = self.map.bytes(RING_AT + place + 8, len).to_vec();
                let header =
                    Header::parse(&bytes).ok().filter(|header| header.len_bytes == len && header.tid > last)?;
                last = header.tid;
                records.push(bytes);
            }
            at += 8 + len as u64;
        }
        (at == head).then_some(records)
    }
}

/// The first bytes of the file.
fn identity(life: &Life, capacity: usize) -> [u8; IDENTITY_BYTES] {
    let mut out = FieldWriter::default();
    out.0.extend_from_slice(MAGIC);
    out.u32(VERSION);
    for id in [&life.volume.0, &life.boot, &life.life] {
        out.0.extend_from_slice(id);
    }
    out.u64(capacity as u64);
    out.u32(crc32c::crc32c(&out.0));
    let mut bytes = [0; IDENTITY_BYTES];
    bytes.copy_from_slice(&out.0);
    bytes
}

/// The life that `state.db` names.
pub(super) fn life_from(volume: VolumeUuid, bytes: &[u8]) -> Option<Life> {
    let mut reader = FieldReader::new(bytes);
    let mut id = || reader.take("life", 16).ok()?.try_into().ok();
    Some(Life { volume, boot: id()?, life: id()? })
}

impl Life {
    /// As `state.db` keeps it.
    pub(super) fn to_bytes(self) -> Vec<u8> {
        [self.boot, self.life].concat()
    }
}
