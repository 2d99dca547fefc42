use super::super::{EditLock, RefusalKind, TargetEntry, TargetName, add_target};
use super::*;

struct Place {
    _dir: tempfile::TempDir,
    top: PathBuf,
    paths: Paths,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().canonicalize().unwrap();
    for name in ["a/b", "c", "host"] {
        fs::create_dir_all(top.join(name)).unwrap();
    }
    fs::write(top.join("file"), b"").unwrap();
    std::os::unix::fs::symlink(top.join("a"), top.join("link")).unwrap();
    let paths = Paths::new(Some(top.join("host")));
    Place { _dir: dir, top, paths }
}

impl Place {
    fn mounts(&self, entries: &str) -> MountsFile {
        let text = entries.replace("TOP", self.top.to_str().unwrap());
        let mounts = MountsFile::parse(Path::new("dtfs_mounts"), text.as_bytes());
        assert!(mounts.errors().is_empty());
        mounts
    }

    fn check(&self, path: &str, entries: &str) -> Result<PathBuf, Refusal> {
        check_volume_dir(&self.paths, &self.top.join(path), &self.mounts(entries))
    }
}

#[test]
fn a_directory_is_returned_without_symlinks() {
    let place = place();
    assert_eq!(place.check("link", "").unwrap(), place.top.join("a"));
    assert_eq!(place.check("c/../a", "").unwrap(), place.top.join("a"));
}

#[test]
fn mistyped_paths_are_usage_errors() {
    let place = place();
    for path in ["nothing", "file", "file/x", "a/../nothing"] {
        assert_eq!(place.check(path, "").unwrap_err().kind(), RefusalKind::Usage, "{path}");
    }
}

#[test]
fn harmful_paths_are_safety_refusals() {
    let place = place();
    for path in ["/", "/proc", "/sys", ".", "host", "host/etc"] {
        fs::create_dir_all(place.paths.config_dir()).unwrap();
        if let Err(refusal) = place.check(path, "") {
            assert_eq!(refusal.kind(), RefusalKind::Safety, "{path}: {refusal}");
        } else {
            panic!("{path} was not refused");
        }
    }
}

#[test]
fn the_root_lists_what_could_be_chosen() {
    let place = place();
    let refusal = place.check("/", "").unwrap_err();
    assert!(matches!(&refusal, Refusal::Root { candidates } if !candidates.contains(&PathBuf::from("/proc"))));
}

#[test]
fn nested_and_duplicate_entries() {
    let place = place();
    assert!(matches!(place.check("link", "TOP/a"), Err(Refusal::Duplicate { .. })));
    assert!(matches!(place.check("a/b", "TOP/a"), Err(Refusal::Nested { relation: Relation::LiesIn, .. })));
    assert!(matches!(place.check("a", "TOP/a/b"), Err(Refusal::Nested { relation: Relation::Holds, .. })));
    assert!(matches!(place.check("a", "TOP/c store=TOP/a/b"), Err(Refusal::Nested { .. })));
    assert!(place.check("c", "TOP/a").is_ok());
}

#[test]
fn an_entry_is_no_conflict_with_itself() {
    let place = place();
    let mounts = place.mounts("TOP/a\nTOP/c store=TOP/c/j\n");
    let entries: Vec<_> = mounts.entries().collect();
    assert!(check_entry(&place.paths, entries[0], &mounts).is_ok());
    assert!(matches!(check_entry(&place.paths, entries[1], &mounts), Err(Refusal::Nested { .. })));
}

#[test]
fn targets_and_volumes_keep_apart() {
    let place = place();
    let mounts = place.mounts("TOP/a");
    for path in ["a", "a/b/new", "link/x", "."] {
        assert!(check_target_dir(&place.paths, &place.top.join(path), &mounts).is_err(), "{path}");
    }
    assert!(check_target_dir(&place.paths, &place.top.join("c/new"), &mounts).is_ok());
    let lock = EditLock::take(&place.paths).unwrap();
    let target =
        TargetEntry::new(TargetName::new("t").unwrap(), crate::config::TargetUrl::Local(place.top.join("c/new")));
    let volume = VolumeName::new("a").unwrap();
    add_target(&lock, &place.paths, &volume, &target).unwrap();
    assert!(check_target_entry(&place.paths, &volume, &target, &mounts).is_ok());
    assert!(matches!(place.check("c", "TOP/a"), Err(Refusal::Nested { .. })));
    assert!(check_target_dir(&place.paths, &place.top.join("c/new/x"), &mounts).is_err());
}

#[test]
fn the_filesystem_that_a_path_lies_on() {
    assert_eq!(filesystem_at(Path::new("/proc/1")).map(|(_, kind)| kind), Some("proc".to_owned()));
}
