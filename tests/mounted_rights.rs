//! Owners, modes, access control lists and privileges: on the mount as on the bare directory, and so on the target.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics with the reason")]

mod support;

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;

use dtfs::sys;
use support::both::{Both, Facts, c_path};
use support::scratch::FileSystem;
use support::user::{SOMEONE, User};

const GROUP: u32 = 4321;
/// cap_net_raw+ep, as setcap(8) writes it (struct vfs_cap_data, version 2).
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn on_every_filesystem(context: &str, scenario: impl Fn(&Both)) {
    for kind in [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs] {
        let both = Both::on(kind);
        scenario(&both);
        both.finish(&format!("{context} on {kind:?}"));
    }
}

fn set_xattr(path: &Path, name: &str, value: &[u8], flags: i32) -> sys::Result<()> {
    let fd = sys::openat(nix::fcntl::AT_FDCWD, &c_path(path), libc::O_PATH | libc::O_NOFOLLOW, 0)?;
    sys::setxattr(fd.as_fd(), &std::ffi::CString::new(name).unwrap(), value, flags)
}

fn remove_xattr(path: &Path, name: &str) -> sys::Result<()> {
    let fd = sys::openat(nix::fcntl::AT_FDCWD, &c_path(path), libc::O_PATH | libc::O_NOFOLLOW, 0)?;
    sys::removexattr(fd.as_fd(), &std::ffi::CString::new(name).unwrap())
}

/// An access control list as linux/posix_acl_xattr.h has it: tag, permissions, id.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

const NONE: u32 = u32::MAX;
const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

/// user::U, user:1000:rwx, group::G, mask::M, other::O.
fn full_acl(user: u16, group: u16, mask: u16, other: u16) -> Vec<u8> {
    acl(&[(1, user, NONE), (2, 7, 1000), (4, group, NONE), (0x10, mask, NONE), (0x20, other, NONE)])
}

fn privileged(path: &Path) {
    fs::write(path, vec![b'x'; 8192]).unwrap();
    set_xattr(path, "security.capability", &CAPABILITY, 0).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o6777)).unwrap();
}

fn writer(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

type Change = (&'static str, fn(&Path) -> std::io::Result<()>);

const CHANGES: [Change; 12] = [
    ("write", |path| OpenOptions::new().write(true).open(path)?.write_all_at(b"y", 5)),
    ("write through a cached handle", |path| writer(path).write_all_at(b"y", 5)),
    ("append", |path| std::io::Write::write_all(&mut OpenOptions::new().append(true).open(path)?, b"y")),
    ("write of nothing", |path| OpenOptions::new().write(true).open(path)?.write_all_at(b"", 5)),
    ("truncate", |path| Ok(nix::unistd::truncate(path, 100)?)),
    ("truncate an open file", |path| writer(path).set_len(100)),
    ("truncate to the same size", |path| writer(path).set_len(8192)),
    ("open with O_TRUNC", |path| OpenOptions::new().write(true).truncate(true).open(path).map(drop)),
    ("allocate", |path| Ok(sys::fallocate(writer(path).as_fd(), 0, 0, 16384)?)),
    ("punch", |path| Ok(sys::fallocate(writer(path).as_fd(), 3, 0, 4096)?)),
    ("copy_file_range", |path| {
        let file = writer(path);
        Ok(sys::copy_file_range(file.as_fd(), 0, file.as_fd(), 10, 5).map(drop)?)
    }),
    ("read", |path| fs::read(path).map(drop)),
];

fn privileges(dir: &Path, facts: &mut Facts) {
    for (index, (what, change)) in CHANGES.into_iter().enumerate() {
        for user in [None, Some(SOMEONE)] {
            let path = dir.join(format!("{index}-{}", user.map_or(0, |user| user.uid)));
            privileged(&path);
            let end = match user {
                None => change(&path),
                Some(user) => user.does(|| change(&path)),
            };
            let who = user.map_or("root", |_| "a user");
            facts.end(format!("{what} by {who}"), end);
            facts.object(format!("after {what} by {who}"), &path);
        }
    }
}

/// Differences: see src/stack/SEMANTICS.md.
#[test]
fn privileges_that_go_or_stay_on_the_mount_only() {
    let both = Both::on(FileSystem::Ext4);
    let path = both.mount().join("program");
    privileged(&path);
    support::mapping::write(writer(&path).as_fd(), 9, b"map", 8192, true).unwrap();
    assert_eq!(support::both::xattrs(&path).unwrap(), []);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o6777);
    chown(&path, None, None).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o6777);
    both.finish("differences");
}

