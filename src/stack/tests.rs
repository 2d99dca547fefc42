//! The stack without a mount: each op's effect on the backing directory, and the record it leaves.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;

use super::*;
use crate::journal::JournalOptions;
use crate::record::{Fate, Op, Record, RecordIter};

const ROOT: NodeId = NodeId::ROOT;

struct Bench {
    backing: tempfile::TempDir,
    _state: tempfile::TempDir,
    stack: Arc<Stack>,
}

/// One record: its object, the change, the payload.
type Seen = (Oid, Op, Vec<u8>);

impl Bench {
    fn new() -> Bench {
        Bench::with(StackOptions::default())
    }

    fn with(options: StackOptions) -> Bench {
        let backing = tempfile::tempdir().unwrap();
        let state = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(&state.path().join("v"), JournalOptions::default()).unwrap();
        let tree = Tree::open(backing.path()).unwrap();
        Bench { backing, _state: state, stack: Stack::new(tree, journal, options).unwrap() }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.backing.path().join(name)
    }

    /// All records so far.
    fn records(&self) -> Vec<Seen> {
        let journal = self.stack.journal();
        journal.commit(journal.last_tid()).unwrap();
        let mut reader = journal.reader(Tid::ZERO).unwrap();
        let mut seen = Vec::new();
        while let Some(chunk) = reader.next_chunk(Tid(u64::MAX), 1 << 20).unwrap() {
            for record in RecordIter::new(&chunk.body) {
                let record: Record<'_> = record.unwrap();
                seen.push((record.oid, record.op, record.payload.to_vec()));
            }
        }
        seen
    }

    /// The records that `act` leaves.
    fn records_of<T>(&self, act: impl FnOnce(&Stack) -> T) -> (T, Vec<Seen>) {
        let before = self.stack.journal().last_tid().0 as usize;
        let outcome = act(&self.stack);
        (outcome, self.records().split_off(before))
    }

    fn file(&self, name: &str, data: &[u8]) -> (Entry, FileId) {
        let stack = &self.stack;
        let (entry, opened) = stack.create(&root(), ROOT, name.as_bytes(), 0o100_644, libc::O_RDWR).unwrap();
        if !data.is_empty() {
            stack.write(&root(), entry.node, opened.file, 0, data, plain()).unwrap();
        }
        (entry, opened.file)
    }
}

fn root() -> Caller {
    Caller::daemon()
}

fn user() -> Caller {
    Caller { uid: 1234, gid: 4321, umask: 0o027, ..root() }
}

fn plain() -> WriteMode {
    WriteMode { flags: libc::O_RDWR, privileges: Privileges::Keep, writer: Writer::Caller }
}

fn one(mut records: Vec<Seen>) -> Seen {
    assert_eq!(records.len(), 1, "{records:?}");
    records.remove(0)
}

#[test]
fn a_new_object_belongs_to_its_caller_and_is_recorded_as_it_is() {
    let bench = Bench::new();
    let (entry, records) = bench.records_of(|s| s.mkdir(&user(), ROOT, b"dir", 0o777).unwrap());
    let meta = std::fs::metadata(bench.path("dir")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (1234, 4321, 0o750));
    assert_eq!(entry.node, NodeId(meta.ino()));
    let (oid, op, _) = one(records);
    assert_eq!(oid.ino, meta.ino());
    let Op::Create { slot, shape, attrs, xattrs, .. } = op else { panic!("{op:?}") };
    assert_eq!((slot.parent, slot.name.as_bytes()), (Oid::ROOT, &b"dir"[..]));
    assert!(shape.is_dir() && xattrs.is_empty());
    assert_eq!((attrs.mode, attrs.uid, attrs.gid), (meta.mode(), 1234, 4321));
    // The thread goes back to root for root's next request.
    bench.stack.mkdir(&root(), ROOT, b"mine", 0o777).unwrap();
    let meta = std::fs::metadata(bench.path("mine")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (0, 0, 0o777));
}

