//! A directory as a replica: who it is, and where its catalog and inbox are.
//!
//! `ROOT/.dtfs/id` is a text file of three lines: `dtfs replica 1`, `replica UUID`, `volume UUID`. Catalog and inbox lie
//! in the host's state directory under the replica's id.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{Flock, FlockArg};

use super::Trouble;
use super::catalog::{Catalog, CatalogError, Known, Row};
use super::doubt::{self, DoubtFile};
use super::guard::{self, Guard, Guarding};
use super::objects::entry_names;
use super::park::{OID_XATTR, Park};
use super::roles::create_private;
use crate::backing::guard::{Cover, cover_at, open_covered};
use crate::backing::{BackingError, Tree};
use crate::base::{Ballast, Commit, Oid, Position, Spaces, StoredTimes, Timespec, VolumeUuid};
use crate::record::RESERVED_DIR;
use crate::sys::{self, Errno, TimeChange};

/// Whether files that are there already may be taken over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Adopt {
    /// A directory that is not empty is refused.
    No,
    /// Files are compared and kept where they are equal.
    Yes,
}

/// Why a directory cannot be a replica.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// It cannot be used as a tree.
    #[error(transparent)]
    Backing(#[from] BackingError),
    /// Its catalog cannot be used.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// It holds files and is no replica.
    #[error(
        "{path} is not empty and not a replica; choose an empty directory, or allow its files to be taken over with --adopt"
    )]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// It is a replica of something else.
    #[error("{path} is a replica of volume {found}, not of {wanted}")]
    OtherVolume {
        /// The directory.
        path: PathBuf,
        /// Whose replica it is.
        found: VolumeUuid,
        /// Who asked.
        wanted: VolumeUuid,
    },
    /// Its id file is not one.
    #[error("{path}: line {line} of the id file cannot be read")]
    Id {
        /// The id file.
        path: PathBuf,
        /// Which line.
        line: usize,
    },
    /// Another session has it.
    #[error("{path}: another session is using this replica")]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// A file of its own could not be read or written.
    #[error("{path}: {cause}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
}

/// A replica that this process works on. No other process can at the same time.
pub struct Replica {
    /// Its tree.
    pub(super) tree: Tree,
    /// Its catalog.
    pub(super) catalog: Catalog,
    /// Its park.
    pub(super) park: Park,
    /// Why tree, catalog and inbox cannot be believed, if so.
    pub(super) doubt: DoubtFile,
    pub(super) ballast: Ballast,
    spaces: Spaces,
    /// Where its state lies.
    pub(super) state: PathBuf,
    /// Unique id of this copy.
    pub id: VolumeUuid,
    /// Whether it was made by this call, and from what.
    pub origin: Origin,
    /// Directory of its inbox.
    pub inbox: PathBuf,
    pub(super) lock: ReplicaLock,
    /// What keeps others out.
    pub(super) guard: Guard,
}

/// What a replica says of itself to those who only look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct About {
    /// Unique id of the copy.
    pub id: VolumeUuid,
    /// Whose copy it is.
    pub volume: VolumeUuid,
    /// Everything up to here is durable in its tree.
    pub applied: Position,
    /// Whether its catalog is there: otherwise nothing has filled it yet, or it is lost.
    pub has_catalog: bool,
}

/// In the state directory of a replica that no source has filled yet.
const AWAITS: &str = "awaits-source";

/// Keeps every other process from a replica, as long as any part of this one may still write to it.
pub type ReplicaLock = Arc<Flock<OwnedFd>>;

/// Where a replica comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// It was a replica before.
    Existing,
    /// It was an empty directory.
    Empty,
    /// It was a directory with files, which are taken over.
    Adopted,
}

