//! A host whose disks lose power: a volume and its local target on filesystems over recorded disks (`recorder.rs`).
//!
//! Everything is mounted in a mount namespace of the calling thread: it sees disks, a boot id and a shared memory of its
//! own, and whatever a test leaves behind ends with the thread. Source and target are two machines in all but name: each
//! has disks of its own, and a cut takes one or both.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use super::host::{Frozen, Host, is_dtfs};
use super::positions::{self, Place};
use super::prng::Prng;
use super::process::{mounts_below, tool, try_tool, wait_until};
use super::recorder::{Cut, Recorder, Unflushed};
use super::scratch::{FileSystem, LoopDevice, keep_holes, utf8};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const SHARED_MEMORY: &str = "/dev/shm";
/// xfs refuses less than 300 MiB.
const DISK_MIB: u64 = 512;
/// Of a journal's own disk: the tree is ahead of it for long, and a cut finds it so.
const SLOW_FLUSH: Duration = Duration::from_millis(15);
const UNMOUNT_LIMIT: Duration = Duration::from_secs(60);
const VOLUME: &str = "data";
const TARGET_DISK: usize = 1;

/// Who loses power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    Source,
    Target,
    Both,
}

/// Where the source keeps its journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JournalOn {
    /// The filesystem of the tree.
    SameDisk,
    /// A disk of its own, which loses power at the same moment.
    OwnDisk,
}

