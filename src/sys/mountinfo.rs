//! The kernel's table of mounts (proc_pid_mountinfo(5)).

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{Errno, Result};

/// One mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// The kernel's number for it.
    pub id: u64,
    /// The number of the mount that it lies on.
    pub parent: u64,
    /// MAJOR:MINOR of its device.
    pub device: String,
    /// Which directory of its filesystem it shows.
    pub root: PathBuf,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Its own options, separated by commas; not those of its filesystem.
    pub options: String,
    /// Type of its filesystem.
    pub kind: String,
    /// What was said to be mounted.
    pub source: String,
}

/// All mounts of the calling thread's namespace, in the kernel's order: of several on one point the last is the visible one.
///
/// # Errors
/// When the table cannot be read.
pub fn mounts() -> Result<Vec<Mount>> {
    let table = std::fs::read("/proc/thread-self/mountinfo")
        .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    Ok(table.split(|b| *b == b'\n').filter_map(parse).collect())
}

/// The mount that a look-up of `path` ends on, when one lies exactly there: of several the last.
///
/// # Errors
/// As [`mounts`].
pub fn mount_at(path: &Path) -> Result<Option<Mount>> {
    Ok(mounts()?.into_iter().rfind(|mount| mount.point == path))
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let text = |field: &[u8]| std::str::from_utf8(field).ok().map(str::to_owned);
    let id = text(fields.next()?)?.parse().ok()?;
    let parent = text(fields.next()?)?.parse().ok()?;
    let device = text(fields.next()?)?;
    let path = |field| PathBuf::from(std::ffi::OsStr::from_bytes(&unescape(field)));
    let (root, point, options) = (path(fields.next()?), path(fields.next()?), text(fields.next()?)?);
    // Optional fields end with a single hyphen; the type follows.
    fields.find(|field| *field == b"-")?;
    let (kind, source) = (text(fields.next()?)?, text(&unescape(fields.next()?))?);
    Some(Mount { id, parent, device, root, point, options, kind, source })
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|d| byte == b'\\' && d.iter().all(|b| (b'0'..b'8').contains(b)));
        match digits {
            Some(digits) => {
                let value = digits.iter().fold(0u32, |n, d| n * 8 + u32::from(d - b'0'));
                out.push(value as u8);
                rest = &tail[3..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_its_escapes() {
        let line = b"36 35 98:0 /mnt1\\0401 /mnt\\0402 rw,noatime master:1 - fuse.dtfs dtfs:v rw,user_id=0";
        let mount = parse(line).unwrap();
        assert_eq!((mount.id, mount.parent), (36, 35));
        assert_eq!((mount.root.as_path(), mount.options.as_str()), (Path::new("/mnt1 1"), "rw,noatime"));
        assert_eq!(mount.source, "dtfs:v");
        assert_eq!(mount.device, "98:0");
        assert_eq!(mount.point, Path::new("/mnt 2"));
        assert_eq!(mount.kind, "fuse.dtfs");
        assert_eq!(parse(b""), None);
    }
}
