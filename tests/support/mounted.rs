//! A mount served by the test process itself, with both sides in sight.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use dtfs::backing::Tree;
use dtfs::base::Tid;
use dtfs::fuse::{MountedVolume, Unmount};
use dtfs::journal::{Journal, JournalOptions};
use dtfs::record::RecordIter;
use dtfs::stack::{Stack, StackOptions};

/// A volume that is mounted at `at` over another directory, so that both sides can be looked at.
pub(crate) struct Mounted {
    pub(crate) volume: MountedVolume,
    pub(crate) stack: Arc<Stack>,
    pub(crate) at: PathBuf,
    pub(crate) behind: PathBuf,
    dir: Option<tempfile::TempDir>,
}

impl Mounted {
    /// Over a new directory of the system's temporary filesystem.
    pub(crate) fn new() -> Mounted {
        Mounted::with(StackOptions::default())
    }

    /// As [`Mounted::new`], with the operator's choices.
    pub(crate) fn with(options: StackOptions) -> Mounted {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let behind = dir.path().join("tree");
        fs::create_dir(&behind).unwrap();
        Mounted::serve(dir, behind, options)
    }

    /// Over `behind`, with mount point and journal in `dir`.
    pub(crate) fn over(dir: tempfile::TempDir, behind: PathBuf) -> Mounted {
        Mounted::serve(dir, behind, StackOptions::default())
    }

    fn serve(dir: tempfile::TempDir, behind: PathBuf, options: StackOptions) -> Mounted {
        let at = dir.path().join("mnt");
        fs::create_dir(&at).unwrap();
        let (journal, _) = Journal::open(&dir.path().join("j"), JournalOptions::default()).unwrap();
        let tree = Tree::open(&behind).unwrap();
        let stack = Stack::new(tree, journal, options).unwrap();
        let volume = MountedVolume::mount(stack.clone(), &at, "test").unwrap();
        Mounted { volume, stack, at, behind, dir: Some(dir) }
    }

    /// A path on the mount.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }

    /// The kind of every change that was recorded so far.
    pub(crate) fn words(&self) -> Vec<&'static str> {
        let journal = self.stack.journal();
        journal.commit(journal.last_tid()).unwrap();
        let mut reader = journal.reader(Tid::ZERO).unwrap();
        let mut words = Vec::new();
        while let Some(chunk) = reader.next_chunk(Tid(u64::MAX), 1 << 20).unwrap() {
            words.extend(RecordIter::new(&chunk.body).map(|record| record.unwrap().op.word()));
        }
        words
    }
}

impl Drop for Mounted {
    /// Also when the test panicked. What is still mounted must not be deleted through.
    fn drop(&mut self) {
        let plain = self.volume.unmount(Unmount::Plain);
        if plain.is_err() {
            let _ = self.volume.unmount(Unmount::Lazy);
        }
        if self.volume.is_serving() {
            std::mem::forget(self.dir.take());
        }
    }
}

/// Runs a shell line as an ordinary user.
pub(crate) fn as_user(line: &str) -> bool {
    let mut command = Command::new("sh");
    command.args(["-c", line]).uid(65_534).gid(65_534);
    command.status().unwrap().success()
}
