//! Where dtfs keeps its own files.

use std::path::{Path, PathBuf};

use super::VolumeName;

/// The places of all of dtfs's own files, below one root, so that several "hosts" can live on one machine.
///
/// Paths of volumes and targets are never prefixed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    root: PathBuf,
    edits: Edits,
}

/// Whether what is edited below these paths is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Edits {
    /// It is.
    #[default]
    Written,
    /// `--dry-run`: everything is checked, nothing is written, and the daemon is asked for nothing that changes anything.
    Rehearsed,
}

impl Paths {
    /// Everything below `root`; `None` is the system's own `/`.
    pub fn new(root: Option<PathBuf>) -> Paths {
        let root = root.unwrap_or_else(|| PathBuf::from("/"));
        Paths { root: std::path::absolute(&root).unwrap_or(root), edits: Edits::Written }
    }

    /// The same places, where edits are written or only rehearsed.
    #[must_use]
    pub fn with_edits(self, edits: Edits) -> Paths {
        Paths { edits, ..self }
    }

    /// Whether edits are written.
    pub fn edits(&self) -> Edits {
        self.edits
    }

    /// `FILE` below the root: a file of this host that is not dtfs's own (`etc/exports`).
    pub fn system_file(&self, file: &str) -> PathBuf {
        self.root.join(file)
    }

    /// The root given by the operator, `None` for `/`. A child process gets it back as `--root`.
    pub fn root(&self) -> Option<&Path> {
        (self.root != Path::new("/")).then_some(self.root.as_path())
    }

    /// `etc/dtfs`: everything an operator may edit.
    pub fn config_dir(&self) -> PathBuf {
        self.root.join("etc/dtfs")
    }

    /// `etc/dtfs/dtfs_mounts`: what is mounted.
    pub fn mounts_file(&self) -> PathBuf {
        self.config_dir().join("dtfs_mounts")
    }

    /// `etc/dtfs/mounts.d`: one file per volume.
    pub fn volume_files_dir(&self) -> PathBuf {
        self.config_dir().join("mounts.d")
    }

    /// `etc/dtfs/mounts.d/VOL.toml`: what is done with one volume.
    pub fn volume_file(&self, volume: &VolumeName) -> PathBuf {
        self.volume_files_dir().join(format!("{volume}.toml"))
    }

    /// `etc/dtfs/dtfs.toml`: the daemon's own settings.
    pub fn daemon_file(&self) -> PathBuf {
        self.config_dir().join("dtfs.toml")
    }

    /// `etc/dtfs/ssh_config`: what ssh reads instead of the user's configuration, when it is there.
    pub fn ssh_config(&self) -> PathBuf {
        self.config_dir().join("ssh_config")
    }

    /// `etc/dtfs/peers.toml`: the hosts that are known.
    pub fn peers_file(&self) -> PathBuf {
        self.config_dir().join("peers.toml")
    }

    /// `var/lib/dtfs/.identity/identity.pem`: this host's key, where no volume's state can lie: a name does not begin with a dot.
    pub fn identity_file(&self) -> PathBuf {
        self.state_dir().join(".identity/identity.pem")
    }

    /// `var/lib/dtfs`: the state of every volume and replica.
    pub fn state_dir(&self) -> PathBuf {
        self.root.join("var/lib/dtfs")
    }

    /// `var/lib/dtfs/VOL`: journal and cursors of one volume, unless its entry says `store=`.
    ///
    /// The volume name `replicas` is reserved, so this never meets [`Paths::replicas_dir`].
    pub fn volume_state(&self, volume: &VolumeName) -> PathBuf {
        self.state_dir().join(volume.as_str())
    }

    /// `var/lib/dtfs/replicas`: the state of the trees on this host that are targets.
    pub fn replicas_dir(&self) -> PathBuf {
        self.state_dir().join("replicas")
    }

    /// `var/lib/dtfs/replicas/ID`: inbox and catalog of one target tree, by the id in its `.dtfs`.
    pub fn replica_state(&self, id: &str) -> PathBuf {
        self.replicas_dir().join(id)
    }

    /// `run/dtfs`: the socket's directory, 0700.
    pub fn run_dir(&self) -> PathBuf {
        self.root.join("run/dtfs")
    }

    /// `run/dtfs/dtfs.sock`: where the daemon listens.
    pub fn socket(&self) -> PathBuf {
        self.run_dir().join("dtfs.sock")
    }

    /// `run/dtfs/dtfs.lock`: locked by the one daemon of this root while it lives.
    pub fn daemon_lock(&self) -> PathBuf {
        self.run_dir().join("dtfs.lock")
    }

    /// The directories that no volume and no target may hold or lie in.
    pub fn own_dirs(&self) -> [PathBuf; 3] {
        [self.config_dir(), self.state_dir(), self.run_dir()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_moves_everything() {
        let paths = Paths::new(Some("/tmp/a".into()));
        assert_eq!(paths.mounts_file(), Path::new("/tmp/a/etc/dtfs/dtfs_mounts"));
        assert_eq!(paths.socket(), Path::new("/tmp/a/run/dtfs/dtfs.sock"));
        assert_eq!(paths.root(), Some(Path::new("/tmp/a")));
        assert_eq!(Paths::new(None).state_dir(), Path::new("/var/lib/dtfs"));
        assert_eq!(Paths::new(None).root(), None);
    }
}
