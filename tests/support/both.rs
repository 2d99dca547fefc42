//! The same steps in a bare directory and on the mount of a replicated volume of the same filesystem: what they report
//! must be equal, and afterwards the target must be equal to the source.

use std::ffi::CString;
use std::fmt::Display;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use dtfs::sys::{self, Errno};
use nix::fcntl::AT_FDCWD;

use super::replica::Pair;
use super::scratch::FileSystem;

/// What a scenario saw, in words that do not depend on the directory it ran in.
#[derive(Default)]
pub(crate) struct Facts(Vec<String>);

impl Facts {
    pub(crate) fn add(&mut self, what: impl Display, fact: impl Display) {
        self.0.push(format!("{what}: {fact}"));
    }

    /// Adds how a call ended: "ok" or the error.
    pub(crate) fn end<T>(&mut self, what: impl Display, end: io::Result<T>) {
        self.add(what, said(&end));
    }

    /// Adds how a call of `sys` ended.
    pub(crate) fn sys<T>(&mut self, what: impl Display, end: sys::Result<T>) {
        self.end(what, end.map_err(io::Error::from));
    }

    /// Adds type, mode, owner, links, size and xattrs of what `path` names; the size of files only.
    pub(crate) fn object(&mut self, what: impl Display, path: &Path) {
        self.add(what, object(path).unwrap_or_else(|error| said::<()>(&Err(error))));
    }
}

fn said<T>(end: &io::Result<T>) -> String {
    match end {
        Ok(_) => "ok".to_owned(),
        Err(error) => {
            error.raw_os_error().map_or_else(|| error.to_string(), |raw| format!("{:?}", Errno::from_raw(raw)))
        }
    }
}

fn object(path: &Path) -> io::Result<String> {
    let stat = fs::symlink_metadata(path)?;
    let size = if stat.is_file() { stat.len() } else { 0 };
    let links = if stat.is_dir() { 0 } else { stat.nlink() };
    let facts = format!("{:o} {}:{} links {links} size {size}", stat.mode(), stat.uid(), stat.gid());
    Ok(format!("{facts} xattrs {:?}", xattrs(path)?))
}

/// All xattrs of what `path` names, as hexadecimal values by name.
pub(crate) fn xattrs(path: &Path) -> io::Result<Vec<(String, String)>> {
    let fd = sys::openat(AT_FDCWD, &c_path(path), libc::O_PATH | libc::O_NOFOLLOW, 0)?;
    let fd = std::os::fd::AsFd::as_fd(&fd);
    let mut found = Vec::new();
    for name in sys::listxattr(fd)? {
        let value = sys::getxattr(fd, &CString::new(name.clone()).expect("a name has no NUL"))?;
        let hex = value.iter().map(|byte| format!("{byte:02x}")).collect();
        found.push((String::from_utf8_lossy(&name).into_owned(), hex));
    }
    found.sort();
    Ok(found)
}

pub(crate) fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path has no NUL")
}

/// A replicated volume, with a bare directory beside it.
pub(crate) struct Both {
    pair: Pair,
    bare: PathBuf,
}

impl Both {
    pub(crate) fn on(kind: FileSystem) -> Both {
        let pair = Pair::mirrored(kind, |_| {});
        let bare = pair.scratch.dir("bare");
        Both { pair, bare }
    }

    /// The mounted directory.
    pub(crate) fn mount(&self) -> &Path {
        &self.pair.source
    }

    /// The directory that is not replicated.
    pub(crate) fn bare(&self) -> &Path {
        &self.bare
    }

    pub(crate) fn pair_mut(&mut self) -> &mut Pair {
        &mut self.pair
    }

    /// Runs `scenario` in a new directory `name` on both sides; everyone may enter and write there.
    pub(crate) fn same(&self, name: &str, scenario: impl Fn(&Path, &mut Facts)) {
        let run = |root: &Path| {
            let dir = root.join(name);
            fs::create_dir(&dir).expect("a new directory");
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).expect("chmod");
            let mut facts = Facts::default();
            scenario(&dir, &mut facts);
            facts.0
        };
        let (bare, mount) = (run(&self.bare), run(self.mount()));
        assert!(!bare.is_empty(), "{name} says nothing");
        let differ: Vec<_> = bare.iter().zip(&mount).filter(|(bare, mount)| bare != mount).collect();
        let lines: Vec<_> = differ.iter().map(|(bare, mount)| format!("  bare:  {bare}\n  mount: {mount}")).collect();
        assert!(lines.is_empty(), "{name} differs:\n{}", lines.join("\n"));
        assert_eq!(bare.len(), mount.len(), "{name}: number of facts");
    }

    /// Stops everything; the target must be equal to the source.
    pub(crate) fn finish(self, context: &str) {
        self.pair.stop_and_compare(context);
    }
}
