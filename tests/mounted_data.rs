//! Data: ranges, holes, mappings, appending, synchronous writes, times, sizes; compared with the bare directory.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use dtfs::base::Timespec;
use dtfs::sys::{self, Errno, TimeChange};
use support::both::{Both, Facts, c_path};
use support::mapping;
use support::process::wait_until;
use support::scratch::FileSystem;

const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;

fn on_every_filesystem(context: &str, scenario: impl Fn(&Both)) {
    for kind in [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs] {
        let both = Both::on(kind);
        scenario(&both);
        both.finish(&format!("{context} on {kind:?}"));
    }
}

fn fresh(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap()
}

/// Where data begins and ends, as SEEK_DATA and SEEK_HOLE say.
fn data_map(file: &File) -> String {
    let (mut map, mut at) = (Vec::new(), 0);
    while let Ok(data) = sys::lseek(file.as_fd(), at, libc::SEEK_DATA) {
        let hole = sys::lseek(file.as_fd(), data as i64, libc::SEEK_HOLE).unwrap();
        map.push(format!("{data}-{hole}"));
        at = hole as i64;
    }
    map.join(" ")
}

fn content(file: &File) -> String {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    blake3::hash(&bytes).to_hex()[..16].to_owned()
}

fn ranges(dir: &Path, facts: &mut Facts) {
    let modes = [0, KEEP, PUNCH | KEEP, PUNCH, ZERO, ZERO | KEEP, PUNCH | ZERO | KEEP, 0x4000];
    for mode in modes {
        for (offset, len) in [(8192, 16384), (5000, 10_000), (60_000, 20_000), (100_000, 4096), (0, 0)] {
            let file = fresh(&dir.join(format!("{mode}-{offset}")));
            file.write_all_at(&[7; 65536], 0).unwrap();
            let what = format!("mode {mode:#x} at {offset}");
            facts.sys(&what, sys::fallocate(file.as_fd(), mode, offset, len));
            facts.add(&what, format!("size {} {}", file.metadata().unwrap().len(), content(&file)));
            if mode & PUNCH != 0 {
                file.sync_all().unwrap();
                facts.add(&what, data_map(&file));
            }
        }
    }
    let reader = File::open(dir.join("0-8192")).unwrap();
    facts.sys("a reader's handle", sys::fallocate(reader.as_fd(), 0, 0, 4096));
    facts.sys(
        "beyond what a file can be",
        sys::fallocate(fresh(&dir.join("huge")).as_fd(), 0, i64::MAX as u64 - 4096, 8192),
    );
}

#[test]
fn every_mode_of_fallocate() {
    on_every_filesystem("ranges", |both| {
        both.same("ranges", ranges);
        // Differences, in src/stack/SEMANTICS.md: FUSE does not carry these modes.
        let file = fresh(&both.mount().join("moved"));
        file.write_all_at(&[7; 65536], 0).unwrap();
        for mode in [libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE, libc::FALLOC_FL_UNSHARE_RANGE] {
            assert_eq!(sys::fallocate(file.as_fd(), mode, 0, 4096), Err(Errno::EOPNOTSUPP));
        }
    });
}

/// What was written a moment ago is data, whoever wrote it.
fn holes(dir: &Path, facts: &mut Facts) {
    let file = fresh(&dir.join("holes"));
    file.set_len(4 << 20).unwrap();
    facts.add("empty", data_map(&file));
    file.write_all_at(&[1; 4096], 1 << 20).unwrap();
    facts.add("written through this handle", data_map(&file));
    OpenOptions::new().write(true).open(dir.join("holes")).unwrap().write_all_at(&[1; 4096], 2 << 20).unwrap();
    facts.add("written through another", data_map(&file));
    mapping::write(file.as_fd(), 3 << 20, &[1; 4096], 4 << 20, true).unwrap();
    facts.add("written through a mapping", data_map(&file));
    facts.sys("behind the end", sys::lseek(file.as_fd(), 5 << 20, libc::SEEK_DATA));
    facts.sys("hole behind the end", sys::lseek(file.as_fd(), 5 << 20, libc::SEEK_HOLE));
    facts.add("hole at the end", format!("{:?}", sys::lseek(file.as_fd(), (4 << 20) - 1, libc::SEEK_HOLE)));
    facts.sys("a negative place", sys::lseek(file.as_fd(), -1, libc::SEEK_DATA));
}

