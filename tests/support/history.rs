//! Random histories: changes through the stack, mixed with everything that can happen to a pair of hosts.

use dtfs::stack::{AttrChange, Errno, Result, TimeChange};
use tempfile::TempDir;

use super::hand::{Hand, Open, acl};
use super::pair::{Pair, TIGHT_CAP};
use super::prng::Prng;

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const DEPTH: u64 = 4;
const OPEN_MAX: usize = 3;

/// What a name of another kind, or none, may answer to any change.
const NOT_DONE: [Errno; 11] = [
    Errno::ENOENT,
    Errno::EEXIST,
    Errno::ENOTEMPTY,
    Errno::ENOTDIR,
    Errno::EISDIR,
    Errno::EINVAL,
    Errno::EPERM,
    Errno::ENODATA,
    Errno::EOPNOTSUPP,
    Errno::ENOSPC,
    Errno::ELOOP,
];

/// One history.
pub(crate) struct History {
    pub(crate) pair: Pair,
    prng: Prng,
    hand: Option<Hand>,
    open: Vec<Open>,
    running: bool,
    /// Whether the journal is small enough to overflow.
    tight: bool,
    kept: Option<TempDir>,
    /// What was done, for a seed that fails.
    pub(crate) story: Vec<String>,
}

impl History {
    pub(crate) fn new(pair: Pair, seed: u64, tight: bool) -> History {
        let hand = Some(Hand::new(pair.stack()));
        let prng = Prng::new(seed.wrapping_mul(1_000_003));
        History { pair, prng, hand, open: Vec::new(), running: false, tight, kept: None, story: Vec::new() }
    }

    /// Lives through the whole history; the pair is at rest, with the sender running, afterwards.
    pub(crate) fn run(&mut self) {
        let early = self.prng.below(40);
        self.changes(early);
        let late = self.prng.below(3);
        for round in 0..3 + self.prng.below(5) {
            if round >= late && !self.running {
                self.start();
            }
            let count = self.prng.below(40);
            self.changes(count);
            self.event();
        }
        if !self.running {
            self.start();
        }
        let count = self.prng.below(20);
        self.changes(count);
    }

    fn hand(&self) -> Hand {
        self.hand.clone().expect("the stack is open")
    }

    fn start(&mut self) {
        self.story.push("start".into());
        self.pair.start();
        self.running = true;
    }

    /// The sender begins anew if it runs, with what the pair says of it now.
    pub(crate) fn restart_sender(&mut self) {
        if self.running {
            self.stop();
            self.start();
        }
    }

    fn stop(&mut self) {
        self.pair.stop();
        self.running = false;
    }

    fn event(&mut self) {
        let event = self.prng.below(13);
        self.story.push(format!("event {event}"));
        match event {
            0..=2 => self.pair.cut(),
            3 => self.stop(),
            4 if self.running => self.pair.wait(),
            5 | 6 => self.reopen(event == 5),
            7 => {
                self.stop();
                self.pair.wipe_target();
            }
            8 => {
                self.stop();
                self.kept = Some(self.pair.keep_states());
            }
            9 => {
                if let Some(kept) = self.kept.take() {
                    self.stop();
                    self.pair.restore_states(kept.path());
                }
            }
            10 => {
                for open in self.open.drain(..).collect::<Vec<_>>() {
                    self.hand().close(open);
                }
            }
            11 if self.tight => self.overflow(),
            _ => {}
        }
    }

    /// Writes more than the journal keeps: everything older is dropped, and becomes work where it was not received.
    fn overflow(&mut self) {
        let hand = self.hand();
        let path = "/overflow";
        if hand.file(path, b"").is_err() {
            hand.truncate(path, 0).expect("it is there");
        }
        let piece = vec![0x5a; 128 << 10];
        for offset in (0..2 * TIGHT_CAP).step_by(piece.len()) {
            hand.patch(path, offset % (1 << 20), &piece).expect("there is room");
        }
        if self.prng.below(2) == 0 {
            hand.unlink(path).expect("it is there");
        }
    }

    fn reopen(&mut self, clean: bool) {
        // Handles end with the process; their files are not closed first.
        self.open.clear();
        self.hand = None;
        self.pair.reopen(clean);
        self.hand = Some(Hand::new(self.pair.stack()));
    }

    fn changes(&mut self, count: u64) {
        for _ in 0..count {
            match self.change() {
                Ok(()) => {}
                Err(errno) if NOT_DONE.contains(&errno) => {
                    self.story.pop();
                }
                Err(errno) => panic!("{:?}: {errno}", self.story),
            }
        }
    }

    fn dir(&mut self) -> String {
        let hand = self.hand();
        let mut path = String::new();
        for _ in 0..self.prng.below(DEPTH) {
            let below = format!("{path}/{}", self.prng.pick(&NAMES));
            if hand.is_dir(&below) {
                path = below;
            }
        }
        path
    }

