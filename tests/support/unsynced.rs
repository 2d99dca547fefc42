//! What the disk below a tree may not have yet. Every change is written down, in a file that outlives the process which
//! makes it, before it is made; after a power loss some of what no sync followed is taken back: any of the blocks, and the
//! end of the changes of names, which a filesystem's journal makes durable in order.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::hand::Hand;
use super::prng::Prng;

const BLOCK: usize = 1000;
const BLOCKS: u64 = 4;
/// Size of a segment's header, and what a disk never tears.
const HEADER_BYTES: u64 = 4096;
const SECTOR_BYTES: usize = 512;

pub(crate) const DIRS: [&str; 3] = ["/one", "/two", "/one/deep"];
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// A tree on such a disk.
pub(crate) struct World {
    root: PathBuf,
    /// Keeps objects that lost a name, so that the disk can have it again.
    limbo: PathBuf,
    log: PathBuf,
}

/// How a change of a name is taken back, as a disk does that never heard of it. Each does nothing when the change was written
/// down and not made any more, which can only be the last one.
enum Undo {
    Made(PathBuf),
    Gone { path: PathBuf, kept: PathBuf },
    Moved { from: PathBuf, to: PathBuf, kept: Option<PathBuf> },
}

#[derive(Default)]
struct Disk {
    names: Vec<Undo>,
    /// By inode and block: what it held at the last sync, and everything written since. Contents are named by a number.
    blocks: BTreeMap<(u64, u64), Vec<u64>>,
}

impl World {
    /// The tree at `root`; `beside` is a directory of its own on the same filesystem.
    pub(crate) fn new(root: &Path, beside: &Path) -> World {
        let limbo = beside.join("limbo");
        fs::create_dir_all(&limbo).unwrap();
        World { root: root.to_owned(), limbo, log: beside.join("log") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(&name[1..])
    }

    /// Writes down what is about to happen. No name of ours holds a space.
    fn note(&self, line: &str) {
        let mut log = OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        log.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn keep(&self, path: &Path, prng: &mut Prng) -> PathBuf {
        let kept = self.limbo.join(prng.next().to_string());
        fs::hard_link(path, &kept).unwrap();
        kept
    }

    /// Makes one random change, or none.
    pub(crate) fn change(&self, hand: &Hand, prng: &mut Prng) {
        let (one, other) = (place(prng), place(prng));
        let (path, to) = (self.path(&one), self.path(&other));
        match prng.below(10) {
            0 | 1 if self.may_make(&path) => {
                self.note(&format!("made {}", path.display()));
                hand.file(&one, b"").unwrap();
            }
            2 if path.is_file() => {
                let kept = self.keep(&path, prng);
                self.note(&format!("gone {} {}", path.display(), kept.display()));
                hand.unlink(&one).unwrap();
            }
            3 if path.is_file() && one != other && !to.is_dir() && has_dir(&to) => {
                let kept = if to.is_file() { self.keep(&to, prng).display().to_string() } else { String::new() };
                self.note(&format!("moved {} {} {kept}", path.display(), to.display()));
                hand.rename(&one, &other).unwrap();
            }
            4 if self.may_make(&path) => {
                self.note(&format!("made {}", path.display()));
                hand.mkdir(&one).unwrap();
            }
            5 if path.is_file() => hand.chmod(&one, 0o600 | prng.below(64) as u32).unwrap(),
            _ if path.is_file() => self.write(hand, prng, &one),
            _ => {}
        }
    }

    fn may_make(&self, path: &Path) -> bool {
        !path.exists() && has_dir(path)
    }

    fn write(&self, hand: &Hand, prng: &mut Prng, name: &str) {
        let (file, block) = (File::open(self.path(name)).unwrap(), prng.below(BLOCKS));
        let mut before = [0; 8];
        let _ = file.read_exact_at(&mut before, block * BLOCK as u64);
        let (before, content) = (u64::from_le_bytes(before), prng.next());
        let ino = file.metadata().unwrap().ino();
        self.note(&format!("block {ino} {block} {before} {content}"));
        hand.patch(name, block * BLOCK as u64, &block_bytes(content)).unwrap();
    }

    /// Everything is on the disk.
    pub(crate) fn sync(&self) {
        self.note("sync");
    }

    /// Some of it gets there by itself.
    pub(crate) fn write_back(&self, prng: &mut Prng) {
        self.note(&format!("back {}", prng.next()));
    }

    /// The power goes: only what the disk has is left.
    pub(crate) fn lose_power(&self, prng: &mut Prng) {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let mut disk = Disk::default();
        text.lines().for_each(|line| disk.read(line));
        disk.write_back(prng);
        disk.names.into_iter().rev().for_each(Undo::take_back);
        let files = files_below(&self.root);
        for ((ino, block), held) in disk.blocks {
            if let Some(path) = files.get(&ino) {
                let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
                let (at, on_disk) = (block * BLOCK as u64, block_bytes(held[0]));
                let mut now = vec![0; BLOCK];
                // Where it stands, or the file does not reach, nothing was written any more: its times must not move.
                if file.read_exact_at(&mut now, at).is_ok() && now != on_disk {
                    file.write_all_at(&on_disk, at).unwrap();
                }
            }
        }
        let _ = fs::remove_file(&self.log);
    }
}

fn place(prng: &mut Prng) -> String {
    match prng.below(4) {
        // Perhaps in a directory that was born here.
        0 => format!("{}/{}/{}", prng.pick(&DIRS), prng.pick(&NAMES), prng.pick(&NAMES)),
        _ => format!("{}/{}", prng.pick(&DIRS), prng.pick(&NAMES)),
    }
}

fn has_dir(path: &Path) -> bool {
    path.parent().is_some_and(Path::is_dir)
}

/// Content number 0 is zeros: what a block is that was never written.
fn block_bytes(content: u64) -> Vec<u8> {
    if content == 0 { vec![0; BLOCK] } else { content.to_le_bytes().repeat(BLOCK / 8) }
}

impl Disk {
    fn read(&mut self, line: &str) {
        let mut words = line.split(' ');
        let kind = words.next().unwrap();
        let words: Vec<&str> = words.collect();
        let path = |at: usize| PathBuf::from(words[at]);
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        match kind {
            "made" => self.names.push(Undo::Made(path(0))),
            "gone" => self.names.push(Undo::Gone { path: path(0), kept: path(1) }),
            "moved" => {
                let kept = (!words[2].is_empty()).then(|| path(2));
                self.names.push(Undo::Moved { from: path(0), to: path(1), kept });
            }
            "block" => {
                let held = self.blocks.entry((number(0), number(1)));
                held.or_insert_with(|| vec![number(2)]).push(number(3));
            }
            "back" => self.write_back(&mut Prng::new(number(0))),
            "sync" => *self = Disk::default(),
            other => panic!("{other}: no change is written down so"),
        }
    }

    fn write_back(&mut self, prng: &mut Prng) {
        let durable = prng.below(self.names.len() as u64 + 1) as usize;
        self.names.drain(..durable);
        self.blocks.retain(|_, held| {
            let on_disk = prng.below(held.len() as u64) as usize;
            held.drain(..on_disk);
            held.len() > 1
        });
    }
}

impl Undo {
    fn take_back(self) {
        match self {
            Undo::Made(path) if path.is_dir() => fs::remove_dir(path).unwrap(),
            Undo::Made(path) if path.exists() => fs::remove_file(path).unwrap(),
            Undo::Gone { path, kept } if !path.exists() => fs::hard_link(kept, path).unwrap(),
            Undo::Moved { from, to, kept } if !from.exists() => {
                fs::rename(&to, from).unwrap();
                if let Some(kept) = kept {
                    fs::hard_link(kept, to).unwrap();
                }
            }
            _ => {}
        }
    }
}

fn files_below(dir: &Path) -> BTreeMap<u64, PathBuf> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.insert(path.metadata().unwrap().ino(), path);
        }
    }
    files
}

