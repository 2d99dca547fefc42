//! A copy that becomes a master, and a master that becomes a copy.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::catalog::{Catalog, Known, Row};
use super::doubt::DoubtFile;
use super::guard::{Guarding, guard_joined};
use super::keep::{copy, place_below};
use super::objects::entry_names;
use super::park::{DISPLACED_XATTR, OID_XATTR, Park};
use super::replica::{self, Origin, Replica, ReplicaError, ReplicaLock};
use super::{Adopt, Applier, ApplyError, Outcome, Trouble, park};
use crate::backing::guard::remove_cover;
use crate::backing::{Found, Tree};
use crate::base::{History, Name, ObjectKey, Oid, Position, Spaces, Tid, VolumeUuid, faults};
use crate::record::RESERVED_DIR;
use crate::sys::{self, Errno, FileFlags};

/// While it is there the source has rows of work for this copy: its tree is no past state of the source.
const CONVERGING: &str = "converging";
/// While it is there the source has not heard that this copy was a source itself.
const REJOINED: &str = "rejoined";
/// The last TID that was ever performed, while what was received waits in the inbox. Without it everything may have been.
const REACH: &str = "reach";
/// What the source said last of what it knew to be in doubt, when that was good here.
const MARK: &str = "mark";
/// The source's history, as it was told last.
const HISTORY: &str = "history";

/// What becomes of objects without a name when a copy becomes a master.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leftovers {
    /// They had lost their last name at the source: they end, as at its crash.
    End,
    /// The tree is no past state of the source, and they may be all that is left of something: they become orphans.
    Keep,
}

impl Replica {
    /// Opens the replica `dir` as what it says of itself; `None` when it is none.
    ///
    /// # Errors
    /// As [`Replica::open`].
    pub fn open_as_it_is(dir: &Path, states: &Path) -> Result<Option<Replica>, ReplicaError> {
        let Some((id, volume)) = replica::read_id(&replica::resolved(dir))? else { return Ok(None) };
        let catalog = states.join(id.to_string()).join("catalog.db");
        let spaces = if catalog.exists() { Catalog::look_at_spaces(&catalog)? } else { Spaces::default() };
        Replica::open(dir, states, (volume, &spaces), Adopt::No).map(Some)
    }

    /// Whose copy it is, and where its epochs begin, as far as the source told.
    pub fn history(&self, volume: VolumeUuid) -> History {
        let stored = fs::read(self.state.join(HISTORY)).ok().and_then(|bytes| History::from_bytes(&bytes));
        stored.filter(|history| history.volume == volume).unwrap_or(History { volume, epochs: Vec::new() })
    }

