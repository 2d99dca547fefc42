//! Who holds files below a path: by open descriptors, mappings, working and root directories, as /proc shows them.
//!
//! What is not seen here: files open through another mount of the same filesystem (another path), in the tables of
//! threads that share none with their process, and what the kernel itself holds (loop devices, swap, an NFS server).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::control::Opener;

/// One object that one process holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Hold {
    /// Who, how and what, for people.
    pub(super) opener: Opener,
    /// Leads to the object itself, for as long as it is held.
    pub(super) link: PathBuf,
}

/// Every object on the device `dev` whose path lies at or below `path`, with the process that holds it. Processes come
/// and go meanwhile: what vanishes is left out.
pub(super) fn holds_below(dev: u64, path: &Path) -> Vec<Hold> {
    let own = std::process::id();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).filter(|pid| *pid != own);
    pids.flat_map(|pid| Process { pid, dev, path }.holds()).collect()
}

/// What people are told: `holds`, without what leads to them.
pub(super) fn openers(holds: &[Hold]) -> Vec<Opener> {
    holds.iter().map(|hold| hold.opener.clone()).collect()
}

/// A process, and what is looked for in it.
struct Process<'a> {
    pid: u32,
    dev: u64,
    path: &'a Path,
}

impl Process<'_> {
    /// One hold for each object.
    fn holds(&self) -> Vec<Hold> {
        let mut found: BTreeMap<u64, Hold> = BTreeMap::new();
        for (link, writes) in self.files().into_iter().chain(self.mappings()).chain(self.places()) {
            let Some((ino, shown)) = self.look(&link) else { continue };
            let hold = found.entry(ino).or_insert_with(|| self.hold(link, &shown));
            hold.opener.writes |= writes;
        }
        found.into_values().collect()
    }

    fn hold(&self, link: PathBuf, shown: &Path) -> Hold {
        let command = fs::read(self.proc("comm")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).trim_end().to_owned();
        let path = shown.to_string_lossy().into_owned();
        Hold { opener: Opener { pid: self.pid, command, writes: false, path }, link }
    }

    fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.pid))
    }

    /// Inode number and path of what `link` leads to, when it is one of ours. The text is looked at first: following the
    /// link asks the filesystem, and another one may be a server that does not answer.
    fn look(&self, link: &Path) -> Option<(u64, PathBuf)> {
        let shown = fs::read_link(link).ok().filter(|shown| shown.starts_with(self.path))?;
        let meta = fs::metadata(link).ok().filter(|meta| meta.dev() == self.dev)?;
        Some((meta.ino(), shown))
    }

    /// Open descriptors, and whether they can write.
    fn files(&self) -> Vec<(PathBuf, bool)> {
        let entries = fs::read_dir(self.proc("fd")).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names
            .map(|name| (self.proc(&format!("fd/{name}")), name))
            .map(|(link, fd)| (link, self.can_write(&fd)))
            .collect()
    }

    /// By the flags of the descriptor (proc_pid_fdinfo(5)), written in octal.
    fn can_write(&self, fd: &str) -> bool {
        let text = fs::read_to_string(self.proc(&format!("fdinfo/{fd}"))).unwrap_or_default();
        let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|digits| i32::from_str_radix(digits.trim(), 8).ok()).unwrap_or(0);
        flags & libc::O_PATH == 0 && flags & libc::O_ACCMODE != libc::O_RDONLY
    }

    /// Mapped files; a shared mapping that is writable, or may be made so, writes.
    fn mappings(&self) -> Vec<(PathBuf, bool)> {
        let maps = fs::read(self.proc("maps")).unwrap_or_default();
        let wanted = self.path.as_os_str().as_bytes();
        let lines = maps.split(|b| *b == b'\n').filter(|line| line.windows(wanted.len()).any(|part| part == wanted));
        let mut smaps = None;
        let mapping = |line: &[u8]| {
            let text = String::from_utf8_lossy(line);
            let (range, permissions) = text.split_once(' ')?;
            let shared = permissions.as_bytes().get(3) == Some(&b's');
            let writes = shared && {
                let smaps = smaps.get_or_insert_with(|| fs::read(self.proc("smaps")).unwrap_or_default());
                may_write(&String::from_utf8_lossy(smaps), range)
            };
            Some((self.proc(&format!("map_files/{}", without_zeros(range))), writes))
        };
        lines.filter_map(mapping).collect()
    }

    /// Working and root directory.
    fn places(&self) -> [(PathBuf, bool); 2] {
        [(self.proc("cwd"), false), (self.proc("root"), false)]
    }
}

/// Whether the mapping `range` carries `mw` (may write) in its flags (proc_pid_smaps(5)): a shared one does only when the
/// file was open for writing.
fn may_write(smaps: &str, range: &str) -> bool {
    let mut lines = smaps.lines().skip_while(|line| !line.starts_with(range));
    lines.find_map(|line| line.strip_prefix("VmFlags:")).is_some_and(|flags| flags.split(' ').any(|flag| flag == "mw"))
}

/// maps pads addresses to eight digits, map_files does not.
fn without_zeros(range: &str) -> String {
    let parts: Vec<&str> = range.split('-').map(|part| part.trim_start_matches('0')).collect();
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_reader_and_a_writer_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        let dev = fs::metadata(&path).unwrap().dev();
        let (read, written) = (path.join("read"), path.join("written"));
        fs::write(&read, b"").unwrap();
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(File::create(&written).unwrap())
            .stderr(File::open(&read).unwrap())
            .current_dir(&path)
            .spawn()
            .unwrap();
        let mut found: Vec<_> = openers(&holds_below(dev, &path)).into_iter().filter(|o| o.pid == child.id()).collect();
        drop(child.stdin.take());
        child.wait().unwrap();
        found.sort_by(|a, b| a.path.cmp(&b.path));
        let seen: Vec<_> = found.iter().map(|opener| (Path::new(&opener.path), opener.writes)).collect();
        assert_eq!(seen, [(path.as_path(), false), (read.as_path(), false), (written.as_path(), true)]);
        assert_eq!(found[0].command, "cat");
    }

    #[test]
    fn the_flags_of_the_right_mapping_count() {
        let smaps =
            "00400000-00401000 r--s 0 0 0 /a\nVmFlags: rd mr \n7f00-7f10 r--s 0 0 0 /b\nVmFlags: rd mr mw sh \n";
        assert!(!may_write(smaps, "00400000-00401000"));
        assert!(may_write(smaps, "7f00-7f10"));
        assert_eq!(without_zeros("00400000-00401000"), "400000-401000");
    }
}