/// Files much larger than the disk.
fn sparse(dir: &Path, facts: &mut Facts) {
    let file = fresh(&dir.join("sparse"));
    for offset in [0, 1 << 32, (1 << 40) + 123, (1 << 43) - 5] {
        facts.end(offset, file.write_all_at(b"here", offset));
    }
    let mut buffer = [0; 8];
    file.read_exact_at(&mut buffer, (1 << 40) + 121).unwrap();
    facts.add("read", format!("{buffer:?} {} {}", file.metadata().unwrap().len(), data_map(&file)));
    facts.end("truncate", file.set_len((1 << 43) - 4096));
    facts.end("truncate too far", fresh(&dir.join("limit")).set_len(i64::MAX as u64));
    facts.end("write too far", fresh(&dir.join("far")).write_all_at(b"x", i64::MAX as u64 - 1));
    let far = File::open(dir.join("far")).unwrap();
    let mut end = [0; 2];
    facts.end("read at the end of all offsets", far.read_exact_at(&mut end[..1], i64::MAX as u64 - 1));
    facts.add("there", format!("{end:?} {}", far.metadata().unwrap().len()));
    facts.end("offset that is none", file.write_all_at(b"x", u64::MAX));
}

/// Reserved space whose zeros were read looks like data for as long as the page stays.
fn reserved(dir: &Path, facts: &mut Facts) {
    let file = fresh(&dir.join("reserved"));
    facts.sys("reserve", sys::fallocate(file.as_fd(), 0, 0, 65536));
    facts.add("read", content(&File::open(dir.join("reserved")).unwrap()));
    facts.sys("punch within blocks", sys::fallocate(file.as_fd(), PUNCH | KEEP, 5000, 20_000));
    facts.add("read again", content(&File::open(dir.join("reserved")).unwrap()));
}

#[test]
fn holes_and_sparse_files() {
    on_every_filesystem("holes", |both| {
        both.same("holes", holes);
        both.same("sparse", sparse);
        both.same("reserved", reserved);
    });
}

fn append_from_two(path: &Path, number: u8) {
    for _ in 0..200 {
        let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
        for _ in 0..5 {
            file.write_all(&[number; 10]).unwrap();
        }
    }
}

