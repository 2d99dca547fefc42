//! A replica that cannot be believed: its catalog is lost, or tree and catalog are from different times, or a sync failed.
//! The catalog is made anew from what the objects themselves bear, and the source compares the whole tree.
//!
//! `STATE/doubt` holds the reason from the moment it is known until the source has said that the comparison begins, so
//! that no crash in between makes the replica look sound.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::catalog::{Catalog, Cursor, Known, Row};
use super::objects::entry_names;
use super::park::{DISPLACED_XATTR, OID_XATTR, Park};
use super::replica::ReplicaError;
use super::roles::create_private;
use super::{Outcome, Trouble};
use crate::backing::Tree;
use crate::base::{Commit, Name, ObjectKey, Oid, Position, Spaces};
use crate::record::RESERVED_DIR;
use crate::sys::{self, Errno, FileFlags};

/// Longest reason that is kept.
const MOST_BYTES: usize = 512;

pub(super) struct DoubtFile {
    path: PathBuf,
    reason: Option<String>,
    /// What the tree had reached when the doubt came, where that is known.
    reached: Option<Position>,
}

impl DoubtFile {
    pub(super) fn open(state: &Path) -> Result<DoubtFile, ReplicaError> {
        let path = state.join("doubt");
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(DoubtFile { path, reason: None, reached: None });
            }
            Err(cause) => return Err(ReplicaError::Io { path, cause }),
        };
        let mut lines = text.lines();
        let reason = lines.next().unwrap_or_default().chars().take(MOST_BYTES).collect();
        Ok(DoubtFile { path, reason: Some(reason), reached: lines.next().and_then(read_position) })
    }

    pub(super) fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// What the tree had reached, where that is known: a source that never was there must not overwrite it unasked.
    pub(super) fn reached(&self) -> Option<Position> {
        self.reached
    }

    /// Writes the reason down; an earlier one stays.
    pub(super) fn cast(&mut self, reason: &str, reached: Option<Position>) -> Result<(), ReplicaError> {
        if self.reason.is_some() {
            return Ok(());
        }
        tracing::warn!(%reason, "this replica must be compared with its source");
        self.write(reason, reached)
    }

    /// What the tree had reached came out later than the doubt.
    pub(super) fn note_reached(&mut self, reached: Position) -> Result<(), ReplicaError> {
        match self.reason.clone().filter(|_| self.reached.is_none()) {
            Some(reason) => self.write(&reason, Some(reached)),
            None => Ok(()),
        }
    }

    /// A crash leaves the old file or the new one.
    fn write(&mut self, reason: &str, reached: Option<Position>) -> Result<(), ReplicaError> {
        let fresh = self.path.with_extension("new");
        let write = || {
            let mut file = create_private(&fresh)?;
            writeln!(file, "{}", reason.get(..MOST_BYTES).unwrap_or(reason).replace('\n', " "))?;
            if let Some(reached) = reached {
                writeln!(file, "{}", write_position(reached))?;
            }
            file.sync_all()?;
            fs::rename(&fresh, &self.path)?;
            self.sync_dir()
        };
        write().map_err(|cause| ReplicaError::Io { path: self.path.clone(), cause })?;
        self.reason = Some(reason.to_owned());
        self.reached = reached;
        Ok(())
    }

    /// The source compares everything now.
    pub(super) fn settle(&mut self) -> Result<(), ReplicaError> {
        self.reached = None;
        if self.reason.take().is_some() {
            let remove = || fs::remove_file(&self.path).and_then(|()| self.sync_dir());
            remove().map_err(|cause| ReplicaError::Io { path: self.path.clone(), cause })?;
        }
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
    }
}

fn write_position(position: Position) -> String {
    position.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read_position(text: &str) -> Option<Position> {
    let bytes: Option<Vec<u8>> =
        (0..text.len() / 2).map(|at| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()).collect();
    Some(Position::from_bytes(bytes?.try_into().ok()?))
}

/// Whether the tree's commit and the catalog's belong together: they are the same, or the catalog was about to follow.
pub(super) fn are_of_one_time(cursor: &Cursor, tree: sys::Result<Option<Commit>>) -> bool {
    tree.is_ok_and(|commit| commit.is_some_and(|commit| commit == cursor.commit || commit == cursor.next))
}

/// Throws the catalog at `path` away and makes one that knows every object of `tree` that bears an oid of `spaces`. Durable
/// when it returns.
pub(super) fn make_anew(path: &Path, tree: &Tree, park: &Park, spaces: &Spaces) -> Result<Catalog, ReplicaError> {
    for end in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(end);
        match fs::remove_file(&name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(ReplicaError::Io { path: name.into(), cause: error });
            }
            _ => {}
        }
    }
    let catalog = Catalog::create(path, spaces)?;
    let mut survey = Survey { tree, park, spaces, catalog };
    let io = |errno: Errno| ReplicaError::Io { path: path.to_owned(), cause: errno.into() };
    survey.walk().map_err(|trouble| match trouble {
        Trouble::Catalog(error) => error.into(),
        Trouble::Errno(errno) | Trouble::Object(errno) => io(errno),
    })?;
    let mut catalog = survey.catalog;
    park.set_commit(&tree.mutate(), catalog.cursor().next).map_err(io)?;
    tree.sync().map_err(io)?;
    catalog.commit(Position::START, None)?;
    Ok(catalog)
}

