//! Octal escapes, as in fstab: `\040` is a space.

use std::fmt::Write;

/// Text that holds a broken escape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadEscape;

/// Writes every byte that would end or change a field as a backslash and three octal digits.
pub(super) fn escape(field: &str) -> String {
    let mut out = String::with_capacity(field.len());
    for c in field.chars() {
        match c {
            ' ' | '\t' | '\n' | '\r' | '#' | '\\' | ',' => {
                let _ = write!(out, "\\{:03o}", c as u32);
            }
            _ => out.push(c),
        }
    }
    out
}

/// The inverse of [`escape`]. NUL, which no path can hold, and a lone backslash are errors.
pub(super) fn unescape(field: &[u8]) -> Result<Vec<u8>, BadEscape> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            (b'\\', _) => return Err(BadEscape),
            (byte, _) => {
                out.push(*byte);
                rest = tail;
            }
        }
    }
    if out.contains(&0) { Err(BadEscape) } else { Ok(out) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        let path = "/a b\t\n#\\,c\u{e9}";
        assert_eq!(unescape(escape(path).as_bytes()), Ok(path.as_bytes().to_vec()));
        assert_eq!(escape("/a b#c"), "/a\\040b\\043c");
        for bad in ["\\", "\\04", "\\400", "\\08x", "\\000"] {
            assert_eq!(unescape(bad.as_bytes()), Err(BadEscape), "{bad}");
        }
    }
}