#[test]
fn a_failed_op_leaves_no_record() {
    let bench = Bench::new();
    bench.file("file", b"x");
    let (_, records) = bench.records_of(|s| {
        assert_eq!(s.mkdir(&root(), ROOT, b"file", 0o755), Err(Errno::EEXIST));
        assert_eq!(s.unlink(&root(), ROOT, b"none"), Err(Errno::ENOENT));
        assert_eq!(s.rmdir(&root(), ROOT, b"file"), Err(Errno::ENOTDIR));
        let to = (ROOT, &b"file"[..]);
        let noreplace = libc::RENAME_NOREPLACE;
        assert_eq!(s.rename(&root(), (ROOT, b"none"), to, 0), Err(Errno::ENOENT));
        assert_eq!(s.rename(&root(), to, to, noreplace), Err(Errno::EEXIST));
        assert_eq!(s.rename(&root(), to, to, libc::RENAME_WHITEOUT), Err(Errno::EINVAL));
        let node = s.lookup(ROOT, b"file").unwrap().node;
        assert_eq!(s.removexattr(&root(), node, b"user.none"), Err(Errno::ENODATA));
        assert_eq!(s.link(&root(), node, ROOT, b"file"), Err(Errno::EEXIST));
    });
    assert_eq!(records, vec![]);
}

#[test]
fn reserved_names_are_out_of_reach() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path(".dtfs")).unwrap();
    let (entry, _) = bench.file("file", b"");
    let (_, records) = bench.records_of(|s| {
        assert_eq!(s.lookup(ROOT, b".dtfs"), Err(Errno::ENOENT));
        assert_eq!(s.mkdir(&root(), ROOT, b".dtfs", 0o755), Err(Errno::EPERM));
        assert_eq!(s.rmdir(&root(), ROOT, b".dtfs"), Err(Errno::ENOENT));
        let onto = (ROOT, &b".dtfs"[..]);
        assert_eq!(s.rename(&root(), (ROOT, b"file"), onto, 0), Err(Errno::EPERM));
        let name = b"trusted.dtfs.oid";
        assert_eq!(s.setxattr(&root(), entry.node, name, b"x", 0), Err(Errno::EPERM));
        assert_eq!(s.removexattr(&root(), entry.node, name), Err(Errno::EPERM));
        assert_eq!(s.getxattr(entry.node, name), Err(Errno::ENODATA));
    });
    assert_eq!(records, vec![]);
    assert_eq!(list(&bench.stack, ROOT), [".", "..", "file"]);
    assert!(bench.stack.mkdir(&root(), entry_of(&bench, "sub"), b".dtfs", 0o755).is_ok());
}

fn entry_of(bench: &Bench, name: &str) -> NodeId {
    bench.stack.mkdir(&root(), ROOT, name.as_bytes(), 0o755).unwrap().node
}

fn list(stack: &Stack, node: NodeId) -> Vec<String> {
    let dir = stack.opendir(node).unwrap();
    let mut names = Vec::new();
    let mut at = 0;
    loop {
        let mut took = 0;
        // Three entries per answer: the place is found again each time.
        stack
            .readdir(dir, node, at, &mut |listed| {
                if took == 3 {
                    return Room::Full;
                }
                took += 1;
                at = listed.next_offset;
                names.push(String::from_utf8(listed.name.to_vec()).unwrap());
                Room::Taken
            })
            .unwrap();
        if took == 0 {
            break;
        }
    }
    stack.releasedir(dir);
    names.sort();
    names
}

#[test]
fn writes_are_recorded_with_their_bytes_and_the_attributes_after() {
    let bench = Bench::new();
    let (entry, file) = bench.file("file", b"");
    let (written, records) = bench.records_of(|s| s.write(&root(), entry.node, file, 5, b"hello", plain()).unwrap());
    assert_eq!(written, 5);
    let (oid, op, payload) = one(records);
    let meta = std::fs::metadata(bench.path("file")).unwrap();
    assert_eq!(oid.ino, meta.ino());
    assert_eq!(payload, b"hello");
    let Op::Write { offset: 5, attrs } = op else { panic!("{op:?}") };
    assert_eq!((attrs.size, attrs.mtime.sec), (10, meta.mtime()));
    let mut buffer = [9; 16];
    let read = bench.stack.read(entry.node, file, libc::O_RDWR, 0, &mut buffer);
    assert_eq!((read, &buffer[..10]), (Ok(10), &b"\0\0\0\0\0hello"[..]));
}

