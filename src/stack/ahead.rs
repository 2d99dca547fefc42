//! In a storm, what lies beside the object that waits is announced with it. Whoever works through a tree (`rm -r`,
//! `chmod -R`, rsync) changes one cold object after the other and would wait for the disk at each; so they wait together.
//!
//! All of this is a guess: what was announced for nothing is compared after a power loss, and costs nothing else.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Stack;
use super::mutation::Touch;
use crate::base::{Name, ObjectKey};
use crate::sys::{self, Errno, Result};

/// Objects that are announced beside the first one of a directory. Each time it is twice as many.
const FIRST: usize = 8;
/// Objects that are announced at once, at most.
const MOST: usize = 256;
/// Entries that are looked at for them.
const LOOKED_AT: usize = 4 * MOST;
/// Directories in which a place is kept: as deep as trees usually are.
const PLACES: usize = 16;
/// A place that was not used for so long is of a walk that is over.
const FRESH: Duration = Duration::from_secs(2);

/// How far some directories were announced.
#[derive(Default)]
pub(super) struct Ahead {
    /// Protects the places. Rank: a leaf; only tried, and held while a part of a directory is listed.
    places: Mutex<Vec<Place>>,
}

/// How far one directory was announced.
struct Place {
    dir: ObjectKey,
    /// Where its listing goes on (getdents64(2), d_off).
    offset: i64,
    batch: usize,
    used: Instant,
}

impl Stack {
    /// Sends intents for what lies beside the object of `touch` on their way, in the order of the directory's listing, for
    /// changes of the same kind. The caller holds no lock.
    pub(super) fn expect_beside(&self, touch: Touch) {
        // A name that comes or goes is a change of its directory.
        if matches!(touch, Touch::Name(_)) || touch.key() == self.tree.root_key() {
            return;
        }
        // Otherwise another request is at it.
        if let Some(mut places) = self.ahead.places.try_lock()
            && let Err(errno) = self.expect_from(&mut places, touch)
        {
            tracing::debug!(%errno, "what lies beside an object that changes is not announced");
        }
    }

    fn expect_from(&self, places: &mut Vec<Place>, touch: Touch) -> Result<()> {
        let dir = self.directory_of(touch)?;
        let place = place_in(places, self.tree.found(dir.as_fd())?.key);
        let mut listing = self.tree.read_dir(dir.as_fd())?;
        listing.seek(place.offset)?;
        let mut announced = 0;
        for _ in 0..LOOKED_AT {
            let Some(entry) = listing.next_entry()? else { break };
            place.offset = entry.next_offset;
            let wanted = !matches!(touch, Touch::Entries(_)) || entry.d_type == libc::DT_DIR;
            if !wanted || self.is_reserved(place.dir, &entry.name) {
                continue;
            }
            // `.` and `..` are no names.
            let Ok(name) = Name::new(&entry.name) else { continue };
            // It may be the name of another object by now, which is then announced for nothing.
            if let Ok(found) = self.tree.look(listing.fd(), &name) {
                self.expect(touch.beside(found.key));
                announced += 1;
            }
            if announced == place.batch {
                break;
            }
        }
        place.batch = (place.batch * 2).min(MOST);
        Ok(())
    }

    /// The directory of the object of `touch`: by `..` where it is one itself, else by the kernel's last word on its path.
    fn directory_of(&self, touch: Touch) -> Result<OwnedFd> {
        let object = self.tree.open_key(touch.key(), libc::O_PATH)?;
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        match sys::openat(object.as_fd(), c"..", flags, 0) {
            Err(Errno::ENOTDIR) => {}
            outcome => return outcome,
        }
        let path = sys::path_of(object.as_fd()).ok_or(Errno::ENOENT)?;
        let dir = path.parent().and_then(|dir| dir.strip_prefix("/").ok()).ok_or(Errno::ENOENT)?;
        // The root itself has no name beneath itself.
        let dir = CString::new(Path::new(".").join(dir).into_os_string().into_vec()).map_err(|_| Errno::ENOENT)?;
        sys::openat2_beneath(self.tree.root(), &dir, flags, 0)
    }
}

impl Touch {
    /// The same change of `key`, as far as it can be guessed: from the start of a file.
    fn beside(self, key: ObjectKey) -> Touch {
        match self {
            Touch::Entries(_) | Touch::Name(_) => Touch::Entries(key),
            Touch::Attributes(_) => Touch::Attributes(key),
            Touch::Data { .. } => Touch::Data { key, offset: 0, len: 1 },
            Touch::Size(_) => Touch::Size(key),
        }
    }
}