/// A filesystem over a recorded disk.
struct Drive {
    number: usize,
    kind: FileSystem,
    point: PathBuf,
    /// Directories in it that are also shown elsewhere.
    binds: Vec<(&'static str, PathBuf)>,
    device: Option<LoopDevice>,
}

impl Drive {
    /// A disk with a new filesystem; the directories of `binds` exist in it.
    fn new(
        recorder: &Recorder,
        number: usize,
        kind: FileSystem,
        point: PathBuf,
        binds: Vec<(&'static str, PathBuf)>,
    ) -> Drive {
        fs::create_dir(&point).expect("a mount point");
        binds.iter().for_each(|(_, to)| fs::create_dir_all(to).expect("a mount point"));
        let mut drive = Drive { number, kind, point, binds, device: None };
        let device = drive.attach(recorder);
        kind.make(device.path());
        drive.mount(&device);
        drive.binds.iter().for_each(|(from, _)| fs::create_dir(drive.point.join(from)).expect("a new directory"));
        drive.bind();
        drive.device = Some(device);
        drive
    }

    fn attach(&self, recorder: &Recorder) -> LoopDevice {
        let sector = sector_of(self.kind).to_string();
        let options = ["--direct-io=on", "--sector-size", &sector];
        LoopDevice::attach_with(&recorder.path(self.number), &options)
    }

    fn mount(&self, device: &LoopDevice) {
        tool("mount", &["-t", self.kind.name(), device.path(), utf8(&self.point)]);
        keep_holes(self.kind, device);
        write_back_early(device);
    }

    fn bind(&self) {
        for (from, to) in &self.binds {
            tool("mount", &["--bind", utf8(&self.point.join(from)), utf8(to)]);
        }
    }

    fn plug_in(&mut self, recorder: &Recorder) {
        let device = self.attach(recorder);
        self.mount(&device);
        self.bind();
        self.device = Some(device);
    }

    /// Nothing of the old mount may live on: a file that somebody left open would show the next life its old cache.
    fn unplug(&mut self) {
        self.binds.iter().for_each(|(_, to)| unmount(to));
        unmount(&self.point);
        let device = self.device.take().expect("it is plugged in");
        let path = device.path().to_owned();
        drop(device);
        let backing = Path::new("/sys/block").join(path.trim_start_matches("/dev/")).join("loop/backing_file");
        let still = fs::read_to_string(&backing).unwrap_or_default();
        assert!(!still.contains("dtfs-recorder-"), "{path} is still in use: {still}");
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        for (_, to) in &self.binds {
            try_tool("umount", &["--lazy", utf8(to)]);
        }
        try_tool("umount", &["--lazy", utf8(&self.point)]);
    }
}

/// The kernel closes the files of a dead process a moment after it is dead. Until then also what covers a target stays; it is
/// found in the table of mounts, because a filesystem that has lost its disk may answer no question about a path (xfs).
fn unmount(point: &Path) {
    wait_until("a mount that nobody uses", UNMOUNT_LIMIT, || {
        let mounts = mounts_below(point);
        let all_gone = mounts.iter().rev().all(|(path, _)| try_tool("umount", &[path]).status.success());
        all_gone.then_some(())
    });
}

/// Lets little stay dirty, so that writes that nobody asked for are on their way all the time (sysfs-class-bdi).
fn write_back_early(device: &LoopDevice) {
    let name = device.path().trim_start_matches("/dev/");
    let number = fs::read_to_string(format!("/sys/block/{name}/dev")).expect("a device number");
    for (knob, value) in [("strict_limit", "1"), ("max_bytes", "8388608")] {
        let path = format!("/sys/class/bdi/{}/{knob}", number.trim());
        fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
}

/// There is no way back from a torn super block: of 4 KiB on btrfs, of 1 KiB on ext4, which looks at its checksum before it
/// replays the journal that would mend it (ext4_load_super, fs/ext4/super.c). Disks that they are made for do not tear it.
fn sector_of(kind: FileSystem) -> u64 {
    match kind {
        FileSystem::Ext4 => 1024,
        FileSystem::Xfs => 512,
        FileSystem::Btrfs => 4096,
    }
}

/// A volume `data` with a local target, on recorded disks. The fields are dropped in this order: host first.
pub(crate) struct Machine {
    pub(crate) host: Host,
    pub(crate) tree: PathBuf,
    pub(crate) target: PathBuf,
    drives: Vec<Drive>,
    recorder: Recorder,
    boots: u64,
    boot_id: PathBuf,
    _dir: TempDir,
}

impl Machine {
    /// The daemon is not started, the volume is defined.
    pub(crate) fn new(kind: FileSystem, journal: JournalOn) -> Machine {
        enter_namespace();
        let dir = tempfile::Builder::new().prefix("dtfs-power-").tempdir().expect("a temporary directory");
        let own_disk = journal == JournalOn::OwnDisk;
        let sizes = vec![DISK_MIB; if own_disk { 3 } else { 2 }];
        let recorder = Recorder::new(&sizes, sector_of(kind));
        let mut host = Host::new();
        let state = host.root().join("var/lib/dtfs");
        let journal_bind = ("journal", state.join(VOLUME));
        let point = |number: usize| dir.path().join(format!("disk-{number}"));
        let source_binds = if own_disk { vec![] } else { vec![journal_bind.clone()] };
        let mut drives = vec![
            Drive::new(&recorder, 0, kind, point(0), source_binds),
            Drive::new(&recorder, TARGET_DISK, kind, point(TARGET_DISK), vec![("replicas", state.join("replicas"))]),
        ];
        if own_disk {
            drives.push(Drive::new(&recorder, 2, kind, point(2), vec![journal_bind]));
            recorder.slow_down(2, SLOW_FLUSH);
        }
        let (tree, target) = (point(0).join("tree"), point(TARGET_DISK).join("target"));
        fs::create_dir(&tree).expect("a directory for the tree");
        host.define_volume(VOLUME, &tree);
        let boot_id = dir.path().join("boot_id");
        let mut machine = Machine { host, tree, target, drives, recorder, boots: 0, boot_id, _dir: dir };
        machine.boot();
        // An earlier machine of this thread may have left its own.
        try_tool("umount", &[BOOT_ID]);
        tool("mount", &["--bind", utf8(&machine.boot_id), BOOT_ID]);
        machine
    }

    /// What a boot changes but for the disks: the boot id, shared memory, the runtime directory.
    fn boot(&mut self) {
        self.boots += 1;
        let id = format!("d7f5b007-0000-4000-8000-{:012x}\n", self.boots);
        fs::write(&self.boot_id, id).expect("the boot id");
        if self.boots > 1 {
            tool("umount", &["--lazy", SHARED_MEMORY]);
        }
        tool("mount", &["-t", "tmpfs", "tmpfs", SHARED_MEMORY]);
        let run = self.host.root().join("run");
        if run.exists() {
            fs::remove_dir_all(&run).expect("the runtime directory can be removed");
        }
    }

    fn disks_of(&self, victim: Victim) -> Vec<usize> {
        let belongs = |number: &usize| match victim {
            Victim::Source => *number != TARGET_DISK,
            Victim::Target => *number == TARGET_DISK,
            Victim::Both => true,
        };
        (0..self.drives.len()).filter(belongs).collect()
    }

    /// From one moment on, if possible with `unflushed` writes on their way, the victim's disks take nothing, and then its processes are gone. A source that lives
    /// stands still until [`Machine::power_on`].
    pub(crate) fn lose_power(&mut self, victim: Victim, unflushed: usize) -> Option<Frozen> {
        self.recorder.cut(&self.disks_of(victim), unflushed);
        if victim == Victim::Source {
            self.host.kill9_and_wait();
            return None;
        }
        // It would go on trying the target's dead disk, and hold it.
        let frozen = self.host.freeze();
        self.host.kill9_servers();
        if victim == Victim::Target {
            return Some(frozen);
        }
        self.host.kill9();
        None
    }

    /// The victim's disks are back, each with what it kept. No process may have files open below its mount any more.
    pub(crate) fn restore(&mut self, victim: Victim, prng: &mut Prng) -> Vec<Cut> {
        let disks = self.disks_of(victim);
        if victim != Victim::Target {
            while is_dtfs(&self.tree) {
                tool("umount", &["--lazy", utf8(&self.tree)]);
            }
            self.host.lose_memory();
        }
        disks.iter().for_each(|disk| self.drives[*disk].unplug());
        let cuts = disks.iter().map(|disk| self.recorder.restore(*disk, Unflushed::any(prng), prng)).collect();
        disks.iter().for_each(|disk| self.drives[*disk].plug_in(&self.recorder));
        cuts
    }

    /// From now on the target's disk fails to write blocks that begin with `bad`; without it none.
    pub(crate) fn refuse_at_target(&self, bad: Option<&[u8]>) {
        self.recorder.refuse(TARGET_DISK, bad);
    }

    /// Writes of the target that failed so.
    pub(crate) fn refused_at_target(&self) -> u64 {
        self.recorder.refused(TARGET_DISK)
    }

    /// What the source knows of the target, and what the target's disk holds. Between [`Machine::lose_power`] and
    /// [`Machine::power_on`].
    pub(crate) fn positions(&self) -> (Place, Place) {
        let state = self.host.root().join("var/lib/dtfs");
        let source = state.join(VOLUME);
        (positions::acknowledged(&source), positions::held(&source, &state.join("replicas")))
    }

    /// The victim starts again.
    pub(crate) fn power_on(&mut self, frozen: Option<Frozen>) {
        if frozen.is_none() {
            self.boot();
            self.host.start_and_mount();
        }
    }
}

/// Mounts of this thread, and of what it starts, are its own from now on: no namespace that another test makes keeps a
/// filesystem of this one mounted after its unmount.
pub(crate) fn enter_namespace() {
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace (needs root)");
    tool("mount", &["--make-rprivate", "/"]);
}