fn appending(dir: &Path, facts: &mut Facts) {
    let path = dir.join("log");
    std::thread::scope(|scope| {
        scope.spawn(|| append_from_two(&path, 1));
        scope.spawn(|| append_from_two(&path, 2));
        let shell = format!("for i in $(seq 200); do printf aaaaaaaaaa >> '{}'; done", path.display());
        assert!(Command::new("sh").args(["-c", &shell]).status().unwrap().success());
    });
    let bytes = fs::read(&path).unwrap();
    let whole = bytes.chunks(10).filter(|piece| piece.iter().all(|byte| *byte == piece[0])).count();
    facts.add("pieces", format!("{whole} of {} bytes", bytes.len()));
    // The pieces' order is the scheduler's: the target must have this one.
    let mut file = OpenOptions::new().append(true).read(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    facts.end("append after a seek", file.write_all(b"at the end"));
    facts.add("place", file.stream_position().unwrap());
    facts.end("pwrite of an appending handle", file.write_all_at(b"also there", 0));
    facts.add("size", file.metadata().unwrap().len());
}

fn pwritev2(file: &File, data: &[u8], offset: i64, flags: i32) -> sys::Result<usize> {
    let part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    #[allow(unsafe_code, reason = "pwritev2 is not in nix")]
    // SAFETY: one part, which lives; the kernel only reads it.
    let written = unsafe { libc::pwritev2(file.as_raw_fd(), &raw const part, 1, offset, flags) };
    Errno::result(written).map(|len| len as usize)
}

fn synchronous(dir: &Path, facts: &mut Facts) {
    for (name, flags) in [("sync", libc::O_SYNC), ("dsync", libc::O_DSYNC), ("direct", libc::O_DIRECT | libc::O_SYNC)] {
        let file = OpenOptions::new().write(true).create_new(true).custom_flags(flags).open(dir.join(name)).unwrap();
        #[repr(align(4096))]
        struct Page([u8; 4096]);
        facts.end(name, file.write_all_at(&Page([5; 4096]).0, 8192));
        facts.end(name, file.sync_data());
        facts.add(name, content(&File::open(dir.join(name)).unwrap()));
    }
    let file = fresh(&dir.join("flags"));
    for (name, flags) in [
        ("RWF_SYNC", libc::RWF_SYNC),
        ("RWF_DSYNC", libc::RWF_DSYNC),
        ("RWF_APPEND", libc::RWF_APPEND),
        ("RWF_HIPRI", libc::RWF_HIPRI),
    ] {
        facts.add(name, format!("{:?}", pwritev2(&file, name.as_bytes(), 3, flags)));
        facts.add(name, content(&file));
    }
    facts.end("fsync of a directory", File::open(dir).unwrap().sync_all());
}

#[test]
fn appending_and_synchronous_writers() {
    on_every_filesystem("writers", |both| {
        both.same("appending", appending);
        both.same("synchronous", synchronous);
    });
}

fn mappings(dir: &Path, facts: &mut Facts) {
    let path = dir.join("mapped");
    fs::write(&path, vec![b'.'; 16384]).unwrap();
    let (reader, both) = (File::open(&path).unwrap(), OpenOptions::new().read(true).write(true).open(&path).unwrap());
    let (shared, private) =
        (mapping::Held::new(both.as_fd(), 16384, true), mapping::Held::new(reader.as_fd(), 16384, false));
    let seen = |at: usize| (shared.byte(at), private.byte(at));
    facts.add("at first", format!("{:?}", seen(100)));
    OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"W", 100).unwrap();
    facts.add("after a write past the cache", format!("{:?}", seen(100)));
    shared.set(5000, b'S');
    let mut byte = [0];
    reader.read_exact_at(&mut byte, 5000).unwrap();
    facts.add("a store is read", format!("{byte:?} {:?}", seen(5000)));
    private.set(9000, b'P');
    reader.read_exact_at(&mut byte, 9000).unwrap();
    facts.add("a private store is not", format!("{byte:?} {:?}", seen(9000)));
    both.write_all_at(b"C", 9000).unwrap();
    facts.add("a private page stays", format!("{:?}", seen(9000)));
    facts.sys("a writer's mapping of a reader's handle", mapping::write(reader.as_fd(), 0, b"x", 10, false));
    drop((shared, private));
    both.sync_all().unwrap();
    facts.add("content", content(&both));
}

fn nameless(dir: &Path, facts: &mut Facts) {
    let path = dir.join("gone");
    let mut file = fresh(&path);
    file.write_all(b"before").unwrap();
    fs::remove_file(&path).unwrap();
    facts.end("write after unlink", file.write_all(b" and after"));
    facts.end("truncate after unlink", file.set_len(12));
    facts.end("chmod after unlink", file.set_permissions(fs::Permissions::from_mode(0o600)));
    facts.sys("xattr after unlink", sys::setxattr(file.as_fd(), c"user.a", b"b", 0));
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    facts.end(path.exists(), file.read_to_string(&mut text));
    facts.add("text", format!("{text} {} links", file.metadata().unwrap().nlink()));
    let other = dir.join("replaced");
    let old = fresh(&other);
    old.write_all_at(b"old", 0).unwrap();
    fs::write(dir.join("new"), b"new").unwrap();
    fs::rename(dir.join("new"), &other).unwrap();
    facts.end("write to what was renamed over", old.write_all_at(b"still", 0));
    facts.add("the name shows", fs::read_to_string(&other).unwrap());
    let again = fs::read_to_string(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&old)));
    facts.add("opened again through /proc", again.map_err(|error| error.to_string()).unwrap_or_else(|error| error));
}

#[test]
fn mappings_and_files_without_a_name() {
    on_every_filesystem("mappings", |both| {
        both.same("mappings", mappings);
        both.same("nameless", nameless);
    });
}