/// Looks at every object of a tree.
struct Survey<'a> {
    tree: &'a Tree,
    park: &'a Park,
    spaces: &'a Spaces,
    catalog: Catalog,
}

impl Survey<'_> {
    fn walk(&mut self) -> Outcome<()> {
        let mut todo = vec![self.tree.root_key()];
        let parked = sys::openat(self.park.fd(), c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
        self.parked(parked, &mut todo)?;
        while let Some(key) = todo.pop() {
            let dir = self.tree.open_key(key, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOATIME)?;
            let names = entry_names(sys::reopen(dir.as_fd(), libc::O_RDONLY | libc::O_DIRECTORY)?)?;
            for name in names {
                if key != self.tree.root_key() || name.as_bytes() != RESERVED_DIR {
                    self.look_at(dir.as_fd(), &name, &mut todo)?;
                }
            }
        }
        Ok(())
    }

    /// What was parked for another volume is set aside: nobody can say any more what it is.
    fn parked(&mut self, dir: OwnedFd, todo: &mut Vec<ObjectKey>) -> Outcome<()> {
        for name in entry_names(sys::reopen(dir.as_fd(), libc::O_RDONLY | libc::O_DIRECTORY)?)? {
            let oid = std::str::from_utf8(name.as_bytes()).ok().and_then(|text| text.parse::<Oid>().ok());
            if oid.is_none_or(|oid| !self.spaces.contains(oid.space)) {
                let orphans = self.park.orphans();
                match self.tree.mutate().rename(dir.as_fd(), &name, orphans, &name, libc::RENAME_NOREPLACE) {
                    Ok(()) | Err(Errno::EEXIST) => continue,
                    Err(errno) => return Err(errno.into()),
                }
            }
            self.look_at(dir.as_fd(), &name, todo)?;
        }
        Ok(())
    }

    fn look_at(&mut self, dir: BorrowedFd<'_>, name: &Name, todo: &mut Vec<ObjectKey>) -> Outcome<()> {
        let fd = self.tree.open_child(dir, name, libc::O_PATH)?;
        let found = self.tree.found(fd.as_fd())?;
        let kind = found.stat.mode & libc::S_IFMT;
        if kind == libc::S_IFDIR {
            todo.push(found.key);
        }
        let bytes = self.tree.xattr(fd.as_fd(), OID_XATTR)?;
        match bytes.and_then(|bytes| bytes.try_into().ok()).map(Oid::from_bytes) {
            None => Ok(()),
            Some(oid) if !self.spaces.contains(oid.space) => self.make_foreign(found.key, fd.as_fd()),
            // The first object that bears an oid is it; a copy of it counts as left over.
            Some(oid) if self.catalog.get(oid)?.is_some() => Ok(()),
            Some(oid) => Ok(self.catalog.put(oid, Row { key: found.key, kind, known: Known::Found })?),
        }
    }

    /// An oid of another instance of the volume, or of another volume, could be mistaken for one of ours: the object is
    /// matched by its name and content, or moved to the orphans, like any that was here before.
    fn make_foreign(&self, key: ObjectKey, fd: BorrowedFd<'_>) -> Outcome<()> {
        for xattr in [OID_XATTR, DISPLACED_XATTR] {
            match self.tree.mutate().remove_xattr(fd, xattr) {
                Err(Errno::EPERM) => self.remove_locked(key, xattr)?,
                Ok(()) | Err(Errno::ENODATA) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Of an immutable or append-only object.
    fn remove_locked(&self, key: ObjectKey, xattr: &CStr) -> Outcome<()> {
        let fd = self.tree.open_key(key, libc::O_RDONLY | libc::O_NONBLOCK)?;
        let flags = sys::file_flags_get(fd.as_fd())?;
        let lifted = FileFlags(flags.0 & !(FileFlags::IMMUTABLE | FileFlags::APPEND));
        self.tree.mutate().set_flags(fd.as_fd(), lifted)?;
        let removed = self.tree.mutate().remove_xattr(fd.as_fd(), xattr);
        self.tree.mutate().set_flags(fd.as_fd(), flags)?;
        match removed {
            Ok(()) | Err(Errno::ENODATA) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