#[test]
fn an_open_file_outlives_its_name() {
    let bench = Bench::new();
    let (entry, file) = bench.file("file", b"data");
    let (_, records) = bench.records_of(|s| s.unlink(&root(), ROOT, b"file").unwrap());
    let (_, op, _) = one(records);
    assert!(matches!(op, Op::Unlink { fate: Fate::Kept, .. }), "{op:?}");
    let mut buffer = [0; 4];
    bench.stack.read(entry.node, file, libc::O_RDWR, 0, &mut buffer).unwrap();
    assert_eq!(&buffer, b"data");
    assert_eq!(bench.stack.getattr(entry.node, None).unwrap().nlink, 0);
    let ((), records) = bench.records_of(|s| s.release(file));
    let (oid, op, _) = one(records);
    assert_eq!((oid.ino, op), (entry.node.0, Op::Gone));
    // By its number alone it is gone already: who asks so has no inode of it.
    assert_eq!(bench.stack.lookup(entry.node, b".").err(), Some(Errno::ESTALE));
    // The kernel still uses the node: changes happen, and are nobody's business any more.
    let chmod = AttrChange { mode: Some(0o600), ..AttrChange::default() };
    let (stat, records) = bench.records_of(|s| s.setattr(&root(), entry.node, None, &chmod).unwrap());
    assert_eq!((stat.nlink, stat.mode, records), (0, 0o100_600, vec![]));
    bench.stack.forget(entry.node, 1);
    assert_eq!(bench.stack.getattr(entry.node, None), Err(Errno::ESTALE));
    assert_eq!(bench.stack.in_use(), (0, 0));
}

#[test]
fn a_closed_file_goes_with_its_last_name() {
    let bench = Bench::new();
    let (entry, file) = bench.file("file", b"");
    bench.stack.link(&root(), entry.node, ROOT, b"other").unwrap();
    bench.stack.release(file);
    for (name, expected) in [(&b"file"[..], Fate::Kept), (b"other", Fate::Gone)] {
        let (_, records) = bench.records_of(|s| s.unlink(&root(), ROOT, name).unwrap());
        let (_, op, _) = one(records);
        assert!(matches!(op, Op::Unlink { fate, .. } if fate == expected), "{op:?}");
    }
}

#[test]
fn renames_say_what_they_put_out() {
    let bench = Bench::new();
    let (a, a_file) = bench.file("a", b"a");
    let (b, b_file) = bench.file("b", b"b");
    bench.stack.release(a_file);
    bench.stack.release(b_file);
    let dir = entry_of(&bench, "dir");
    let (_, records) = bench.records_of(|s| s.rename(&root(), (ROOT, b"a"), (ROOT, b"b"), 0).unwrap());
    let (oid, op, _) = one(records);
    let Op::Rename { replaced: Some(replaced), .. } = op else { panic!("{op:?}") };
    assert_eq!(oid.ino, a.node.0);
    assert_eq!((replaced.oid.ino, replaced.fate), (b.node.0, Fate::Gone));
    let exchange = libc::RENAME_EXCHANGE;
    let (_, records) = bench.records_of(|s| s.rename(&root(), (ROOT, b"b"), (ROOT, b"dir"), exchange).unwrap());
    let (oid, op, _) = one(records);
    assert_eq!(oid.ino, a.node.0);
    assert!(matches!(op, Op::Exchange { other, .. } if other.ino == dir.0), "{op:?}");
    assert!(std::fs::metadata(bench.path("b")).unwrap().is_dir());
}

#[test]
fn a_rename_between_two_names_of_one_object_changes_nothing() {
    let bench = Bench::new();
    let (entry, _) = bench.file("a", b"");
    bench.stack.link(&root(), entry.node, ROOT, b"b").unwrap();
    let (_, records) = bench.records_of(|s| s.rename(&root(), (ROOT, b"a"), (ROOT, b"b"), 0).unwrap());
    assert_eq!(records, vec![]);
    assert!(bench.path("a").exists() && bench.path("b").exists());
}

#[test]
fn one_setattr_is_one_record() {
    let bench = Bench::new();
    let (entry, file) = bench.file("file", b"0123456789");
    let time = crate::base::Timespec { sec: -5, nsec: 7 };
    let change = AttrChange {
        mode: Some(0o4711),
        uid: Some(77),
        size: Some(4),
        mtime: TimeChange::Set(time),
        ..AttrChange::default()
    };
    let (stat, records) = bench.records_of(|s| s.setattr(&root(), entry.node, Some(file), &change).unwrap());
    let (_, op, _) = one(records);
    let Op::Truncate { attrs } = op else { panic!("{op:?}") };
    assert_eq!((attrs.size, attrs.uid, attrs.mode), (4, 77, 0o104_711));
    assert_eq!((attrs.mtime, stat.mtime), (time, time));
    let chmod = AttrChange { mode: Some(0o600), ..AttrChange::default() };
    let (_, records) = bench.records_of(|s| s.setattr(&root(), entry.node, None, &chmod).unwrap());
    assert!(matches!(one(records).1, Op::SetAttr { attrs } if attrs.mode == 0o100_600));
}