#[test]
fn changes_of_data_take_privileges_away() {
    on_every_filesystem("privileges", |both| {
        both.same("privileges", privileges);
    });
}

fn owners(dir: &Path, facts: &mut Facts) {
    let member = User { groups: &[GROUP], ..SOMEONE };
    for (index, (uid, gid, mode)) in [
        (None, Some(GROUP), 0o6755),
        (Some(1234), None, 0o6755),
        (None, None, 0o6755),
        (Some(0), Some(0), 0o2644),
        (Some(3_000_000_000), Some(4_294_967_294), 0o755),
        (Some(1234), Some(1234), 0o6711),
    ]
    .into_iter()
    .enumerate()
    {
        let path = dir.join(format!("root-{index}"));
        privileged(&path);
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        // A difference: the mount cannot tell chown(-1, -1) by root from a write. See src/stack/SEMANTICS.md.
        if (uid, gid) != (None, None) {
            facts.end("chown by root", chown(&path, uid, gid));
            facts.object("after chown by root", &path);
        }
        let mine = dir.join(format!("mine-{index}"));
        privileged(&mine);
        chown(&mine, Some(SOMEONE.uid), Some(SOMEONE.gid)).unwrap();
        fs::set_permissions(&mine, Permissions::from_mode(mode)).unwrap();
        facts.end("chown by the owner", member.does(|| chown(&mine, uid, gid)));
        facts.object("after chown by the owner", &mine);
    }
    let huge = User { uid: 3_333_333_333, gid: 4_000_000_000, groups: &[], umask: 0 };
    facts.end("create by a high id", huge.does(|| fs::write(dir.join("high"), b"high")));
    facts.object("high", &dir.join("high"));
    symlink("nowhere", dir.join("link")).unwrap();
    facts.end("lchown", lchown(dir.join("link"), Some(5), Some(6)));
    facts.object("link", &dir.join("link"));
}

#[test]
fn owners_change_as_on_the_bare_directory() {
    on_every_filesystem("owners", |both| both.same("owners", owners));
}

/// More groups than a request of NFS carries (16, RFC 5531), and names of xattrs that only root may write.
fn many_groups(dir: &Path, facts: &mut Facts) {
    let groups: Vec<u32> = (5000..5040).collect();
    let member = User { groups: &groups, ..SOMEONE };
    for gid in [5000, 5020, 5039, 5040] {
        let path = dir.join(format!("of-{gid}"));
        fs::write(&path, b"x").unwrap();
        chown(&path, None, Some(gid)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o660)).unwrap();
        facts.end("by a group", member.does(|| OpenOptions::new().append(true).open(&path).map(drop)));
    }
    let own = dir.join("own");
    fs::write(&own, b"x").unwrap();
    chown(&own, Some(SOMEONE.uid), Some(SOMEONE.gid)).unwrap();
    for name in ["security.capability", "security.any", "trusted.any", "user.any"] {
        facts.end(name, member.does(|| set_xattr(&own, name, &CAPABILITY, 0)).map_err(Into::into));
    }
    facts.object("own", &own);
}

#[test]
fn a_user_has_the_rights_of_all_his_groups_and_none_of_root() {
    on_every_filesystem("many groups", |both| both.same("many groups", many_groups));
}

