//! One directory entry's name, checked once and then trusted.

use std::ffi::{CStr, CString, OsStr};
use std::fmt;
use std::os::unix::ffi::OsStrExt;

/// A single path component: 1 to 255 bytes, no `/`, no NUL, neither `.` nor `..`.
///
/// Every name that comes from a peer, a disk or the kernel becomes a `Name` before it reaches a system call, so that
/// no path can leave the tree by its spelling.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(CString);

/// Why some bytes are not a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No bytes at all.
    #[error("the name is empty")]
    Empty,
    /// More than 255 bytes (NAME_MAX).
    #[error("the name has {0} bytes, more than 255")]
    TooLong(usize),
    /// It holds a slash or a NUL byte.
    #[error("the name holds a slash or a NUL byte")]
    BadByte,
    /// It is `.` or `..`.
    #[error("the name is . or ..")]
    Dots,
}

impl Name {
    /// Longest name in bytes (NAME_MAX).
    pub const MAX_BYTES: usize = 255;

    /// Checks `bytes`.
    ///
    /// # Errors
    /// [`NameError`] says which rule is broken.
    pub fn new(bytes: &[u8]) -> Result<Name, NameError> {
        match bytes {
            [] => return Err(NameError::Empty),
            b"." | b".." => return Err(NameError::Dots),
            _ if bytes.len() > Name::MAX_BYTES => return Err(NameError::TooLong(bytes.len())),
            _ if bytes.contains(&b'/') => return Err(NameError::BadByte),
            _ => {}
        }
        CString::new(bytes).map(Name).map_err(|_| NameError::BadByte)
    }

    /// For system calls.
    pub fn as_cstr(&self) -> &CStr {
        &self.0
    }

    /// The bytes without the terminating NUL.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// For paths that are shown to people.
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(self.as_bytes())
    }
}

impl fmt::Display for Name {
    /// Escapes what is not printable, so that a name cannot write to a terminal or forge a log line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.as_bytes().utf8_chunks() {
            super::printable::write_printable(f, chunk.valid())?;
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules() {
        assert_eq!(Name::new(b""), Err(NameError::Empty));
        assert_eq!(Name::new(b"."), Err(NameError::Dots));
        assert_eq!(Name::new(b".."), Err(NameError::Dots));
        assert_eq!(Name::new(b"a/b"), Err(NameError::BadByte));
        assert_eq!(Name::new(b"a\0b"), Err(NameError::BadByte));
        assert_eq!(Name::new(&[b'x'; 256]), Err(NameError::TooLong(256)));
        assert!(Name::new(&[0xff; 255]).is_ok());
        assert!(Name::new(b"...").is_ok());
    }

    #[test]
    fn display_escapes_what_a_terminal_would_act_on() {
        let name = Name::new(b"a\x1b[2J\n\xff").unwrap();
        assert_eq!(name.to_string(), "a\\u{1b}[2J\\n\\xff");
    }
}
