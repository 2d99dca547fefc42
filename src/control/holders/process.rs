//! What one process holds, as its files in /proc show it.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{Hold, Objects, Opener, Unseen};

/// What is looked for, in every process.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// The device that the objects are on.
    pub(super) dev: u64,
    /// Their paths lie at or below it.
    pub(super) path: PathBuf,
    pub(super) objects: Objects,
}

/// This process has too few descriptors or too little memory to look.
#[derive(Debug)]
pub(super) struct Short;

/// Links of a process in /proc that lead to what it holds, and whether it writes there.
type Links = Result<Vec<(PathBuf, bool)>, Short>;
/// What a part of a process shows: objects by their number.
type Found = BTreeMap<u64, Hold>;

/// One process. Everything here may wait for it, but for [`Process::unseen`].
pub(super) struct Process<'a> {
    pub(super) pid: u32,
    pub(super) wanted: &'a Wanted,
}

impl Process<'_> {
    /// Parts of what it holds, those that are least likely to wait first: one hold for each object in a part.
    pub(super) fn parts(&self) -> impl Iterator<Item = Result<Vec<Hold>, Short>> + '_ {
        let parts: [fn(&Self) -> Links; 3] = [Process::files, Process::places, Process::mappings];
        parts.into_iter().map(|links| self.holds(links(self)?))
    }

    fn holds(&self, links: Vec<(PathBuf, bool)>) -> Result<Vec<Hold>, Short> {
        let mut found = Found::new();
        for (link, writes) in links {
            let Some((ino, shown)) = self.look(&link) else { continue };
            let object = match writes && self.wanted.objects == Objects::Opened {
                true => none_if_gone(OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&link))?,
                false => None,
            };
            let hold = found.entry(ino).or_insert_with(|| self.hold(ino, &shown));
            hold.opener.writes |= writes;
            hold.object = object.map(Into::into).or(hold.object.take());
        }
        Ok(found.into_values().collect())
    }

    fn hold(&self, ino: u64, shown: &Path) -> Hold {
        let path = shown.to_string_lossy().into_owned();
        Hold { opener: Opener { pid: self.pid, command: command(self.pid), writes: false, path }, ino, object: None }
    }

    fn proc(&self, name: &str) -> PathBuf {
        proc(self.pid, name)
    }

    /// Inode number and path of what `link` leads to, when it is one of ours. The text is looked at first: following the
    /// link asks the filesystem, and another one may be a server that does not answer.
    fn look(&self, link: &Path) -> Option<(u64, PathBuf)> {
        let shown = fs::read_link(link).ok().filter(|shown| shown.starts_with(&self.wanted.path))?;
        let meta = fs::metadata(link).ok().filter(|meta| meta.dev() == self.wanted.dev)?;
        Some((meta.ino(), shown))
    }

    /// Open descriptors, and whether they can write.
    fn files(&self) -> Links {
        let entries = none_if_gone(fs::read_dir(self.proc("fd")))?.into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.map(|fd| Ok((self.proc(&format!("fd/{fd}")), self.can_write(&fd)?))).collect()
    }

    /// By the flags of the descriptor (proc_pid_fdinfo(5)), written in octal.
    fn can_write(&self, fd: &str) -> Result<bool, Short> {
        let text = none_if_gone(fs::read_to_string(self.proc(&format!("fdinfo/{fd}"))))?.unwrap_or_default();
        let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|digits| i32::from_str_radix(digits.trim(), 8).ok()).unwrap_or(0);
        Ok(flags & libc::O_PATH == 0 && flags & libc::O_ACCMODE != libc::O_RDONLY)
    }

    /// Mapped files; a shared mapping that is writable, or may be made so, writes.
    fn mappings(&self) -> Links {
        let maps = none_if_gone(fs::read(self.proc("maps")))?.unwrap_or_default();
        let wanted = self.wanted.path.as_os_str().as_bytes();
        let lines = maps.split(|b| *b == b'\n').filter(|line| line.windows(wanted.len()).any(|part| part == wanted));
        let lines: Vec<_> = lines.map(String::from_utf8_lossy).collect();
        let mappings: Vec<(&str, &str)> = lines.iter().filter_map(|line| line.split_once(' ')).collect();
        let is_shared = |permissions: &str| permissions.as_bytes().get(3) == Some(&b's');
        let smaps = match mappings.iter().any(|(_, permissions)| is_shared(permissions)) {
            true => none_if_gone(fs::read(self.proc("smaps")))?.unwrap_or_default(),
            false => Vec::new(),
        };
        let smaps = String::from_utf8_lossy(&smaps);
        let link = |range: &str| self.proc(&format!("map_files/{}", without_zeros(range)));
        let writes = |range, permissions| is_shared(permissions) && may_write(&smaps, range);
        Ok(mappings.iter().map(|(range, permissions)| (link(range), writes(range, permissions))).collect())
    }

    /// Working and root directory.
    fn places(&self) -> Links {
        Ok(vec![(self.proc("cwd"), false), (self.proc("root"), false)])
    }
}

fn proc(pid: u32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

/// The name of its command, for people: told without a lock that it may hold, other than `stat`, and links, are.
fn command(pid: u32) -> String {
    let command = fs::read(proc(pid, "comm")).unwrap_or_default();
    String::from_utf8_lossy(&command).trim_end().to_owned()
}

/// What is said of `pid` when it could not be looked into; `None` when it has ended.
pub(super) fn unseen(pid: u32, attempt: u64) -> Option<Unseen> {
    let command = command(pid);
    (!command.is_empty()).then_some(Unseen { pid, command, attempt })
}

/// A process comes and goes, and what it held with it; that is no failure, while a lack here would hide what it holds.
fn none_if_gone<T>(outcome: io::Result<T>) -> Result<Option<T>, Short> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)) => Err(Short),
        Err(_) => Ok(None),
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
    use super::*;

    #[test]
    fn the_flags_of_the_right_mapping_count() {
        let smaps =
            "00400000-00401000 r--s 0 0 0 /a\nVmFlags: rd mr \n7f00-7f10 r--s 0 0 0 /b\nVmFlags: rd mr mw sh \n";
        assert!(!may_write(smaps, "00400000-00401000"));
        assert!(may_write(smaps, "7f00-7f10"));
        assert_eq!(without_zeros("00400000-00401000"), "400000-401000");
    }
}