fn group_bits(dir: &Path, facts: &mut Facts) {
    let member = User { groups: &[GROUP], umask: 0, ..SOMEONE };
    let shared = dir.join("shared");
    fs::create_dir(&shared).unwrap();
    chown(&shared, None, Some(GROUP)).unwrap();
    fs::set_permissions(&shared, Permissions::from_mode(0o2777)).unwrap();
    for (who, user) in [("stranger", SOMEONE), ("member", member), ("root", User { uid: 0, gid: 0, ..member })] {
        let file = shared.join(format!("file-{who}"));
        let inner = shared.join(format!("dir-{who}"));
        let create =
            |path: &Path, mode| OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map(drop);
        facts.end(who, user.does(|| create(&file, 0o2775)));
        facts.end(who, user.does(|| fs::DirBuilder::new().mode(0o775).create(&inner)));
        facts.end(who, user.does(|| create(&inner.join("deep"), 0o2711)));
        facts.end(who, user.does(|| fs::set_permissions(&file, Permissions::from_mode(0o2755))));
        for path in [&file, &inner, &inner.join("deep")] {
            facts.object(who, path);
        }
        facts.end(who, user.does(|| fs::set_permissions(&inner, Permissions::from_mode(0o2700))));
        facts.object(who, &inner);
    }
}

fn sticky(dir: &Path, facts: &mut Facts) {
    let other = User { uid: 999, gid: 999, ..SOMEONE };
    let common = dir.join("common");
    fs::create_dir(&common).unwrap();
    fs::set_permissions(&common, Permissions::from_mode(0o1777)).unwrap();
    SOMEONE.does(|| fs::write(common.join("a"), b"a")).unwrap();
    other.does(|| fs::write(common.join("b"), b"b")).unwrap();
    facts.end("unlink of another's", other.does(|| fs::remove_file(common.join("a"))));
    facts.end("rename of another's", other.does(|| fs::rename(common.join("a"), common.join("c"))));
    facts.end("rename onto another's", other.does(|| fs::rename(common.join("b"), common.join("a"))));
    facts.end("unlink of one's own", other.does(|| fs::remove_file(common.join("b"))));
    facts.end("write to another's", other.does(|| fs::write(common.join("a"), b"no")));
    facts
        .end("chmod of another's", other.does(|| fs::set_permissions(common.join("a"), Permissions::from_mode(0o777))));
}

#[test]
fn set_group_id_directories_and_sticky_ones() {
    on_every_filesystem("directories", |both| {
        both.same("group-bits", group_bits);
        both.same("sticky", sticky);
    });
}

fn inheritance(dir: &Path, facts: &mut Facts) {
    let lists = [
        ("wide", full_acl(7, 7, 7, 7)),
        ("narrow", full_acl(6, 5, 4, 0)),
        ("plain", acl(&[(1, 7, NONE), (4, 5, NONE), (0x20, 1, NONE)])),
    ];
    for (name, list) in &lists {
        let parent = dir.join(name);
        fs::create_dir(&parent).unwrap();
        fs::set_permissions(&parent, Permissions::from_mode(0o777)).unwrap();
        facts.sys(name, set_xattr(&parent, DEFAULT, list, 0));
        for umask in [0, 0o027, 0o777] {
            let user = User { umask, ..SOMEONE };
            let at = |kind: &str| parent.join(format!("{kind}-{umask:o}"));
            facts.end(name, user.does(|| fs::write(at("file"), b"x")));
            facts.end(name, user.does(|| fs::create_dir(at("dir"))));
            facts.end(
                name,
                user.does(|| nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o666)))
                    .map_err(Into::into),
            );
            facts.end(name, user.does(|| symlink("x", at("link"))));
            for kind in ["file", "dir", "fifo", "link"] {
                facts.object(format!("{name} {umask:o} {kind}"), &at(kind));
            }
        }
    }
}