impl Replica {
    /// Opens `dir` as a replica of the volume, or makes it one; `spaces` are those of the source's objects. `states` is where this host keeps the state of replicas.
    ///
    /// # Errors
    /// [`ReplicaError`]; then nothing was changed, except that a missing directory whose parent exists was made.
    pub fn open(
        dir: &Path,
        states: &Path,
        (volume, spaces): (VolumeUuid, &Spaces),
        adopt: Adopt,
    ) -> Result<Replica, ReplicaError> {
        make_dir(dir)?;
        let dir = &resolved(dir);
        let tree = Tree::open_covered(dir)?;
        let lock = Arc::new(lock(dir, &tree)?);
        let (id, origin) = match read_id_in(tree.root(), dir)? {
            Some((_, found)) if found != volume => {
                return Err(ReplicaError::OtherVolume { path: dir.to_owned(), found, wanted: volume });
            }
            Some((id, _)) => (id, Origin::Existing),
            None => (VolumeUuid::random(), examine(&tree, dir, adopt)?),
        };
        let state = states.join(id.to_string());
        // Nobody has filled it yet.
        let awaits = state.join(AWAITS);
        let origin = if awaits.exists() { examine(&tree, dir, adopt)? } else { origin };
        let inbox = state.join("inbox");
        let io = |cause| ReplicaError::Io { path: inbox.clone(), cause };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&inbox).map_err(io)?;
        let park = Park::open(&tree).map_err(|errno| ReplicaError::Io { path: dir.to_owned(), cause: errno.into() })?;
        let mut doubt = DoubtFile::open(&state)?;
        let ballast = Ballast::take(&state).map_err(io)?;
        let path = state.join("catalog.db");
        let catalog = match origin {
            Origin::Existing => open_existing(&path, (&tree, &park), spaces, &mut doubt)?,
            // Whatever lies there from an attempt before is of no use.
            Origin::Empty | Origin::Adopted => doubt::make_anew(&path, &tree, &park, spaces)?,
        };
        if origin != Origin::Existing {
            super::roles::begin_converging(&state)?;
            guard::begin_closed(&state)?;
            write_id(&tree, dir, id, volume)?;
            remove_marker(&awaits)?;
        }
        let (guard, spaces) = (Guard::of(dir, &state), spaces.clone());
        let mut replica =
            Replica { tree, catalog, park, doubt, ballast, spaces, state, id, origin, inbox, lock, guard };
        replica.register_root()?;
        Ok(replica)
    }

    /// Makes the empty directory `dir` a copy of `volume` that no source has filled yet: only one of that volume may. Of one
    /// that is that already nothing is changed.
    ///
    /// # Errors
    /// [`ReplicaError`], as [`Replica::open`].
    pub fn await_source(dir: &Path, states: &Path, volume: VolumeUuid, guarding: Guarding) -> Result<(), ReplicaError> {
        make_dir(dir)?;
        let dir = &resolved(dir);
        let tree = Tree::open_covered(dir)?;
        let _lock = lock(dir, &tree)?;
        match read_id_in(tree.root(), dir)? {
            Some((_, found)) if found == volume => return Ok(()),
            Some((_, found)) => {
                return Err(ReplicaError::OtherVolume { path: dir.to_owned(), found, wanted: volume });
            }
            None => {}
        }
        examine(&tree, dir, Adopt::No)?;
        let id = VolumeUuid::random();
        let state = states.join(id.to_string());
        let io = |cause| ReplicaError::Io { path: state.clone(), cause };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&state).map_err(io)?;
        Park::open(&tree).map_err(|errno| ReplicaError::Io { path: dir.to_owned(), cause: errno.into() })?;
        // Before the id: with it alone the directory would count as a replica whose catalog is lost.
        create_private(&state.join(AWAITS)).and_then(|_| fs::File::open(&state)?.sync_all()).map_err(io)?;
        guard::begin_closed(&state)?;
        write_id(&tree, dir, id, volume)?;
        guard::guard_joined(dir, &tree, &state, guarding).map(drop)
    }

    /// What the directory `dir` is, when it is a replica; also while a session works on it.
    ///
    /// # Errors
    /// [`ReplicaError`] when its id file or its catalog cannot be read.
    pub fn describe(dir: &Path, states: &Path) -> Result<Option<About>, ReplicaError> {
        let Some((id, volume)) = read_id(&resolved(dir))? else { return Ok(None) };
        let catalog = states.join(id.to_string()).join("catalog.db");
        let has_catalog = catalog.exists();
        let applied = if has_catalog { Catalog::look_at(&catalog)? } else { Position::START };
        Ok(Some(About { id, volume, applied, has_catalog }))
    }

    /// How the tree's filesystem stores times that are set, found out on the park, and whether its mount moves them. When
    /// that cannot be found out, the first record will tell why.
    pub fn stored_times(&self) -> StoredTimes {
        const PROBE: Timespec = Timespec { sec: 1_000_000_000, nsec: 123_456_789 };
        let set = TimeChange::Set(PROBE);
        let kept = self.tree.mutate().set_times(self.park.fd(), set, set).and_then(|()| sys::fstat(self.park.fd()));
        let still = |flags| flags & (libc::ST_NOATIME | libc::ST_RDONLY) != 0;
        match (kept, self.tree.statfs()) {
            (Ok(stat), _) if stat.atime != PROBE => StoredTimes::Coarse,
            (_, Ok(stat)) if !still(stat.mount_flags) => StoredTimes::Moving,
            _ => StoredTimes::Exact,
        }
    }

    /// Its lock, for those who write to its inbox.
    pub fn lock(&self) -> ReplicaLock {
        self.lock.clone()
    }

    /// Everything up to here is durable in the tree.
    pub fn applied(&self) -> Position {
        self.catalog.cursor().applied
    }

    /// The state that tree and catalog were last durable in together.
    pub fn commit(&self) -> Commit {
        self.catalog.cursor().commit
    }

    /// Why nothing that this copy says of itself can be believed, if so: its whole tree must be compared.
    pub fn doubt(&self) -> Option<&str> {
        self.doubt.reason()
    }

    /// The position that the tree had reached when the doubt came, where that is known.
    pub fn reached(&self) -> Option<Position> {
        self.doubt.reached()
    }

    /// The doubt came with no position, and the inbox tells one. Durable when it returns.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn note_reached(&mut self, reached: Position) -> Result<(), ReplicaError> {
        self.doubt.note_reached(reached)
    }

    /// The position that the inbox was being begun anew at when the last process ended.
    pub fn jump(&self) -> Option<Position> {
        self.catalog.cursor().jump
    }

    /// The inbox was begun anew at `after`: now the cursor is there too.
    ///
    /// # Errors
    /// When tree or catalog cannot be made durable.
    pub fn finish_jump(&mut self, after: Position) -> Result<(), ReplicaError> {
        let io = |errno: Errno| ReplicaError::Io { path: self.inbox.clone(), cause: errno.into() };
        self.park.set_commit(&self.tree.mutate(), self.catalog.cursor().next).map_err(io)?;
        self.tree.sync().map_err(io)?;
        Ok(self.catalog.commit(after, None)?)
    }

    /// From now on, and after every restart, this copy is in doubt until its whole tree begins to be compared.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn cast_doubt(&mut self, reason: &str) -> Result<(), ReplicaError> {
        let reached = self.applied();
        self.doubt.cast(reason, Some(reached))?;
        let path = self.catalog.path().to_owned();
        self.catalog = doubt::make_anew(&path, &self.tree, &self.park, &self.spaces)?;
        self.register_root()
    }

    fn register_root(&mut self) -> Result<(), ReplicaError> {
        let io = |errno: Errno| ReplicaError::Io { path: self.inbox.clone(), cause: errno.into() };
        self.tree.mutate().set_xattr(self.tree.root(), OID_XATTR, &Oid::ROOT.to_bytes(), 0).map_err(io)?;
        let known = self.catalog.get(Oid::ROOT)?.map_or(Known::Placeholder, |row| row.known);
        let row = Row { key: self.tree.root_key(), kind: libc::S_IFDIR, known };
        Ok(self.catalog.put(Oid::ROOT, row)?)
    }
}