#[test]
fn a_user_s_write_takes_set_user_id_away_and_root_s_does_not() {
    let bench = Bench::new();
    let (entry, file) = bench.file("file", b"x");
    let suid = || std::fs::set_permissions(bench.path("file"), PermissionsExt::from_mode(0o4755));
    for (privileges, expected) in [(Privileges::Keep, 0o104_755), (Privileges::Kill, 0o100_755)] {
        suid().unwrap();
        let mode = WriteMode { privileges, ..plain() };
        let (_, records) = bench.records_of(|s| s.write(&user(), entry.node, file, 0, b"y", mode).unwrap());
        let (_, op, _) = one(records);
        assert!(matches!(op, Op::Write { attrs, .. } if attrs.mode == expected), "{op:?}");
    }
    suid().unwrap();
    let chmod = AttrChange { mode: Some(0o6755), ..AttrChange::default() };
    // The thread is still without CAP_FSETID from the write: it must come back for this.
    let stat = bench.stack.setattr(&root(), entry.node, None, &chmod).unwrap();
    assert_eq!(stat.mode, 0o106_755);
}

#[test]
fn every_kind_of_change_leaves_its_record() {
    let bench = Bench::new();
    let (entry, file) = bench.file("file", b"0123456789");
    let (copy, copy_file) = bench.file("copy", b"");
    let (_, records) = bench.records_of(|s| {
        let (n, r) = (entry.node, root());
        s.symlink(&r, ROOT, b"link", b"some/where").unwrap();
        s.mknod(&r, ROOT, b"fifo", libc::S_IFIFO | 0o600, 0).unwrap();
        s.setxattr(&r, n, b"user.a", b"1", 0).unwrap();
        s.removexattr(&r, n, b"user.a").unwrap();
        s.fallocate(&r, n, file, 0, 0, 4096).unwrap();
        let to = (copy.node, copy_file, 2);
        assert_eq!(s.copy_file_range(&r, (n, file, 4), to, 3), Ok(3));
        s.open(&r, n, libc::O_WRONLY | libc::O_TRUNC).unwrap();
        s.rmdir(&r, ROOT, {
            s.mkdir(&r, ROOT, b"d", 0o755).unwrap();
            b"d"
        })
        .unwrap();
    });
    let words: Vec<_> = records.iter().map(|(_, op, _)| op.word()).collect();
    let expected = ["create", "create", "setxattr", "removexattr", "allocate", "write", "truncate", "create", "unlink"];
    assert_eq!(words, expected);
    assert_eq!(records[5].2, b"456");
    assert!(matches!(&records[0].1, Op::Create { shape, .. } if shape.link_text == b"some/where"));
    assert_eq!(std::fs::read(bench.path("copy")).unwrap(), b"\0\x00456");
}

#[test]
fn dot_and_dot_dot_are_answered_for_every_node_and_stop_at_the_root() {
    let bench = Bench::new();
    let (file, _) = bench.file("file", b"");
    let dir = entry_of(&bench, "dir");
    let s = &bench.stack;
    assert_eq!(s.lookup(file.node, b".").unwrap().node, file.node);
    assert_eq!(s.lookup(dir, b"..").unwrap().node, ROOT);
    assert_eq!(s.lookup(ROOT, b"..").unwrap().node, ROOT);
    assert_eq!(s.lookup(ROOT, b".").unwrap().generation, 0);
    assert_eq!(s.lookup(ROOT, &[b'x'; 256]), Err(Errno::ENAMETOOLONG));
}

#[test]
fn an_unknown_node_needs_proof_that_it_lies_in_the_tree() {
    let above = tempfile::tempdir().unwrap();
    for dir in ["tree/inside", "sibling"] {
        std::fs::create_dir_all(above.path().join(dir)).unwrap();
    }
    std::fs::write(above.path().join("tree/file"), b"").unwrap();
    let (journal, _) = Journal::open(&above.path().join("journal"), JournalOptions::default()).unwrap();
    let tree = Tree::open(&above.path().join("tree")).unwrap();
    let stack = Stack::new(tree, journal, StackOptions::default()).unwrap();
    let node = |path: &str| NodeId(std::fs::metadata(above.path().join(path)).unwrap().ino());
    if stack.lookup(node("tree/inside"), b".") == Err(Errno::ESTALE) {
        return; // this filesystem finds no inode without its generation
    }
    assert_eq!(stack.lookup(node("tree/inside"), b"..").unwrap().node, ROOT);
    assert_eq!(stack.lookup(node("sibling"), b"."), Err(Errno::ESTALE));
    assert_eq!(stack.lookup(NodeId(above.path().metadata().unwrap().ino()), b"."), Err(Errno::ESTALE));
    assert_eq!(stack.lookup(node("tree/file"), b"."), Err(Errno::ESTALE));
}