    /// Remembers what the source says of its history.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn remember_history(&self, history: &History) -> Result<(), ReplicaError> {
        write_history(&self.state, history)
    }

    /// Whether its source still had work for it, or has not said.
    pub fn is_converging(&self) -> bool {
        self.origin != Origin::Existing || self.state.join(CONVERGING).exists()
    }

    /// Whether it was a source of this volume, and its new source has not heard of that.
    pub fn has_rejoined(&self) -> bool {
        self.origin == Origin::Existing && self.state.join(REJOINED).exists()
    }

    /// The last TID that can have been performed, when that is known: everything received may have been otherwise.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn reach(&self) -> Result<Option<Tid>, ReplicaError> {
        let path = self.state.join(REACH);
        match fs::read(&path) {
            Ok(bytes) => Ok(bytes.try_into().ok().map(|bytes| Tid(u64::from_le_bytes(bytes)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(ReplicaError::Io { path, cause }),
        }
    }

    /// Whose objects the catalog knows.
    pub fn spaces(&self) -> &Spaces {
        self.catalog.spaces()
    }

    /// Directory of its state.
    pub fn state_dir(&self) -> &Path {
        &self.state
    }
}

impl Applier {
    /// The source went on in another epoch, whose first place is `after`; remembered with those it told of before.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn note_epoch(&self, after: Position) -> Result<(), ApplyError> {
        let Some(mut history) = told_history(&self.state) else { return Ok(()) };
        if history.epochs.iter().any(|epoch| epoch.epoch == after.epoch) {
            return Ok(());
        }
        history.epochs.push(after);
        Ok(write_history(&self.state, &History::new(history.volume, history.epochs))?)
    }

    /// Remembers the mark that the source told.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn set_mark(&self, mark: u64) -> Result<(), ApplyError> {
        match told_mark(&self.state) == mark {
            true => Ok(()),
            false => Ok(write_whole(&self.state, MARK, &mark.to_le_bytes())?),
        }
    }

    /// The source has, or has no more, rows of work for this copy. Remembered also after a power loss.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn set_converging(&self, converging: bool) -> Result<(), ApplyError> {
        Ok(set_marker(&self.state, CONVERGING, converging)?)
    }

    /// The source has heard that this copy was a source itself.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn settle_rejoined(&self) -> Result<(), ApplyError> {
        Ok(set_marker(&self.state, REJOINED, false)?)
    }

    /// Records up to `reach` may be in the tree from now on, and none behind it. Durable when it returns.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn raise_reach(&mut self, reach: Tid) -> Result<(), ApplyError> {
        if self.reach.is_none_or(|known| known < reach) {
            write_whole(&self.state, REACH, &reach.0.to_le_bytes())?;
            self.reach = Some(reach);
        }
        Ok(())
    }

    /// Everything that is received may be in the tree from now on.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn forget_reach(&mut self) -> Result<(), ApplyError> {
        self.reach = None;
        Ok(set_marker(&self.state, REACH, false)?)
    }

    /// How many objects are not all here, as far as this side knows.
    ///
    /// # Errors
    /// [`ApplyError::Catalog`].
    pub fn count_incomplete(&mut self) -> Result<usize, ApplyError> {
        Ok(self.catalog.incomplete()?.len() + self.missing.len())
    }

    /// The objects of the tree by oid, without the root, when nothing is to be performed on it any more. The park is empty
    /// then, and everything is durable.
    ///
    /// # Errors
    /// [`ApplyError`]; what was done can be done again.
    pub fn into_objects(mut self, leftovers: Leftovers) -> Result<Vec<(Oid, ObjectKey)>, ApplyError> {
        let at = self.applied();
        self.clear_park(leftovers).map_err(|cause| self.explain("promote", Oid::ROOT, at.tid, cause))?;
        self.make_durable(at)?;
        let mut objects = self.catalog.objects()?;
        objects.retain(|(oid, _)| *oid != Oid::ROOT);
        Ok(objects)
    }

    fn clear_park(&mut self, leftovers: Leftovers) -> Outcome<()> {
        for oid in self.park.oids()? {
            match leftovers {
                Leftovers::End => self.drop_object(oid)?,
                Leftovers::Keep => {
                    let entry = park::entry(oid)?;
                    let (from, to) = (self.park.dir(), self.park.orphans());
                    match self.tree.mutate().rename(from.as_fd(), &entry, to, &entry, libc::RENAME_NOREPLACE) {
                        Ok(()) | Err(Errno::EEXIST) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                    self.catalog.remove(oid)?;
                }
            }
        }
        Ok(())
    }
}

