//! A directory as a replica: who it is, and where its catalog and inbox are.
//!
//! `ROOT/.dtfs/id` is a text file of three lines: `dtfs replica 1`, `replica UUID`, `volume UUID`. Catalog and inbox lie
//! in the host's state directory under the replica's id.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::catalog::{Catalog, CatalogError, Known, Row};
use super::park::{OID_XATTR, Park};
use crate::backing::{BackingError, Tree};
use crate::base::{Oid, StoredTimes, Tid, Timespec, VolumeUuid};
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
    /// Unique id of this copy.
    pub id: VolumeUuid,
    /// Whether it was made by this call, and from what.
    pub origin: Origin,
    /// Directory of its inbox.
    pub inbox: PathBuf,
    _lock: OwnedFd,
}

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
    /// Opens `dir` as a replica of `volume`, or makes it one. `states` is where this host keeps the state of replicas.
    ///
    /// # Errors
    /// [`ReplicaError`]; then nothing was changed, except that a missing directory whose parent exists was made.
    pub fn open(dir: &Path, states: &Path, volume: VolumeUuid, adopt: Adopt) -> Result<Replica, ReplicaError> {
        make_dir(dir)?;
        let tree = Tree::open(dir)?;
        let lock = lock(dir, &tree)?;
        let (id, origin) = match read_id(dir)? {
            Some((_, found)) if found != volume => {
                return Err(ReplicaError::OtherVolume { path: dir.to_owned(), found, wanted: volume });
            }
            Some((id, _)) => (id, Origin::Existing),
            None => (VolumeUuid::random(), examine(dir, adopt)?),
        };
        let state = states.join(id.to_string());
        let inbox = state.join("inbox");
        let io = |cause| ReplicaError::Io { path: inbox.clone(), cause };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&inbox).map_err(io)?;
        let mut catalog = Catalog::open(&state.join("catalog.db"))?;
        let park = Park::open(&tree).map_err(|errno| ReplicaError::Io { path: dir.to_owned(), cause: errno.into() })?;
        if origin != Origin::Existing {
            write_id(dir, id, volume)?;
        }
        register_root(&tree, &mut catalog).map_err(|errno| match errno {
            RootError::Errno(errno) => ReplicaError::Io { path: dir.to_owned(), cause: errno.into() },
            RootError::Catalog(error) => ReplicaError::Catalog(error),
        })?;
        Ok(Replica { tree, catalog, park, id, origin, inbox, _lock: lock })
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

    /// TID of the cursor: everything up to here is durable in the tree.
    pub fn applied(&self) -> Tid {
        self.catalog.applied()
    }
}

enum RootError {
    Errno(Errno),
    Catalog(CatalogError),
}

fn register_root(tree: &Tree, catalog: &mut Catalog) -> Result<(), RootError> {
    tree.mutate().set_xattr(tree.root(), OID_XATTR, &Oid::ROOT.to_bytes(), 0).map_err(RootError::Errno)?;
    let row = catalog.get(Oid::ROOT).map_err(RootError::Catalog)?;
    let known = row.map_or(Known::Placeholder, |row| row.known);
    let row = Row { key: tree.root_key(), kind: libc::S_IFDIR, known };
    catalog.put(Oid::ROOT, row).map_err(RootError::Catalog)
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
fn lock(dir: &Path, tree: &Tree) -> Result<OwnedFd, ReplicaError> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY;
    let fd = sys::openat(tree.root(), c".", flags, 0)
        .map_err(|errno| ReplicaError::Io { path: dir.to_owned(), cause: errno.into() })?;
    match sys::flock_exclusive(fd.as_fd()) {
        Ok(()) => Ok(fd),
        Err(Errno::EWOULDBLOCK) => Err(ReplicaError::Busy { path: dir.to_owned() }),
        Err(errno) => Err(ReplicaError::Io { path: dir.to_owned(), cause: errno.into() }),
    }
}

fn examine(dir: &Path, adopt: Adopt) -> Result<Origin, ReplicaError> {
    let io = |cause| ReplicaError::Io { path: dir.to_owned(), cause };
    let mut entries = fs::read_dir(dir).map_err(io)?;
    match (entries.next(), adopt) {
        (None, _) => Ok(Origin::Empty),
        (Some(_), Adopt::Yes) => Ok(Origin::Adopted),
        (Some(_), Adopt::No) => Err(ReplicaError::NotEmpty { path: dir.to_owned() }),
    }
}

fn id_path(dir: &Path) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    dir.join(std::ffi::OsStr::from_bytes(RESERVED_DIR)).join("id")
}

/// The replica's id and its volume, or `None` when there is no id file.
fn read_id(dir: &Path) -> Result<Option<(VolumeUuid, VolumeUuid)>, ReplicaError> {
    let path = id_path(dir);
    let text = match fs::read_to_string(&path) {
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
fn write_id(dir: &Path, id: VolumeUuid, volume: VolumeUuid) -> Result<(), ReplicaError> {
    let path = id_path(dir);
    let temporary = path.with_extension("new");
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        write!(file, "dtfs replica 1\nreplica {id}\nvolume {volume}\n")?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        let parent = fs::File::open(path.parent().unwrap_or(dir))?;
        parent.sync_all()
    };
    write().map_err(|cause| ReplicaError::Io { path: path.clone(), cause })
}