/// An NFS server passes the answer on as a delay.
#[test]
fn a_second_walk_for_an_unknown_number_is_not_waited_for() {
    let bench = Bench::new();
    std::fs::write(bench.path("file"), b"").unwrap();
    let node = NodeId(std::fs::metadata(bench.path("file")).unwrap().ino());
    bench.stack.remember_inodes(&bench._state.path().join("inodes"), None).unwrap();
    let walk = bench.stack.walk.lock();
    assert_eq!(bench.stack.lookup(node, b"."), Err(Errno::EAGAIN));
    drop(walk);
    let found = bench.stack.lookup(node, b".").map(|entry| entry.node);
    // Some filesystems find no inode without its generation, and then by the list only.
    assert_eq!(found, Ok(node));
}

#[test]
fn an_object_that_the_kernel_would_take_for_the_root_is_refused() {
    let stack = Bench::new().stack;
    let key = |ino| crate::base::ObjectKey { ino, generation: 7 };
    assert_eq!((stack.refuse_inode_one(key(1)), stack.refuse_inode_one(key(2))), (Err(Errno::EIO), Ok(())));
}

#[test]
fn a_handle_of_another_process_life_is_opened_again() {
    let bench = Bench::new();
    let (entry, _) = bench.file("file", b"hello");
    let old = FileId(42);
    let mut buffer = [0; 5];
    let read = bench.stack.read(entry.node, old, libc::O_RDONLY, 0, &mut buffer);
    assert_eq!((read, &buffer), (Ok(5), b"hello"));
    bench.stack.write(&root(), entry.node, FileId(43), 0, b"j", plain()).unwrap();
    assert_eq!(std::fs::read(bench.path("file")).unwrap(), b"jello");
}

/// What a connection that was taken over may send first on a handle, in any order: none of it knows the handle.
#[test]
fn every_op_on_an_unknown_handle_opens_it_again_or_does_no_harm() {
    let bench = Bench::new();
    let (entry, _) = bench.file("file", b"hello");
    let (s, node) = (&bench.stack, entry.node);
    let open = s.in_use().1;
    let old = FileId(42);
    s.flush(old).unwrap();
    s.release(old);
    s.releasedir(FileId(41));
    assert_eq!(s.getattr(node, Some(old)).unwrap().size, 5);
    assert_eq!(s.in_use().1, open, "nothing was opened for those");
    // For reading first, then for writing: the same handle, and one release ends it.
    s.fsync(node, old, false).unwrap();
    assert_eq!(s.lseek(node, old, 0, libc::SEEK_HOLE), Ok(5));
    s.write(&root(), node, old, 5, b" you", plain()).unwrap();
    s.fallocate(&root(), node, old, 0, 0, 4096).unwrap();
    assert_eq!(s.copy_file_range(&root(), (node, FileId(44), 0), (node, old, 9), 5), Ok(5));
    s.setattr(&root(), node, Some(FileId(45)), &AttrChange { size: Some(12), ..AttrChange::default() }).unwrap();
    let get_flags = 0x8008_6601;
    let flags = s.ioctl(&root(), node, FileId(46), get_flags, &[]);
    assert!(flags.is_ok() || flags == Err(Errno::ENOTTY), "{flags:?}");
    assert_eq!(std::fs::read(bench.path("file")).unwrap(), b"hello youhel");
    assert_eq!(s.in_use().1, open + 2, "the handle, and the one that was copied from");
    s.release(old);
    s.release(FileId(44));
    assert_eq!(s.in_use().1, open);
    // Nothing counts it as open any more: the last name takes the object with it.
    let ((), records) = bench.records_of(|s| s.unlink(&root(), ROOT, b"file").unwrap());
    assert!(matches!(one(records).1, Op::Unlink { fate: Fate::Kept, .. }), "its creator still has it open");
}