    fn path(&mut self) -> String {
        let dir = self.dir();
        format!("{dir}/{}", self.prng.pick(&NAMES))
    }

    fn data(&mut self) -> (u64, Vec<u8>) {
        let (offset, len) = match self.prng.below(10) {
            0 => (self.prng.below(3 << 20), 200_000),
            1..=3 => (self.prng.below(64) * 4096, 4096 * (1 + self.prng.below(8))),
            _ => (self.prng.below(20_000), 1 + self.prng.below(5_000)),
        };
        (offset, self.prng.bytes(len as usize))
    }

    fn change(&mut self) -> Result<()> {
        let (hand, path) = (self.hand(), self.path());
        let kind = self.prng.below(100);
        self.story.push(format!("{kind} {path}"));
        match kind {
            0..=14 => hand.mkdir(&path).map(drop),
            15..=24 => {
                let (_, data) = self.data();
                hand.file(&path, &data)
            }
            25..=37 => {
                let (offset, data) = self.data();
                hand.patch(&path, offset, &data)
            }
            38..=41 => hand.truncate(&path, self.prng.below(100_000)),
            42..=45 => self.allocate(&hand, &path),
            46..=50 => {
                let new = self.path();
                hand.link(&path, &new)
            }
            51..=57 => hand.unlink(&path),
            58..=60 => hand.rmdir(&path),
            61..=77 => {
                let to = self.path();
                self.story.push(format!("-> {to}"));
                hand.rename(&path, &to)
            }
            78..=82 => {
                let to = self.path();
                self.story.push(format!("<-> {to}"));
                hand.exchange(&path, &to)
            }
            83..=86 => self.attributes(&hand, &path),
            87..=89 => self.xattrs(&hand, &path),
            90 => hand.symlink(&path, format!("../{}", self.prng.below(100)).as_bytes()),
            91 => self.node(&hand, &path),
            92..=94 => self.hold(&hand, &path),
            _ => self.use_open(&hand),
        }
    }

    fn allocate(&mut self, hand: &Hand, path: &str) -> Result<()> {
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        let how = self.prng.pick(&[0, keep, keep | libc::FALLOC_FL_PUNCH_HOLE, libc::FALLOC_FL_ZERO_RANGE]);
        let (offset, len) = (self.prng.below(32) * 4096, 4096 * (1 + self.prng.below(16)));
        hand.allocate(path, how, offset, len)
    }

    fn attributes(&mut self, hand: &Hand, path: &str) -> Result<()> {
        match self.prng.below(3) {
            0 => hand.chmod(path, self.prng.pick(&[0o600, 0o755, 0o4711, 0o2775, 0o1777])),
            1 => hand.chown(path, self.prng.below(5) as u32 * 1000, self.prng.below(5) as u32 * 100),
            _ => {
                let nsec = self.prng.below(1_000_000_000) as u32;
                let time = dtfs::base::Timespec { sec: self.prng.below(1 << 31) as i64, nsec };
                hand.setattr(path, &AttrChange { mtime: TimeChange::Set(time), ..AttrChange::default() })
            }
        }
    }

    fn xattrs(&mut self, hand: &Hand, path: &str) -> Result<()> {
        let name = self.prng.pick(&["user.x", "user.y", "trusted.z"]);
        match self.prng.below(4) {
            0 => hand.remove_xattr(path, name),
            1 => hand.set_xattr(path, "system.posix_acl_access", &acl(self.prng.below(9) as u32)),
            _ => {
                let len = self.prng.below(200) as usize;
                hand.set_xattr(path, name, &self.prng.bytes(len))
            }
        }
    }

    fn node(&mut self, hand: &Hand, path: &str) -> Result<()> {
        let (kind, rdev) =
            self.prng.pick(&[(libc::S_IFIFO, 0), (libc::S_IFSOCK, 0), (libc::S_IFCHR, libc::makedev(1, 3))]);
        hand.mknod(path, kind | 0o644, rdev)
    }

    /// Opens a file and keeps it open, so that it can lose its names meanwhile.
    fn hold(&mut self, hand: &Hand, path: &str) -> Result<()> {
        if self.open.len() < OPEN_MAX {
            self.open.push(hand.open(path)?);
        }
        Ok(())
    }

    fn use_open(&mut self, hand: &Hand) -> Result<()> {
        if self.open.is_empty() {
            return Ok(());
        }
        let at = self.prng.below(self.open.len() as u64) as usize;
        if self.prng.chance(30) {
            hand.close(self.open.swap_remove(at));
            return Ok(());
        }
        let (offset, data) = self.data();
        hand.write_at(self.open[at], offset, &data)
    }
}
