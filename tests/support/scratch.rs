//! Scratch filesystems of a chosen kind, on loop devices over sparse images in a temporary directory.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::process::{tool, try_tool};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileSystem {
    Ext4,
    Xfs,
    Btrfs,
}

impl FileSystem {
    /// Makes one on `image`, a file or a device.
    pub(crate) fn make(self, image: &str) {
        match self {
            FileSystem::Ext4 => tool("mkfs.ext4", &["-q", "-F", "-m", "0", image]),
            FileSystem::Xfs => tool("mkfs.xfs", &["-q", image]),
            FileSystem::Btrfs => tool("mkfs.btrfs", &["-q", image]),
        };
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
            FileSystem::Btrfs => "btrfs",
        }
    }

    /// xfs reserves space behind a file that grows, and it hangs on the timing of writeback what of that becomes zeros when
    /// the file grows over it (xfs(5), `allocsize`): see [`keep_holes`].
    fn options(self) -> &'static str {
        match self {
            FileSystem::Xfs => "allocsize=4k",
            FileSystem::Ext4 | FileSystem::Btrfs => "defaults",
        }
    }
}

/// A mounted filesystem of its own. The fields are dropped in this order: mount, device, image.
pub(crate) struct Scratch {
    mount: Mounted,
    device: LoopDevice,
    _dir: TempDir,
}

/// A filesystem on which every change waits; a context, so that it goes on also when a test fails.
pub(crate) struct FrozenDisk<'s>(&'s Scratch);

impl Drop for FrozenDisk<'_> {
    fn drop(&mut self) {
        try_tool("fsfreeze", &["--unfreeze", utf8(self.0.path())]);
    }
}

impl Scratch {
    /// xfs refuses images below 300 MiB.
    pub(crate) const DEFAULT_MIB: u64 = 1024;

    pub(crate) fn new(kind: FileSystem) -> Scratch {
        Scratch::with_size(kind, Scratch::DEFAULT_MIB)
    }

    pub(crate) fn with_size(kind: FileSystem, mib: u64) -> Scratch {
        let dir = tempfile::Builder::new().prefix("dtfs-scratch-").tempdir().expect("a temporary directory");
        // Tests act as other users below it.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let image = dir.path().join("image");
        File::create(&image).and_then(|file| file.set_len(mib << 20)).expect("a sparse image");
        kind.make(utf8(&image));
        let device = LoopDevice::attach(&image);
        let point = dir.path().join("mnt");
        fs::create_dir(&point).expect("a mount point");
        tool("mount", &["-t", kind.name(), "-o", kind.options(), &device.0, utf8(&point)]);
        keep_holes(kind, &device);
        Scratch { mount: Mounted(point), device, _dir: dir }
    }

    /// The root of the filesystem.
    pub(crate) fn path(&self) -> &Path {
        &self.mount.0
    }

    /// Keeps `percent` of an ext4 for members of the group `gid`.
    pub(crate) fn reserve_for_group(&self, gid: u32, percent: u32) {
        tool("tune2fs", &["-m", &percent.to_string(), self.device.path()]);
        tool("mount", &["-o", &format!("remount,resgid={gid}"), utf8(self.path())]);
    }

    /// Stops all changes of it until the guard is dropped.
    pub(crate) fn freeze(&self) -> FrozenDisk<'_> {
        tool("fsfreeze", &["--freeze", utf8(self.path())]);
        FrozenDisk(self)
    }

    /// A new directory in it.
    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir(&path).expect("a new directory");
        path
    }
}

/// ext4 turns up to 32 KiB around a write into a preallocated range from "unwritten" into zeros, when the timing of
/// writeback has it so. Equal histories would then end with unequal hole maps.
pub(crate) fn keep_holes(kind: FileSystem, device: &LoopDevice) {
    if kind == FileSystem::Ext4 {
        let device = Path::new(&device.0).file_name().expect("a device has a name");
        let knob = Path::new("/sys/fs/ext4").join(device).join("extent_max_zeroout_kb");
        fs::write(&knob, "0").unwrap_or_else(|error| panic!("{}: {error}", knob.display()));
    }
}

/// A temporary directory in which targets may lie.
pub(crate) struct Directory(TempDir);

impl Directory {
    pub(crate) fn new() -> Directory {
        Directory(tempfile::tempdir().expect("a temporary directory"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        super::behind::uncover_below(self.0.path());
    }
}

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        super::behind::uncover_below(&self.0);
        let path = utf8(&self.0);
        if !try_tool("umount", &[path]).status.success() {
            // Someone still stands in it, in a test that fails: detach it now, the kernel finishes when they leave.
            try_tool("umount", &["--lazy", path]);
        }
    }
}

/// A loop device over a file.
pub(crate) struct LoopDevice(String);

impl LoopDevice {
    pub(crate) fn attach(image: &Path) -> LoopDevice {
        LoopDevice::attach_with(image, &[])
    }

    /// With options of losetup(8).
    pub(crate) fn attach_with(image: &Path, options: &[&str]) -> LoopDevice {
        let args = [options, &["--find", "--show", utf8(image)]].concat();
        // Tests run beside each other: another may take the free device between look-up and use.
        let found = (0..20).map(|_| try_tool("losetup", &args)).find(|output| output.status.success());
        let output = found.expect("losetup gives a loop device (needs root and /dev/loop-control)");
        LoopDevice(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

impl LoopDevice {
    /// Its node in /dev.
    pub(crate) fn path(&self) -> &str {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        try_tool("losetup", &["--detach", &self.0]);
    }
}

pub(crate) fn utf8(path: &Path) -> &str {
    path.to_str().expect("paths made by tests are UTF-8")
}