/// The catalog of a replica. One that is missing, damaged, or from another time than the tree is made anew from the tree.
fn open_existing(
    path: &Path,
    (tree, park): (&Tree, &Park),
    spaces: &Spaces,
    doubt: &mut DoubtFile,
) -> Result<Catalog, ReplicaError> {
    let (reason, reached) = match (doubt.reason(), path.exists()) {
        (Some(_), _) => return doubt::make_anew(path, tree, park, spaces),
        (None, false) => ("its catalog is missing".to_owned(), None),
        (None, true) => match Catalog::open(path).and_then(|catalog| inspect(catalog, tree, park, spaces)) {
            Ok(Ok(catalog)) => return Ok(catalog),
            Ok(Err((reason, reached))) => (reason.to_owned(), Some(reached)),
            Err(error) if error.is_damage() => (error.to_string(), None),
            Err(error) => return Err(error.into()),
        },
    };
    doubt.cast(&reason, reached)?;
    doubt::make_anew(path, tree, park, spaces)
}

/// The catalog, when it speaks of this tree as it is; else why it does not, and the position it has.
fn inspect(
    mut catalog: Catalog,
    tree: &Tree,
    park: &Park,
    spaces: &Spaces,
) -> Result<Result<Catalog, (&'static str, Position)>, CatalogError> {
    let (cursor, root) = (catalog.cursor(), catalog.get(Oid::ROOT)?);
    let reason = match () {
        () if !catalog.spaces().is_within(spaces) => "the source's volume lies on another filesystem than before",
        () if !doubt::are_of_one_time(&cursor, park.commit(tree)) => {
            "its tree and its catalog are from different times"
        }
        () if root.is_some_and(|row| row.key != tree.root_key()) => {
            "its tree was copied: the objects have other inode numbers than its catalog knows"
        }
        () => {
            if catalog.spaces() != spaces {
                catalog.set_spaces(spaces)?;
            }
            return Ok(Ok(catalog));
        }
    };
    Ok(Err((reason, cursor.applied)))
}