#[test]
fn an_unknown_directory_handle_goes_on_at_its_offset() {
    let bench = Bench::new();
    (0..100).for_each(|i| std::fs::write(bench.path(&format!("f{i:02}")), b"").unwrap());
    let s = &bench.stack;
    let list = |id: FileId, offset: u64| {
        let mut seen = Vec::new();
        let mut take = |listed: &Listed<'_>| {
            seen.push((listed.name.to_vec(), listed.next_offset));
            Room::Taken
        };
        s.readdir(id, ROOT, offset, &mut take).unwrap();
        seen
    };
    let whole = list(s.opendir(ROOT).unwrap(), 0);
    let middle = whole.len() / 2;
    assert_eq!(list(FileId(42), whole[middle].1), whole[middle + 1..]);
    s.fsyncdir(ROOT, FileId(43), false).unwrap();
    s.releasedir(FileId(42));
    s.releasedir(FileId(43));
}

#[test]
fn requests_that_meet_on_an_unknown_handle_open_it_once() {
    let bench = Bench::new();
    let (entry, opened) = bench.file("file", b"hello");
    let s = &bench.stack;
    s.release(opened);
    std::thread::scope(|scope| {
        for at in 0..8 {
            scope.spawn(move || s.write(&root(), entry.node, FileId(42), at, b"x", plain()).unwrap());
        }
    });
    s.release(FileId(42));
    let ((), records) = bench.records_of(|s| s.unlink(&root(), ROOT, b"file").unwrap());
    assert!(matches!(one(records).1, Op::Unlink { fate: Fate::Gone, .. }), "nobody has it open any more");
}

#[test]
fn listing_goes_on_where_it_was_while_entries_go() {
    let bench = Bench::new();
    for i in 0..500 {
        std::fs::write(bench.path(&format!("f{i:03}")), b"").unwrap();
    }
    let s = &bench.stack;
    let dir = s.opendir(ROOT).unwrap();
    let (mut at, mut seen) = (0, 0);
    loop {
        let mut batch = Vec::new();
        s.readdirplus(dir, ROOT, at, &mut |listed| {
            if batch.len() == 50 {
                return Room::Full;
            }
            at = listed.next_offset;
            batch.push((listed.name.to_vec(), listed.entry));
            Room::Taken
        })
        .unwrap();
        if batch.is_empty() {
            break;
        }
        for (name, entry) in batch.iter().filter(|(name, _)| name.starts_with(b"f")) {
            seen += 1;
            s.forget(entry.unwrap().node, 1);
            std::fs::remove_file(bench.backing.path().join(std::ffi::OsStr::from_bytes(name))).unwrap();
        }
    }
    assert_eq!((seen, s.in_use().0), (500, 0));
}

#[test]
fn an_access_time_that_moved_is_recorded_once_at_close() {
    let bench = Bench::new();
    let (entry, file) = bench.file("file", b"hello");
    bench.stack.release(file);
    let old = crate::base::Timespec { sec: 1000, nsec: 0 };
    let change = AttrChange { atime: TimeChange::Set(old), ..AttrChange::default() };
    bench.stack.setattr(&root(), entry.node, None, &change).unwrap();
    let opened = bench.stack.open(&root(), entry.node, libc::O_RDONLY).unwrap();
    let (_, records) = bench.records_of(|s| {
        let mut buffer = [0; 5];
        for _ in 0..3 {
            s.read(entry.node, opened.file, libc::O_RDONLY, 0, &mut buffer).unwrap();
        }
    });
    assert_eq!(records, vec![]);
    let ((), records) = bench.records_of(|s| s.release(opened.file));
    if bench.stack.getattr(entry.node, None).unwrap().atime == old {
        return; // mounted with noatime
    }
    assert!(matches!(one(records).1, Op::SetAttr { attrs } if attrs.atime != old));
}

#[test]
fn a_failed_volume_refuses_every_change_and_still_reads() {
    let bench = Bench::new();
    let (entry, file) = bench.file("file", b"hello");
    crate::base::faults::arm("backing.fsync", crate::base::faults::Fault::Fail(Errno::EIO), 1);
    assert_eq!(bench.stack.fsync(entry.node, file, false), Err(Errno::EIO));
    assert!(bench.stack.has_failed());
    let (_, records) = bench.records_of(|s| {
        let wrote = s.write(&root(), entry.node, file, 0, b"x", plain());
        assert_eq!(wrote, Err(Errno::EIO));
        assert_eq!(s.mkdir(&root(), ROOT, b"d", 0o755).err(), Some(Errno::EIO));
        assert_eq!(s.fsync(entry.node, file, false), Err(Errno::EIO));
    });
    assert_eq!(records, vec![]);
    assert!(bench.stack.lookup(ROOT, b"file").is_ok());
}
