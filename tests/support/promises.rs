//! A program that believes what fsync says: it writes down, outside the tree, every promise that it was given, and after a
//! crash each must hold. A promise is a line of text, written after the call that gave it has returned.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use dtfs::sys;

use super::mapping;
use super::prng::Prng;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 32;
/// Smallest piece that a disk writes as a whole.
const SECTOR: usize = 512;
const NAMES: u64 = 8;
const MAX_APPEND: u64 = 9_000;
const MAX_REPLACED: u64 = 20_000;
const VERSION: &CStr = c"user.version";
/// More versions than one life writes: what a life before wrote and was not promised is always older.
const LIFE: u64 = 1 << 20;

/// What a promise is about; each has a number within its kind and a value that only grows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    /// `log` has at least this size.
    Log,
    /// This name holds this version or a later one, as a whole.
    Name,
    /// This block of `blocks` holds this version or a later one.
    Block,
    /// The same of `mapped`, which is written through a mapping.
    Mapped,
    /// `log` carries this version in an xattr, or a later one.
    Xattr,
    /// This link is another name of `log`.
    Link,
    /// This file is not there any more.
    Gone,
}

const KINDS: [(Kind, &str); 7] = [
    (Kind::Log, "log"),
    (Kind::Name, "name"),
    (Kind::Block, "block"),
    (Kind::Mapped, "mapped"),
    (Kind::Xattr, "xattr"),
    (Kind::Link, "link"),
    (Kind::Gone, "gone"),
];

/// The newest promise by kind and number.
type Given = BTreeMap<(Kind, u64), u64>;

fn parse(line: &str) -> Option<((Kind, u64), u64)> {
    let mut parts = line.split(' ');
    let word = parts.next()?;
    let kind = KINDS.iter().find(|(_, known)| *known == word)?.0;
    Some(((kind, parts.next()?.parse().ok()?), parts.next()?.parse().ok()?))
}

/// The promises in `book`. Its writer may have been killed within its last line.
fn read_book(book: &Path) -> Given {
    let text = fs::read_to_string(book).unwrap_or_default();
    let whole = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    whole.map(|line| parse(line).unwrap_or_else(|| panic!("a promise cannot be read: {line}"))).collect()
}

/// How many promises `book` holds.
pub(crate) fn count(book: &Path) -> u64 {
    fs::read(book).unwrap_or_default().iter().filter(|byte| **byte == b'\n').count() as u64
}

/// The program. It owns the directory it works in.
pub(crate) struct Keeper {
    dir: PathBuf,
    book: File,
    prng: Prng,
    given: Given,
    size: u64,
    version: u64,
}

impl Keeper {
    /// Goes on in `dir`, which is made when it is not there, with the promises of `book`.
    pub(crate) fn open(dir: &Path, book: &Path, seed: u64) -> io::Result<Keeper> {
        let given = read_book(book);
        let book = OpenOptions::new().append(true).create(true).open(book)?;
        let (dir, prng) = (dir.to_owned(), Prng::new(seed));
        let size = given.get(&(Kind::Log, 0)).copied().unwrap_or(0);
        let last = given.iter().filter(|((kind, _), _)| *kind != Kind::Log).map(|(_, value)| *value).max();
        let version = last.map_or(0, |last| last.next_multiple_of(LIFE) + LIFE);
        let keeper = Keeper { dir, book, prng, given, size, version };
        keeper.prepare()?;
        Ok(keeper)
    }