fn remove_marker(path: &Path) -> Result<(), ReplicaError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ReplicaError::Io { path: path.to_owned(), cause: error })
        }
        _ => Ok(()),
    }
}

fn make_dir(dir: &Path) -> Result<(), ReplicaError> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(ReplicaError::Io { path: dir.to_owned(), cause: error })
        }
        _ => Ok(()),
    }
}

/// One session at a time: the lock lives on the root directory itself, so that it holds whatever state directory is used.
/// It ends with its value, although a child of another thread may have the descriptor until it executes its program.
pub(super) fn lock(dir: &Path, tree: &Tree) -> Result<Flock<OwnedFd>, ReplicaError> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY;
    let fd = sys::openat(tree.root(), c".", flags, 0)
        .map_err(|errno| ReplicaError::Io { path: dir.to_owned(), cause: errno.into() })?;
    Flock::lock(fd, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => ReplicaError::Busy { path: dir.to_owned() },
        errno => ReplicaError::Io { path: dir.to_owned(), cause: errno.into() },
    })
}

fn examine(tree: &Tree, dir: &Path, adopt: Adopt) -> Result<Origin, ReplicaError> {
    let io = |errno: Errno| ReplicaError::Io { path: dir.to_owned(), cause: errno.into() };
    let root = sys::openat(tree.root(), c".", libc::O_RDONLY | libc::O_DIRECTORY, 0).map_err(io)?;
    let names = entry_names(root).map_err(|trouble| match trouble {
        Trouble::Errno(errno) | Trouble::Object(errno) => io(errno),
        Trouble::Catalog(error) => error.into(),
    })?;
    // `.dtfs` without an id file is left over from an attempt that was cut off.
    match (names.iter().any(|name| name.as_bytes() != RESERVED_DIR), adopt) {
        (false, _) => Ok(Origin::Empty),
        (true, Adopt::Yes) => Ok(Origin::Adopted),
        (true, Adopt::No) => Err(ReplicaError::NotEmpty { path: dir.to_owned() }),
    }
}