/// The place in `dir`: where it was a moment ago, or at the start.
fn place_in(places: &mut Vec<Place>, dir: ObjectKey) -> &mut Place {
    let now = Instant::now();
    places.retain(|place| now.duration_since(place.used) < FRESH);
    let at = places.iter().position(|place| place.dir == dir).unwrap_or_else(|| {
        if places.len() == PLACES {
            places.remove(0);
        }
        places.push(Place { dir, offset: 0, batch: FIRST, used: now });
        places.len() - 1
    });
    places[at].used = now;
    &mut places[at]
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backing::Tree;
    use crate::journal::{Journal, JournalOptions};
    use crate::stack::{AttrChange, Caller, NodeId, StackOptions};

    const FILES: usize = 40;
    const DIRS: usize = 3;

    fn key(stack: &Stack, path: &str) -> ObjectKey {
        let name = CString::new(path).unwrap();
        let fd = sys::openat2_beneath(stack.tree.root(), &name, libc::O_PATH, 0).unwrap();
        stack.tree.key_of(fd.as_fd()).unwrap()
    }

    fn announced(stack: &Stack) -> usize {
        stack.journal.hot_objects().0
    }

    /// What is announced by `times` waits for `touch` on a stack of its own.
    fn announced_beside(touch: impl Fn(&Stack) -> Touch, times: usize) -> Vec<usize> {
        let (backing, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let dir = backing.path().join("dir");
        std::fs::create_dir(&dir).unwrap();
        (0..FILES).for_each(|number| std::fs::write(dir.join(format!("file{number}")), b"x").unwrap());
        (0..DIRS).for_each(|number| std::fs::create_dir(dir.join(format!("dir{number}"))).unwrap());
        let (journal, _) = Journal::open(&state.path().join("v"), JournalOptions::default()).unwrap();
        let tree = Tree::open(backing.path()).unwrap();
        let stack: Arc<Stack> = Stack::new(tree, journal, StackOptions::default()).unwrap();
        let touch = touch(&stack);
        let counts = (0..times).map(|_| {
            stack.expect_beside(touch);
            announced(&stack)
        });
        counts.collect()
    }

    #[test]
    fn more_and_more_beside_an_object_is_announced_and_each_once() {
        let all = FILES + DIRS;
        let counts = announced_beside(|stack| Touch::Attributes(key(stack, "dir/file7")), 5);
        assert_eq!(counts, [FIRST, 3 * FIRST, all, all, all]);
        let counts = announced_beside(|stack| Touch::Data { key: key(stack, "dir/file0"), offset: 1 << 40, len: 9 }, 3);
        assert_eq!(counts, [FIRST, 3 * FIRST, all]);
    }

    /// A change that waits in a storm asks for what lies beside it; one in calm asks for itself.
    #[test]
    fn a_change_that_waits_in_a_storm_announces_its_neighbours() {
        let (calm, stormy) = (announced_by_a_change(0), announced_by_a_change(20));
        assert_eq!(calm, 1);
        assert!(stormy > calm, "{stormy}");
    }

    fn announced_by_a_change(waits: usize) -> usize {
        let (backing, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        (0..FILES).for_each(|number| std::fs::write(backing.path().join(format!("file{number}")), b"x").unwrap());
        let (journal, _) = Journal::open(&state.path().join("v"), JournalOptions::default()).unwrap();
        let stack = Stack::new(Tree::open(backing.path()).unwrap(), journal, StackOptions::default()).unwrap();
        let entry = stack.lookup(NodeId::ROOT, b"file7").unwrap();
        (0..waits).for_each(|_| stack.storm.wait());
        let change = AttrChange { mode: Some(0o600), ..AttrChange::default() };
        stack.setattr(&Caller::daemon(), entry.node, None, &change).unwrap();
        announced(&stack)
    }

    #[test]
    fn beside_a_directory_whose_entries_change_are_directories() {
        assert_eq!(announced_beside(|stack| Touch::Entries(key(stack, "dir/dir1")), 2), [DIRS, DIRS]);
        assert_eq!(announced_beside(|stack| Touch::Entries(stack.tree.root_key()), 1), [0]);
        assert_eq!(announced_beside(|stack| Touch::Entries(key(stack, "dir")), 1), [1]);
    }
}