/// The system goes down below a journal: its memory is gone, and the next boot has another name.
pub(crate) fn reboot(journal: &Path) {
    let _ = fs::remove_file(journal.join("memory"));
    let store = rusqlite::Connection::open(journal.join("state.db")).unwrap();
    // A life is named by its boot first (`src/journal/SCHEMA.md`).
    let changed = store
        .execute("UPDATE meta SET value = CAST(randomblob(16) || substr(value, 17) AS BLOB) WHERE key = 'life'", []);
    assert_eq!(changed.unwrap(), 1);
}

/// Takes of a journal's log what was not known to be durable: all of it, or each sector or not. Where that begins is in its
/// memory (`src/journal/MEMORY.md`), which is still there.
pub(crate) fn tear_log(journal: &Path, prng: &mut Prng) {
    let Ok(bytes) = fs::read(journal.join("memory")) else { return };
    let word = |at: usize| u64::from_le_bytes(bytes[4096 + at..][..8].try_into().unwrap());
    let bank = [64, 128][(word(32) & 1) as usize];
    tear_from(&journal.join("seg"), (word(bank + 8), word(bank + 16)), prng);
}

fn tear_from(segments: &Path, (segment, offset): (u64, u64), prng: &mut Prng) {
    let next = segments.join(format!("{:08}.seg", segment + 1));
    // The end of a segment is durable before the next one has its name.
    let (path, from) = match next.exists() {
        true => (next, HEADER_BYTES),
        false => (segments.join(format!("{segment:08}.seg")), offset),
    };
    let keep_percent = prng.pick(&[0, 50, 90, 100]);
    let Ok(mut bytes) = fs::read(&path) else { return };
    for sector in bytes[from as usize..].chunks_mut(SECTOR_BYTES) {
        if sector.iter().any(|byte| *byte != 0) && !prng.chance(keep_percent) {
            sector.fill(0);
        }
    }
    OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&bytes, 0).unwrap();
}
