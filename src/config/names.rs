//! Names that an operator gives: of volumes and of targets.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why some text is not the name of a volume or a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" cannot be a {what}'s name: {rule}", text.escape_debug())]
pub struct NameProblem {
    /// `volume` or `target`.
    pub what: &'static str,
    /// The text.
    pub text: String,
    /// The rule it breaks.
    pub rule: &'static str,
}

const MAX_CHARS: usize = 64;

fn broken_rule(text: &str) -> Option<&'static str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    match text.as_bytes() {
        [] => Some("it is empty"),
        [b'.' | b'-', ..] => Some("it must not begin with '.' or '-'"),
        bytes if bytes.len() > MAX_CHARS => Some("it is longer than 64 characters"),
        bytes if !bytes.iter().all(|b| plain(*b)) => Some("only letters, digits, '.', '_' and '-' may be used"),
        _ => None,
    }
}

macro_rules! checked_name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $reserved:expr) => {
        $(#[$doc])*
        ///
        /// Letters, digits, '.', '_' and '-', at most 64, not beginning with '.' or '-': safe as a file name, in a URL
        /// and in a table.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks `text`.
            ///
            /// # Errors
            /// [`NameProblem`] says which rule is broken.
            pub fn new(text: &str) -> Result<$name, NameProblem> {
                let reserved = $reserved.contains(&text).then_some("dtfs uses this word itself");
                match broken_rule(text).or(reserved) {
                    None => Ok($name(text.to_owned())),
                    Some(rule) => Err(NameProblem { what: $what, text: text.to_owned(), rule }),
                }
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameProblem;

            fn from_str(text: &str) -> Result<$name, NameProblem> {
                $name::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameProblem;

            fn try_from(text: String) -> Result<$name, NameProblem> {
                $name::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}

const NO_WORDS: [&str; 0] = [];

checked_name!(
    /// The name of a volume on this host.
    VolumeName,
    "volume",
    // The state of target trees lies beside the state of volumes.
    ["replicas"]
);
checked_name!(
    /// The name of a target within its volume.
    TargetName,
    "target",
    NO_WORDS
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules() {
        assert!(VolumeName::new("data-1.old_x").is_ok());
        assert!(VolumeName::new(&"x".repeat(64)).is_ok());
        for bad in ["", ".x", "-x", "a/b", "a b", "\u{e9}", "replicas", &"x".repeat(65)] {
            assert!(VolumeName::new(bad).is_err(), "{bad}");
        }
        assert!(TargetName::new("replicas").is_ok());
    }
}