fn times(dir: &Path, facts: &mut Facts) {
    let seconds = [
        0,
        1,
        -1,
        -2,
        -86_400,
        -2_147_483_648,
        -2_147_483_649,
        2_147_483_647,
        2_147_483_648,
        4_294_967_296,
        15_032_385_535,
        15_032_385_536,
        i64::MAX / 1_000_000_000,
        i64::MIN / 1_000_000_000 + 1,
    ];
    for sec in seconds {
        for nsec in [0, 1, 500_000_000, 999_999_999] {
            let path = dir.join(format!("{sec}.{nsec}"));
            fs::write(&path, b"").unwrap();
            let fd = sys::openat(nix::fcntl::AT_FDCWD, &c_path(&path), libc::O_PATH, 0).unwrap();
            let time = TimeChange::Set(Timespec { sec, nsec });
            facts.sys(format!("{sec}.{nsec}"), sys::utimens(fd.as_fd(), time, time));
            let stat = fs::metadata(&path).unwrap();
            let shown = (stat.mtime(), stat.mtime_nsec(), stat.atime(), stat.atime_nsec());
            facts.add(format!("{sec}.{nsec}"), format!("{shown:?}"));
        }
    }
}

#[test]
fn times_before_1970_and_after_2038() {
    on_every_filesystem("times", |both| both.same("times", times));
}

/// fuser 0.18 cannot count back from the smallest number of seconds: whoever sets such a time must not end a worker.
#[test]
fn the_earliest_time_there_is_harms_nothing() {
    let m = support::mounted::Mounted::new();
    for (sec, nsec) in [(i64::MIN, 0), (i64::MIN, 1), (i64::MIN + 1, 999_999_999), (i64::MAX, 999_999_999)] {
        for number in 0..12 {
            let path = m.path(&format!("{number}"));
            fs::write(&path, b"").unwrap();
            let fd = sys::openat(nix::fcntl::AT_FDCWD, &c_path(&path), libc::O_PATH, 0).unwrap();
            let time = TimeChange::Set(Timespec { sec, nsec });
            let _ = sys::utimens(fd.as_fd(), time, time);
        }
    }
    wait_until("the mount to answer", std::time::Duration::from_secs(5), || fs::metadata(m.path("0")).ok());
    assert!(!m.stack.has_failed());
}

#[test]
fn statfs_shows_the_space_behind() {
    let both = Both::on(FileSystem::Ext4);
    let facts = |path: &Path| {
        let stat = nix::sys::statvfs::statvfs(path).unwrap();
        (stat.block_size(), stat.fragment_size(), stat.blocks(), stat.files(), stat.name_max())
    };
    assert_eq!(facts(both.bare()), facts(both.mount()));
    let free = |path: &Path| nix::sys::statvfs::statvfs(path).unwrap().blocks_available();
    assert!(free(both.bare()).abs_diff(free(both.mount())) < 256);
    fs::write(both.mount().join("f"), b"x").unwrap();
    both.finish("statfs");
}

/// Kernel limit, in src/stack/SEMANTICS.md: the copy shares nothing, and a failed one says so as the kernel does.
fn copying(dir: &Path, facts: &mut Facts) {
    let source = fresh(&dir.join("source"));
    source.write_all_at(&vec![3; 300_000], 0).unwrap();
    let target = fresh(&dir.join("target"));
    let copy = |from, to, len| sys::copy_file_range(source.as_fd(), from, target.as_fd(), to, len);
    facts.add("whole", format!("{:?}", copy(0, 0, 300_000)));
    facts.add("past the end", format!("{:?}", copy(299_990, 500_000, 4096)));
    facts.add("behind the end", format!("{:?}", copy(400_000, 0, 4096)));
    facts.add("overlapping", format!("{:?}", sys::copy_file_range(source.as_fd(), 0, source.as_fd(), 100, 4096)));
    facts.add("content", content(&target));
    facts.end("io::copy", io::copy(&mut &source, &mut File::create(dir.join("copy")).unwrap()));
}

#[test]
fn ranges_are_copied_between_files() {
    on_every_filesystem("copies", |both| both.same("copies", copying));
}