    fn prepare(&self) -> io::Result<()> {
        match fs::create_dir(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        for (name, len) in [("log", self.size), ("blocks", BLOCKS * BLOCK), ("mapped", BLOCKS * BLOCK)] {
            let file = File::options().write(true).create(true).truncate(false).open(self.dir.join(name))?;
            // What was appended and not promised may be half there.
            file.set_len(len)?;
            file.sync_all()?;
        }
        self.sync_dir()?;
        File::open(self.dir.parent().unwrap_or(&self.dir))?.sync_all()
    }

    /// Does one thing, and writes down what was promised.
    pub(crate) fn step(&mut self) -> io::Result<()> {
        self.version += 1;
        let (promise, value) = match self.prng.below(12) {
            0..=2 => self.append()?,
            3..=4 => self.replace()?,
            5..=7 => self.overwrite()?,
            8 => self.write_mapped()?,
            9 => self.set_xattr()?,
            10 => self.link()?,
            _ => self.remove()?,
        };
        self.given.insert(promise, value);
        let word = KINDS.iter().find(|(kind, _)| *kind == promise.0).map(|(_, word)| *word);
        // One write(2): a reader sees whole lines, but for the last one of a process that was killed.
        self.book.write_all(format!("{} {} {value}\n", word.unwrap_or_default(), promise.1).as_bytes())
    }

    fn append(&mut self) -> io::Result<((Kind, u64), u64)> {
        // Sometimes the promise is the write's own.
        let flags = self.prng.pick(&[0, 0, libc::O_DSYNC, libc::O_SYNC]);
        let file = File::options().append(true).custom_flags(flags).open(self.dir.join("log"))?;
        let data = log_bytes(self.size, self.prng.below(MAX_APPEND) + 1);
        (&file).write_all(&data)?;
        if flags == 0 {
            file.sync_data()?;
        }
        self.size += data.len() as u64;
        Ok(((Kind::Log, 0), self.size))
    }

    fn replace(&mut self) -> io::Result<((Kind, u64), u64)> {
        let which = self.prng.below(NAMES);
        let temporary = self.dir.join("temporary");
        let data = named_bytes(which, self.version, self.prng.below(MAX_REPLACED));
        let file = File::create(&temporary)?;
        (&file).write_all(&data)?;
        file.sync_all()?;
        fs::rename(&temporary, self.dir.join(format!("name-{which}")))?;
        self.sync_dir()?;
        Ok(((Kind::Name, which), self.version))
    }

    fn overwrite(&mut self) -> io::Result<((Kind, u64), u64)> {
        let which = self.prng.below(BLOCKS);
        let file = File::options().write(true).open(self.dir.join("blocks"))?;
        file.write_all_at(&block_bytes(self.version), which * BLOCK)?;
        file.sync_data()?;
        Ok(((Kind::Block, which), self.version))
    }

    fn write_mapped(&mut self) -> io::Result<((Kind, u64), u64)> {
        let which = self.prng.below(BLOCKS);
        let file = File::options().read(true).write(true).open(self.dir.join("mapped"))?;
        mapping::write(file.as_fd(), which * BLOCK, &block_bytes(self.version), BLOCKS * BLOCK, true)?;
        Ok(((Kind::Mapped, which), self.version))
    }

    fn set_xattr(&mut self) -> io::Result<((Kind, u64), u64)> {
        let file = File::options().write(true).open(self.dir.join("log"))?;
        sys::setxattr(file.as_fd(), VERSION, &self.version.to_le_bytes(), 0)?;
        file.sync_all()?;
        Ok(((Kind::Xattr, 0), self.version))
    }

    fn link(&mut self) -> io::Result<((Kind, u64), u64)> {
        let which = self.prng.below(NAMES);
        let path = self.dir.join(format!("link-{which}"));
        match fs::hard_link(self.dir.join("log"), path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => self.sync_dir()?,
        }
        Ok(((Kind::Link, which), self.version))
    }

    fn remove(&mut self) -> io::Result<((Kind, u64), u64)> {
        let path = self.dir.join(format!("gone-{}", self.version));
        let file = File::create(&path)?;
        (&file).write_all(b"not for long")?;
        file.sync_all()?;
        self.sync_dir()?;
        fs::remove_file(&path)?;
        self.sync_dir()?;
        Ok(((Kind::Gone, self.version), self.version))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

/// `len` bytes of the log from `offset` on.
fn log_bytes(offset: u64, len: u64) -> Vec<u8> {
    (offset..offset + len).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn named_bytes(which: u64, version: u64, len: u64) -> Vec<u8> {
    let head = [which, version, len].into_iter().flat_map(u64::to_le_bytes);
    head.chain(log_bytes(version, len)).collect()
}

fn block_bytes(version: u64) -> Vec<u8> {
    let sector = version.to_le_bytes().repeat(SECTOR / 8);
    sector.repeat(BLOCK as usize / SECTOR)
}

/// The promises in `book` that do not hold in `dir`, each in one line.
pub(crate) fn broken(dir: &Path, book: &Path) -> Vec<String> {
    let given = read_book(book);
    let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let tell = |(kind, which): (Kind, u64), value: u64, why: String| format!("{name}: {kind:?} {which} {value}: {why}");
    let mut found = Vec::new();
    for (promise, value) in given {
        if let Err(why) = holds(dir, promise, value) {
            found.push(tell(promise, value, why));
        }
    }
    found
}

fn holds(dir: &Path, (kind, which): (Kind, u64), value: u64) -> Result<(), String> {
    let numbered = |word: &str| dir.join(format!("{word}-{which}"));
    match kind {
        Kind::Log => log_holds(&dir.join("log"), value),
        Kind::Name => name_holds(&numbered("name"), which, value),
        Kind::Block => block_holds(&dir.join("blocks"), which, value),
        Kind::Mapped => block_holds(&dir.join("mapped"), which, value),
        Kind::Xattr => xattr_holds(&dir.join("log"), value),
        Kind::Link => {
            let inode = |path: &Path| fs::metadata(path).map(|stat| stat.ino()).map_err(|error| error.to_string());
            let same = inode(&numbered("link"))? == inode(&dir.join("log"))?;
            same.then_some(()).ok_or("another file".to_owned())
        }
        Kind::Gone => match fs::symlink_metadata(numbered("gone")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => Err(format!("{other:?}")),
        },
    }
}

fn log_holds(path: &Path, size: u64) -> Result<(), String> {
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let wanted = log_bytes(0, size);
    let len = bytes.len();
    let promised = bytes.get(..wanted.len()).ok_or_else(|| format!("only {len} bytes"))?;
    match promised.iter().zip(&wanted).position(|(found, wanted)| found != wanted) {
        None => Ok(()),
        Some(at) => Err(format!("byte {at} is wrong")),
    }
}

fn name_holds(path: &Path, which: u64, value: u64) -> Result<(), String> {
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let word = |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let (Some(version), Some(len)) = (word(8), word(16)) else { return Err("no head".to_owned()) };
    match version >= value {
        false => Err(format!("holds version {version}")),
        true if len > MAX_REPLACED || bytes != named_bytes(which, version, len) => {
            Err(format!("holds version {version} in part, {} bytes", bytes.len()))
        }
        true => Ok(()),
    }
}

fn block_holds(path: &Path, which: u64, value: u64) -> Result<(), String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mut block = vec![0; BLOCK as usize];
    file.read_exact_at(&mut block, which * BLOCK).map_err(|error| error.to_string())?;
    for sector in block.chunks(SECTOR) {
        let version = sector.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        if version < value || sector != version.to_le_bytes().repeat(SECTOR / 8) {
            return Err(format!("a sector holds version {version}"));
        }
    }
    Ok(())
}

fn xattr_holds(path: &Path, value: u64) -> Result<(), String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let bytes = sys::getxattr(file.as_fd(), VERSION).map_err(|errno| errno.to_string())?;
    let version = bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    if version >= value { Ok(()) } else { Err(format!("holds version {version}")) }
}