fn access_lists(dir: &Path, facts: &mut Facts) {
    let (named, member) = (User { uid: 1000, gid: 1000, ..SOMEONE }, User { groups: &[GROUP], ..SOMEONE });
    let file = dir.join("file");
    SOMEONE.does(|| fs::write(&file, b"text")).unwrap();
    facts.sys("set by the owner", SOMEONE.does(|| set_xattr(&file, ACCESS, &full_acl(6, 0, 4, 0), 0)));
    facts.object("file", &file);
    facts.end("read by the named user", named.does(|| fs::read(&file)));
    facts.end("write by the named user", named.does(|| fs::write(&file, b"no")));
    facts.sys("set by another", named.does(|| set_xattr(&file, ACCESS, &full_acl(7, 7, 7, 7), 0)));
    facts.end("chmod moves the mask", SOMEONE.does(|| fs::set_permissions(&file, Permissions::from_mode(0o660))));
    facts.object("after chmod", &file);
    facts.sys("removed", SOMEONE.does(|| remove_xattr(&file, ACCESS)));
    facts.object("after removal", &file);
    facts.sys(
        "a list that is only a mode",
        set_xattr(&file, ACCESS, &acl(&[(1, 7, NONE), (4, 0, NONE), (0x20, 4, NONE)]), 0),
    );
    facts.object("after that", &file);
    facts.sys("nonsense", set_xattr(&file, ACCESS, b"nonsense", 0));
    facts.sys("default list of a file", set_xattr(&file, DEFAULT, &full_acl(7, 7, 7, 7), 0));
    for (who, user) in [("stranger", SOMEONE), ("member", member)] {
        let path = dir.join(format!("sgid-{who}"));
        fs::write(&path, b"").unwrap();
        chown(&path, Some(SOMEONE.uid), Some(GROUP)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o2755)).unwrap();
        facts.sys(who, user.does(|| set_xattr(&path, ACCESS, &full_acl(7, 5, 5, 5), 0)));
        facts.object(format!("set-group-id, list by {who}"), &path);
    }
}

#[test]
fn access_control_lists_are_kept_and_handed_down() {
    on_every_filesystem("lists", |both| {
        both.same("inheritance", inheritance);
        both.same("access", access_lists);
    });
}

fn attributes(dir: &Path, facts: &mut Facts) {
    let (file, link) = (dir.join("file"), dir.join("link"));
    fs::write(&file, b"x").unwrap();
    symlink("file", &link).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o666)).unwrap();
    for name in
        ["user.a", "trusted.a", "security.a", "system.a", "other.a", "user.", &format!("user.{}", "n".repeat(251))]
    {
        facts.sys(format!("set {name}"), set_xattr(&file, name, b"value", 0));
        facts.sys(format!("set {name} on a symlink"), set_xattr(&link, name, b"value", 0));
        facts.sys(format!("set {name} by a user"), SOMEONE.does(|| set_xattr(&file, name, b"by a user", 0)));
        facts.sys(format!("create {name}"), set_xattr(&file, name, b"again", libc::XATTR_CREATE));
        facts.sys(format!("replace {name}"), set_xattr(&file, name, b"instead", libc::XATTR_REPLACE));
    }
    facts.sys("replace what is not there", set_xattr(&file, "user.none", b"", libc::XATTR_REPLACE));
    facts.sys("empty", set_xattr(&file, "user.empty", b"", 0));
    facts.sys("long", set_xattr(&file, "user.long", &[7; 3000], 0));
    facts.sys("too long", set_xattr(&file, "user.long", &[7; 65_537], 0));
    facts.sys("longest", set_xattr(&file, "user.longest", &[7; 65_536], 0));
    facts.sys("remove", remove_xattr(&file, "user.long"));
    facts.sys("remove again", remove_xattr(&file, "user.long"));
    facts.object("file", &file);
    facts.object("link", &link);
    facts.add(
        "seen by a user",
        format!("{:?}", SOMEONE.does(|| support::both::xattrs(&file)).map_err(|error| error.kind())),
    );
}

#[test]
fn extended_attributes_of_all_namespaces() {
    on_every_filesystem("xattrs", |both| both.same("xattrs", attributes));
}