/// `dir` as the table of mounts has it. What is not there stays as it is, and is missed by whoever opens it.
pub(super) fn resolved(dir: &Path) -> PathBuf {
    dir.canonicalize().unwrap_or_else(|_| dir.to_owned())
}

/// `.dtfs` in `root`, never through a symlink that somebody put in its place.
fn own_dir(root: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let own = std::ffi::CString::new(RESERVED_DIR)?;
    Ok(sys::openat2_beneath(root, &own, libc::O_RDONLY | libc::O_DIRECTORY, 0)?)
}

/// Three short lines.
const MOST_ID_BYTES: u64 = 4096;

pub(super) fn id_path(dir: &Path) -> PathBuf {
    dir.join(std::ffi::OsStr::from_bytes(RESERVED_DIR)).join("id")
}

/// The replica's id and its volume, or `None` when there is no id file. `dir` is resolved; what keeps others from looking in is
/// no hindrance.
pub(super) fn read_id(dir: &Path) -> Result<Option<(VolumeUuid, VolumeUuid)>, ReplicaError> {
    let root = match cover_at(dir) {
        Ok(Cover::Closed) => open_covered(dir).map_err(io::Error::from),
        _ => fs::File::open(dir).map(OwnedFd::from),
    };
    match root {
        Ok(root) => read_id_in(root.as_fd(), dir),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(ReplicaError::Io { path: id_path(dir), cause }),
    }
}

/// As [`read_id`] of the directory `root`; `dir` is what it is called in messages.
fn read_id_in(root: BorrowedFd<'_>, dir: &Path) -> Result<Option<(VolumeUuid, VolumeUuid)>, ReplicaError> {
    let path = id_path(dir);
    let read = || {
        let own = own_dir(root)?;
        let file = fs::File::from(sys::openat2_beneath(own.as_fd(), c"id", libc::O_RDONLY, 0)?);
        io::read_to_string(io::Read::take(file, MOST_ID_BYTES))
    };
    let text = match read() {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(ReplicaError::Io { path, cause }),
    };
    let bad = |line| ReplicaError::Id { path: path.clone(), line };
    let mut lines = text.lines();
    if lines.next() != Some("dtfs replica 1") {
        return Err(bad(1));
    }
    let mut uuid = |key: &str, line| {
        let value = lines.next().and_then(|text| text.strip_prefix(key)).ok_or_else(|| bad(line))?;
        value.trim().parse::<VolumeUuid>().map_err(|()| bad(line))
    };
    Ok(Some((uuid("replica ", 2)?, uuid("volume ", 3)?)))
}

/// Written whole or not at all: a temporary file, synced, renamed, and the directory synced.
pub(super) fn write_id(tree: &Tree, dir: &Path, id: VolumeUuid, volume: VolumeUuid) -> Result<(), ReplicaError> {
    let path = id_path(dir);
    let write = || -> io::Result<()> {
        let own = own_dir(tree.root())?;
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
        let mut file = fs::File::from(sys::openat2_beneath(own.as_fd(), c"id.new", flags, 0o600)?);
        write!(file, "dtfs replica 1\nreplica {id}\nvolume {volume}\n")?;
        file.sync_all()?;
        sys::renameat2(own.as_fd(), c"id.new", own.as_fd(), c"id", 0)?;
        Ok(sys::fsync(own.as_fd())?)
    };
    write().map_err(|cause| ReplicaError::Io { path: path.clone(), cause })
}
