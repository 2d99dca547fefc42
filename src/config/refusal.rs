//! Why a directory may not become a volume or a target.

use std::io;
use std::path::PathBuf;

use super::{ConfigError, VolumeName};

/// Whether the operator mistyped something or asked for something harmful.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefusalKind {
    /// The path or a file does not say what was meant (exit code 2).
    Usage,
    /// Doing it would endanger data (exit code 7).
    Safety,
}

/// Why a directory is refused. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There is nothing at the path.
    #[error("{} does not exist", .0.display())]
    Missing(PathBuf),
    /// It is a file or something else.
    #[error("{} is not a directory", .0.display())]
    NotDirectory(PathBuf),
    /// It does not begin with `/` or holds `..`.
    #[error("{} is not an absolute path without \"..\"", .0.display())]
    NotAbsolute(PathBuf),
    /// It could not be written to the files and the socket.
    #[error("the path {} is not UTF-8", .0.display())]
    NotUtf8(PathBuf),
    /// The system does not let us look at it.
    #[error("cannot look at {}: {source}", path.display())]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is `/`.
    #[error("/ cannot be replicated as a whole")]
    Root {
        /// The directories right below it that could be chosen.
        candidates: Vec<PathBuf>,
    },
    /// A volume is there already.
    #[error("{} is already the volume {volume}", path.display())]
    Duplicate {
        /// The path.
        path: PathBuf,
        /// The volume that is there.
        volume: VolumeName,
    },
    /// It lies in a volume, or a volume lies in it.
    #[error("{} {relation} {} of the volume {volume}", path.display(), other.display())]
    Nested {
        /// The path.
        path: PathBuf,
        /// How the two lie to each other.
        relation: Relation,
        /// The other directory.
        other: PathBuf,
        /// The volume that the other directory is the tree, target or store of.
        volume: VolumeName,
    },
    /// A dtfs is mounted there that these files do not know.
    #[error("{} lies on a dtfs that is mounted at {} already", path.display(), mount_point.display())]
    MountedAlready {
        /// The path.
        path: PathBuf,
        /// Where the dtfs is mounted.
        mount_point: PathBuf,
    },
    /// It holds no files that could be replicated.
    #[error("{} lies on {kind}, which holds no files that could be replicated", path.display())]
    PseudoFileSystem {
        /// The path.
        path: PathBuf,
        /// The filesystem's type.
        kind: String,
    },
    /// It holds, or lies in, a directory of dtfs itself.
    #[error("{} {relation} dtfs's own directory {}", path.display(), own.display())]
    OwnState {
        /// The path.
        path: PathBuf,
        /// How the two lie to each other.
        relation: Relation,
        /// The directory of dtfs.
        own: PathBuf,
    },
    /// The files that would tell whether it is safe cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// How one directory lies to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relation {
    /// They are the same.
    Is,
    /// The first lies below the second.
    LiesIn,
    /// The second lies below the first.
    Holds,
}

impl std::fmt::Display for Relation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Relation::Is => "is",
            Relation::LiesIn => "lies in",
            Relation::Holds => "holds",
        })
    }
}

impl Refusal {
    /// Mistyped or harmful.
    pub fn kind(&self) -> RefusalKind {
        match self {
            Refusal::Missing(_)
            | Refusal::NotDirectory(_)
            | Refusal::NotAbsolute(_)
            | Refusal::NotUtf8(_)
            | Refusal::Unreadable { .. }
            | Refusal::Config(_) => RefusalKind::Usage,
            Refusal::Root { .. }
            | Refusal::Duplicate { .. }
            | Refusal::Nested { .. }
            | Refusal::MountedAlready { .. }
            | Refusal::PseudoFileSystem { .. }
            | Refusal::OwnState { .. } => RefusalKind::Safety,
        }
    }

    /// What to do next.
    pub fn remedy(&self) -> String {
        match self {
            Refusal::Missing(_) => "create the directory, or correct the path".to_owned(),
            Refusal::NotDirectory(_) => "choose the directory it lies in".to_owned(),
            Refusal::NotAbsolute(_) => "begin the path with /".to_owned(),
            Refusal::NotUtf8(_) => "rename the directory, or choose one above it".to_owned(),
            Refusal::Unreadable { .. } => "when a dead mount is there, unmount it: dtfs mounts unmount PATH".to_owned(),
            Refusal::Root { candidates } if candidates.is_empty() => "choose a directory below it".to_owned(),
            Refusal::Root { candidates } => {
                let names: Vec<_> = candidates.iter().map(|c| c.display().to_string()).collect();
                format!("choose directories below it: {}", names.join(" "))
            }
            Refusal::Duplicate { .. } => "nothing is left to do; dtfs mounts list shows it".to_owned(),
            Refusal::Nested { .. } => "choose a directory beside it".to_owned(),
            Refusal::MountedAlready { .. } => "unmount it first, or choose a directory beside it".to_owned(),
            Refusal::PseudoFileSystem { .. } => "choose a directory on a disk".to_owned(),
            Refusal::OwnState { own, .. } => {
                format!("choose a directory that is neither above nor below {}", own.display())
            }
            Refusal::Config(error) => error.remedy().unwrap_or("correct the file and try again").to_owned(),
        }
    }
}