/// `dir` is no copy any more: a master's journal speaks of its tree from now on, and others may change it. Its state directory
/// goes too.
///
/// # Errors
/// As umount2(2), unlink(2) and fsync(2).
pub fn leave(dir: &Path, state: &Path) -> io::Result<()> {
    let dir = &replica::resolved(dir);
    // While the id is there, whoever is killed here can be asked again.
    remove_cover(dir)?;
    match fs::remove_file(replica::id_path(dir)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::open(replica::id_path(dir).parent().unwrap_or(dir))?.sync_all()?;
    match fs::remove_dir_all(state) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What a master was when it becomes a copy.
pub struct Joining<'a> {
    /// The volume and its epochs.
    pub history: &'a History,
    /// Whose objects the tree has.
    pub spaces: &'a Spaces,
    /// The last place that is shared with the history which is followed from now on.
    pub at: Position,
    /// What an object of the tree is called.
    pub oid_of: &'a dyn Fn(ObjectKey) -> Oid,
    /// The objects that may differ from what they were there; `None` when that is not known.
    pub own: Option<&'a HashSet<Oid>>,
    /// The directory in `.dtfs` that keeps what this side has of those; `None` gives it up.
    pub keep: Option<&'a str>,
}

/// A master that is all but a copy.
pub struct Joined {
    /// Where its inbox is to be.
    pub inbox: PathBuf,
    /// Objects in the tree.
    pub objects: u64,
    /// Objects that were copied to be kept.
    pub kept: u64,
    id: VolumeUuid,
    volume: VolumeUuid,
    dir: PathBuf,
    tree: Tree,
    state: PathBuf,
    _lock: ReplicaLock,
}

impl Joined {
    /// From here on the directory is a copy, and nobody else changes it. It is not closed: others have seen it all the time.
    ///
    /// # Errors
    /// When the id cannot be written.
    pub fn seal(self, guarding: Guarding) -> Result<VolumeUuid, ReplicaError> {
        replica::write_id(&self.tree, &self.dir, self.id, self.volume)?;
        guard_joined(&self.dir, &self.tree, &self.state, guarding)?;
        Ok(self.id)
    }
}

/// Makes the tree of a master ready to be a copy: each object bears its oid, the catalog knows all of them, and those that
/// may differ as ones to be asked for. Nothing counts before [`Joined::seal`].
///
/// # Errors
/// [`ReplicaError`]; `Busy` when a session is using the directory.
pub fn join(dir: &Path, states: &Path, joining: &Joining<'_>) -> Result<Joined, ReplicaError> {
    let dir = &replica::resolved(dir);
    let tree = Tree::open_covered(dir)?;
    let lock = Arc::new(replica::lock(dir, &tree)?);
    let id = VolumeUuid::random();
    let state = states.join(id.to_string());
    let inbox = state.join("inbox");
    let io = |cause| ReplicaError::Io { path: state.clone(), cause };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&inbox).map_err(io)?;
    let errno = |errno: Errno| ReplicaError::Io { path: dir.to_owned(), cause: errno.into() };
    let park = Park::open(&tree).map_err(errno)?;
    let catalog = Catalog::create(&state.join("catalog.db"), joining.spaces)?;
    let keep = joining.keep.map(|name| {
        let name = Name::new(name.as_bytes()).map_err(|_| Errno::EINVAL)?;
        park::ensure_dir(&tree, park.own(), &name)
    });
    let keep = keep.transpose().map_err(errno)?;
    let mut walk = Walk { tree: &tree, joining, keep, park: &park, catalog, objects: 0, kept: 0 };
    walk.run().map_err(|trouble| match trouble {
        Trouble::Catalog(error) => error.into(),
        Trouble::Errno(cause) | Trouble::Object(cause) => errno(cause),
    })?;
    let Walk { mut catalog, objects, kept, .. } = walk;
    faults::point("join.walked").map_err(errno)?;
    park.set_commit(&tree.mutate(), catalog.cursor().next).map_err(errno)?;
    tree.sync().map_err(errno)?;
    catalog.commit(joining.at, None)?;
    write_history(&state, joining.history)?;
    set_marker(&state, CONVERGING, true)?;
    set_marker(&state, REJOINED, true)?;
    if joining.own.is_none() {
        let reason = "it was a source, and it is not known what only it has";
        DoubtFile::open(&state)?.cast(reason, Some(joining.at))?;
    }
    let volume = joining.history.volume;
    Ok(Joined { inbox, objects, kept, id, volume, dir: dir.to_owned(), tree, state, _lock: lock })
}

/// Looks at every object of a tree.
struct Walk<'a> {
    tree: &'a Tree,
    joining: &'a Joining<'a>,
    /// Where to keep what may differ.
    keep: Option<OwnedFd>,
    park: &'a Park,
    catalog: Catalog,
    objects: u64,
    kept: u64,
}

