//! Text that may be shown on a terminal or written to a log.

use std::borrow::Cow;
use std::fmt::{self, Write};

/// Whether `c` could act on a terminal, begin a line of its own, or make a text look like another: a control character
/// (C0, DEL, C1), a line or paragraph separator, or one that turns the direction of writing (Unicode Standard Annex 9).
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `text` with what [`is_unprintable`] escaped, so that a name that somebody gave a file cannot do any of that.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unprintable) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    // Writing to a String cannot fail.
    let _ = write_printable(&mut shown, text);
    Cow::Owned(shown)
}

/// As [`printable`], into a formatter.
pub(super) fn write_printable(out: &mut impl Write, text: &str) -> fmt::Result {
    text.chars().try_for_each(|c| match is_unprintable(c) {
        true => write!(out, "{}", c.escape_default()),
        false => out.write_char(c),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_escaped() {
        assert_eq!(printable("/srv/d\u{e9}"), "/srv/d\u{e9}");
        assert_eq!(printable("a\x1b[2J\nb"), "a\\u{1b}[2J\\nb");
        assert_eq!(printable("\u{9b}31m"), "\\u{9b}31m");
        assert_eq!(printable("gpj.\u{202e}exe"), "gpj.\\u{202e}exe");
        assert_eq!(printable("\u{2028}dtfs: ok"), "\\u{2028}dtfs: ok");
    }
}
