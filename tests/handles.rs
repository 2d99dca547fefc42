//! File handles of the mount, as an NFS server keeps them: they outlive the kernel's memory of the inode, the daemon and the
//! mount, and open nothing that is gone or was never in the tree.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use dtfs::backing::Tree;
use dtfs::sys::{self, Errno, RawHandle};
use support::host::Host;
use support::process::tool;
use support::scratch::{FileSystem, Scratch, utf8};
use support::trees;

fn handle_of(path: &Path) -> RawHandle {
    let dir = File::open(path.parent().unwrap()).unwrap();
    let name = CString::new(path.file_name().unwrap().to_str().unwrap()).unwrap();
    sys::name_to_handle_at(dir.as_fd(), &name).unwrap()
}

/// The handle that this inode of the backing filesystem would have on the mount (fs/fuse/inode.c, fuse_encode_fh).
fn forged(ino: u64, generation: u32) -> RawHandle {
    let words = [(ino >> 32) as u32, ino as u32, generation];
    RawHandle::new(0x81, &words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>()).unwrap()
}

fn open(mount: &Path, handle: &RawHandle) -> sys::Result<OwnedFd> {
    sys::open_by_handle_at(File::open(mount).unwrap().as_fd(), handle, libc::O_RDONLY)
}

fn text(mount: &Path, handle: &RawHandle) -> String {
    let mut file = File::from(open(mount, handle).unwrap());
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

fn entries(mount: &Path, handle: &RawHandle) -> usize {
    let mut stream = sys::DirStream::new(open(mount, handle).unwrap());
    std::iter::from_fn(|| stream.next_entry().unwrap()).filter(|entry| !entry.name.starts_with(b".")).count()
}

/// The kernel forgets the inodes that nobody uses.
fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
}

struct Volume {
    host: Host,
    source: PathBuf,
    outside: PathBuf,
    _scratch: Scratch,
}

impl Volume {
    fn new(kind: FileSystem) -> Volume {
        let scratch = Scratch::new(kind);
        let (source, outside) = (scratch.dir("source"), scratch.dir("outside"));
        trees::fill(&source.join("old/deep"), 5);
        fs::write(outside.join("secret"), b"not in the tree").unwrap();
        let mut host = Host::new();
        host.define_volume("data", &source);
        host.start_and_mount();
        Volume { host, source, outside, _scratch: scratch }
    }

    fn list(&self) -> PathBuf {
        self.host.root().join("var/lib/dtfs/data/inodes")
    }
}

fn handles_live_on(kind: FileSystem) {
    let mut volume = Volume::new(kind);
    let at = volume.source.clone();
    trees::fill(&at.join("new"), 5);
    let (old, new) = (handle_of(&at.join("old/deep/file-00001")), handle_of(&at.join("new/file-00002")));
    let (deep, root) = (handle_of(&at.join("old/deep")), handle_of(&at));
    let check = |when: &str| {
        drop_caches();
        assert_eq!(text(&at, &old), "content of file 1\n", "{kind:?}, {when}");
        assert_eq!(text(&at, &new), "content of file 2\n", "{kind:?}, {when}");
        assert_eq!((entries(&at, &deep), entries(&at, &root)), (5, 2), "{kind:?}, {when}");
    };
    check("the same mount");
    volume.host.must(&["mounts", "unmount", "--all"]);
    volume.host.must(&["mounts", "mount", "--all"]);
    check("mounted again");
    volume.host.stop();
    volume.host.start_and_mount();
    check("a new daemon");
    volume.host.kill9();
    volume.host.start_and_mount();
    check("after a kill");
    volume.host.stop();
    fs::remove_file(volume.list()).unwrap();
    volume.host.start_and_mount();
    check("the list was lost");
    volume.host.stop();
}

fn dead_handles_open_nothing(kind: FileSystem) {
    let mut volume = Volume::new(kind);
    let at = volume.source.clone();
    let secret = fs::metadata(volume.outside.join("secret")).unwrap().ino();
    let outside = fs::metadata(&volume.outside).unwrap().ino();
    let journal = fs::metadata(volume.list()).unwrap().ino();
    let generation = |path: &Path| {
        let bytes = handle_of(path).bytes().to_vec();
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        match kind {
            FileSystem::Ext4 => word(4),
            FileSystem::Xfs => word(8),
            FileSystem::Btrfs => word(16),
        }
    };
    let (file, dir) = (generation(&volume.outside.join("secret")), generation(&volume.outside));
    let gone = handle_of(&at.join("old/deep/file-00001"));
    let moved = handle_of(&at.join("old/deep/file-00003"));
    let recycled = recycle(&at);
    fs::remove_file(at.join("old/deep/file-00001")).unwrap();
    let check = |when: &str| {
        drop_caches();
        for handle in
            [&gone, &forged(secret, file), &forged(outside, dir), &forged(journal, 1)].into_iter().chain(&recycled)
        {
            assert_eq!(open(&at, handle).err(), Some(Errno::ESTALE), "{kind:?}, {when}, {handle:?}");
        }
    };
    check("the same mount");
    volume.host.stop();
    fs::rename(at.join("old/deep/file-00003"), volume.outside.join("moved")).unwrap();
    volume.host.start_and_mount();
    check("a new daemon");
    assert_eq!(open(&at, &moved).err(), Some(Errno::ESTALE), "{kind:?}: moved out while nobody watched");
    assert_eq!(text(&at, &handle_of(&at.join("old/deep/file-00004"))), "content of file 4\n");
    volume.host.stop();
}

/// The handle of a removed file whose inode number another one got; none where numbers are not used again (btrfs).
fn recycle(at: &Path) -> Option<RawHandle> {
    let (first, second) = (at.join("first"), at.join("second"));
    for _ in 0..20 {
        fs::write(&first, b"first").unwrap();
        let (handle, ino) = (handle_of(&first), fs::metadata(&first).unwrap().ino());
        fs::remove_file(&first).unwrap();
        fs::write(&second, b"second").unwrap();
        if fs::metadata(&second).unwrap().ino() == ino {
            return Some(handle);
        }
        fs::remove_file(&second).unwrap();
    }
    None
}

#[test]
fn handles_live_on_ext4() {
    handles_live_on(FileSystem::Ext4);
}

#[test]
fn handles_live_on_xfs() {
    handles_live_on(FileSystem::Xfs);
}

#[test]
fn handles_live_on_btrfs() {
    handles_live_on(FileSystem::Btrfs);
}

#[test]
fn dead_handles_open_nothing_on_ext4() {
    dead_handles_open_nothing(FileSystem::Ext4);
}

#[test]
fn dead_handles_open_nothing_on_xfs() {
    dead_handles_open_nothing(FileSystem::Xfs);
}

#[test]
fn dead_handles_open_nothing_on_btrfs() {
    dead_handles_open_nothing(FileSystem::Btrfs);
}

/// xfs lists each under two names; who removes all that are listed would meet the second one gone.
#[test]
fn an_access_control_list_is_one_xattr_on_every_filesystem() {
    for kind in [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs] {
        let scratch = Scratch::new(kind);
        let dir = scratch.dir("tree");
        tool("setfacl", &["-m", "u:1000:r", utf8(&dir)]);
        let tree = Tree::open(&dir).unwrap();
        let names: Vec<_> =
            tree.xattrs(tree.root(), b"trusted.dtfs.").unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, [b"system.posix_acl_access"], "{kind:?}");
    }
}