impl Walk<'_> {
    fn run(&mut self) -> Outcome<()> {
        let root = self.tree.root_key();
        self.tree.mutate().set_xattr(self.tree.root(), OID_XATTR, &Oid::ROOT.to_bytes(), 0)?;
        self.enter(Oid::ROOT, root, libc::S_IFDIR)?;
        let mut todo = vec![(root, PathBuf::new())];
        while let Some((key, path)) = todo.pop() {
            let dir = self.tree.open_key(key, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOATIME)?;
            let names = entry_names(sys::reopen(dir.as_fd(), libc::O_RDONLY | libc::O_DIRECTORY)?)?;
            for name in names.iter().filter(|name| key != root || name.as_bytes() != RESERVED_DIR) {
                let path = path.join(std::ffi::OsStr::from_bytes(name.as_bytes()));
                let fd = self.tree.open_child(dir.as_fd(), name, libc::O_PATH)?;
                let found = self.tree.found(fd.as_fd())?;
                let kind = found.stat.mode & libc::S_IFMT;
                if kind == libc::S_IFDIR {
                    todo.push((found.key, path.clone()));
                }
                let oid = (self.joining.oid_of)(found.key);
                self.name(found.key, fd.as_fd(), oid)?;
                self.enter(oid, found.key, kind)?;
                if kind != libc::S_IFDIR && self.differs(oid) {
                    self.keep(&path, &found, (dir.as_fd(), name))?;
                }
            }
        }
        Ok(())
    }

    fn differs(&self, oid: Oid) -> bool {
        self.joining.own.is_some_and(|own| own.contains(&oid))
    }

    fn enter(&mut self, oid: Oid, key: ObjectKey, kind: u32) -> Outcome<()> {
        self.objects += 1;
        let known = match (self.joining.own, self.differs(oid)) {
            (None, _) => Known::Found,
            (Some(_), true) => Known::Partial,
            (Some(_), false) => Known::Complete,
        };
        Ok(self.catalog.put(oid, Row { key, kind, known })?)
    }

    /// Gives the object its oid, if it does not bear it.
    fn name(&self, key: ObjectKey, fd: BorrowedFd<'_>, oid: Oid) -> Outcome<()> {
        if self.tree.xattr(fd, OID_XATTR)?.as_deref() == Some(&oid.to_bytes()) {
            return Ok(());
        }
        let tree = self.tree.mutate();
        match tree.remove_xattr(fd, DISPLACED_XATTR) {
            Ok(()) | Err(Errno::ENODATA | Errno::EPERM) => {}
            Err(errno) => return Err(errno.into()),
        }
        match tree.set_xattr(fd, OID_XATTR, &oid.to_bytes(), 0) {
            // Immutable or append-only.
            Err(Errno::EPERM) => {
                let fd = self.tree.open_key(key, libc::O_RDONLY | libc::O_NONBLOCK)?;
                let flags = sys::file_flags_get(fd.as_fd())?;
                let lifted = FileFlags(flags.0 & !(FileFlags::IMMUTABLE | FileFlags::APPEND));
                tree.set_flags(fd.as_fd(), lifted)?;
                let done = tree.set_xattr(fd.as_fd(), OID_XATTR, &oid.to_bytes(), 0);
                tree.set_flags(fd.as_fd(), flags)?;
                Ok(done?)
            }
            done => Ok(done?),
        }
    }

    /// Copies what this side has, before the history that is followed overwrites it.
    fn keep(&mut self, path: &Path, found: &Found, (dir, name): (BorrowedFd<'_>, &Name)) -> Outcome<()> {
        let Some(keep) = &self.keep else { return Ok(()) };
        let kind = found.stat.mode & libc::S_IFMT;
        if kind != libc::S_IFREG && kind != libc::S_IFLNK {
            tracing::warn!(path = %path.display(), kind, "has no content to keep");
            return Ok(());
        }
        let (to, to_name) = place_below(self.tree, keep.as_fd(), path.as_os_str().as_bytes())?;
        let done = if kind == libc::S_IFREG {
            let from = self.tree.open_key(found.key, libc::O_RDONLY | libc::O_NOATIME)?;
            copy(self.tree, from.as_fd(), self.park.own(), (to.as_fd(), &to_name))
        } else {
            let text = CString::new(sys::readlinkat(dir, name.as_cstr())?).map_err(|_| Errno::EINVAL)?;
            self.tree.mutate().symlink(&text, to.as_fd(), &to_name).map_err(Trouble::from)
        };
        match done {
            // From an attempt before that was cut off.
            Ok(()) | Err(Trouble::Errno(Errno::EEXIST)) => self.kept += 1,
            Err(trouble) => return Err(trouble),
        }
        Ok(())
    }
}

/// Whose copy the one in `state` is, and where its epochs begin, as far as its source told.
pub fn told_history(state: &Path) -> Option<History> {
    History::from_bytes(&fs::read(state.join(HISTORY)).ok()?)
}

/// The mark that the copy in `state` was told last; 0 while anything stands against it.
pub fn told_mark(state: &Path) -> u64 {
    let bytes = fs::read(state.join(MARK)).ok().filter(|_| !state.join(CONVERGING).exists());
    bytes.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn write_history(state: &Path, history: &History) -> Result<(), ReplicaError> {
    let bytes = history.to_bytes();
    match fs::read(state.join(HISTORY)).is_ok_and(|stored| stored == bytes) {
        true => Ok(()),
        false => write_whole(state, HISTORY, &bytes),
    }
}

/// Writes the file `name` in `state`, whole or not at all; durable when it returns.
pub(super) fn write_whole(state: &Path, name: &str, bytes: &[u8]) -> Result<(), ReplicaError> {
    let path = state.join(name);
    let write = || {
        let fresh = path.with_extension("new");
        let mut file = create_private(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, &path)?;
        File::open(state)?.sync_all()
    };
    write().map_err(|cause| ReplicaError::Io { path: path.clone(), cause })
}

/// Puts the file `name` into `state`, or takes it away; durable when it returns.
pub(super) fn set_marker(state: &Path, name: &str, there: bool) -> Result<(), ReplicaError> {
    let path = state.join(name);
    if path.exists() == there {
        return Ok(());
    }
    let change = || {
        match there {
            true => drop(create_private(&path)?),
            false => fs::remove_file(&path)?,
        }
        File::open(state)?.sync_all()
    };
    change().map_err(|cause| ReplicaError::Io { path: path.clone(), cause })
}

/// A copy that was just begun lacks everything.
pub(super) fn begin_converging(state: &Path) -> Result<(), ReplicaError> {
    set_marker(state, CONVERGING, true)
}

/// A file that is empty and root's alone, whatever this process's umask lets through.
pub(super) fn create_private(path: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}
