//! Compares two real directory trees, attribute by attribute.
//!
//! "Equal" means what a target promises: names, types, modes, owners, sizes, content, holes, mtime in nanoseconds,
//! symlink text, device numbers, xattrs with ACLs (where list and mode contradict each other, the mode counts), inode flags
//! with projects, and which names share an inode. Not compared, because no replica can have them: ctime, birth time, inode numbers, sizes of directories, and atime unless asked. dtfs's own `.dtfs` in the
//! root and `trusted.dtfs.*` are not part of a tree.
//!
//! Every access is by directory descriptor and one name, so that paths longer than PATH_MAX work and a symlink that
//! appears meanwhile is never followed. Fifos, sockets and devices are never opened. Reads leave no access time.

mod acl;
mod data;
mod links;
mod object;
mod report;
#[cfg(test)]
mod tests;

use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::base::Name;
use crate::sys::{self, DirStream, Errno};
use links::LinkGroups;
use object::Object;
pub use report::{CompareError, CompareReport, Difference, Side, What};

/// The directory in a volume's root that is dtfs's own.
const RESERVED: &[u8] = b".dtfs";

/// What to compare beyond the names and attributes that always count.
#[derive(Clone, Copy, Debug)]
pub struct CompareOptions {
    /// Compare the map of holes, at 4 KiB.
    pub holes: bool,
    /// Compare access times too.
    pub atime: bool,
    /// Keep this many differences; the rest is only counted.
    pub keep: usize,
}

impl Default for CompareOptions {
    fn default() -> Self {
        CompareOptions { holes: true, atime: false, keep: 100 }
    }
}

/// Compares the trees below `a` and `b`, their roots included. Both should be at rest.
///
/// An object that one side lacks is one difference, however much lies below it.
///
/// # Errors
/// What could not be read: side, path and errno. Differences are not errors.
pub fn compare_trees(a: &Path, b: &Path, options: &CompareOptions) -> Result<CompareReport, CompareError> {
    let mut walk = Walk {
        a: Tree::open(Side::A, a)?,
        b: Tree::open(Side::B, b)?,
        options,
        report: CompareReport::new(options.keep),
        links: LinkGroups::default(),
        todo: Vec::new(),
    };
    walk.run()?;
    Ok(walk.report)
}

struct Tree {
    side: Side,
    root: OwnedFd,
}

impl Tree {
    fn open(side: Side, path: &Path) -> Result<Tree, CompareError> {
        let root = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(path).map_err(|error| {
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
            CompareError::new(side, path.as_os_str().as_encoded_bytes(), errno)
        })?;
        Ok(Tree { side, root: root.into() })
    }

    /// Opens the directory at `path` (relative, empty for the root) one component after the other. Costs its depth in
    /// system calls, but only one descriptor however deep the tree is.
    fn open_dir(&self, path: &[u8]) -> Result<OwnedFd, CompareError> {
        let failed = |errno| CompareError::new(self.side, path, errno);
        let mut dir = self.root.try_clone().map_err(|_| failed(Errno::EMFILE))?;
        for component in path.split(|b| *b == b'/').filter(|c| !c.is_empty()) {
            let name = Name::new(component).map_err(|_| failed(Errno::EINVAL))?;
            dir = sys::openat(dir.as_fd(), name.as_cstr(), libc::O_PATH | libc::O_DIRECTORY, 0).map_err(failed)?;
        }
        Ok(dir)
    }

    /// The names in `dir`, sorted, without dtfs's own.
    fn names(&self, dir: &OwnedFd, path: &[u8]) -> Result<Vec<Name>, CompareError> {
        let failed = |errno| CompareError::new(self.side, path, errno);
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOATIME;
        let mut stream = DirStream::new(sys::reopen(dir.as_fd(), flags).map_err(failed)?);
        let mut names = Vec::new();
        while let Some(entry) = stream.next_entry().map_err(failed)? {
            let reserved = path.is_empty() && entry.name == RESERVED;
            // `.` and `..` are the only entries that are no names.
            names.extend(Name::new(&entry.name).ok().filter(|_| !reserved));
        }
        names.sort_unstable();
        Ok(names)
    }

    fn object(&self, dir: &OwnedFd, name: &Name, path: &[u8]) -> Result<Object, CompareError> {
        let failed = |errno| CompareError::new(self.side, path, errno);
        let fd = sys::openat(dir.as_fd(), name.as_cstr(), libc::O_PATH, 0).map_err(failed)?;
        Object::new(self.side, fd).map_err(failed)
    }
}

struct Walk<'o> {
    a: Tree,
    b: Tree,
    options: &'o CompareOptions,
    report: CompareReport,
    links: LinkGroups,
    /// Directories on both sides whose entries are still to be compared.
    todo: Vec<Vec<u8>>,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<(), CompareError> {
        let root = |tree: &Tree| {
            let failed = |errno| CompareError::new(tree.side, b"", errno);
            let fd = tree.root.try_clone().map_err(|_| failed(Errno::EMFILE))?;
            Object::new(tree.side, fd).map_err(failed)
        };
        let (a, b) = (root(&self.a)?, root(&self.b)?);
        self.pair(&a, &b, Vec::new())?;
        while let Some(path) = self.todo.pop() {
            self.entries(&path)?;
        }
        Ok(())
    }

    /// Compares the entries of the directory at `path`.
    fn entries(&mut self, path: &[u8]) -> Result<(), CompareError> {
        let (dir_a, dir_b) = (self.a.open_dir(path)?, self.b.open_dir(path)?);
        let names_a = self.a.names(&dir_a, path)?;
        let names_b = self.b.names(&dir_b, path)?;
        for name in names_b.iter().filter(|name| names_a.binary_search(name).is_err()) {
            self.report.add(join(path, name), What::Missing(Side::A));
        }
        for name in &names_a {
            let child = join(path, name);
            if names_b.binary_search(name).is_err() {
                self.report.add(child, What::Missing(Side::B));
                continue;
            }
            let a = self.a.object(&dir_a, name, &child)?;
            let b = self.b.object(&dir_b, name, &child)?;
            self.pair(&a, &b, child)?;
        }
        Ok(())
    }

    /// Compares the two objects at `path`.
    fn pair(&mut self, a: &Object, b: &Object, path: Vec<u8>) -> Result<(), CompareError> {
        self.report.objects += 1;
        if a.file_type() != b.file_type() {
            self.report.add(path, What::Type { a: a.file_type(), b: b.file_type() });
            return Ok(());
        }
        let mut found = Vec::new();
        let failed = |(side, errno)| CompareError::new(side, &path, errno);
        object::attributes(a, b, self.options, &mut found).map_err(failed)?;
        if a.is_dir() {
            self.todo.push(path.clone());
        } else if !self.links.seen(a, b, &mut found) && a.is_regular() && a.stat.size == b.stat.size {
            self.report.bytes += data::compare(a, b, self.options, &mut found).map_err(failed)?;
        }
        for what in found {
            self.report.add(path.clone(), what);
        }
        Ok(())
    }
}

fn join(path: &[u8], name: &Name) -> Vec<u8> {
    match path.is_empty() {
        true => name.as_bytes().to_vec(),
        false => [path, b"/", name.as_bytes()].concat(),
    }
}
