//! What becomes of orphans, as people write it.

use std::str::FromStr;

use serde::Deserialize;

use crate::base::Name;

/// What becomes of objects in a target's tree that the source does not have: they are set aside in `.dtfs/orphans` in any
/// case.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub enum Orphans {
    /// `report`: they stay there, and are told.
    Report,
    /// `move:NAME`: they go to `.dtfs/NAME`, with the paths that they had.
    Move(Name),
    /// `delete`: they are removed.
    Delete,
}

/// Text that says nothing about orphans.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" says nothing about orphans; write report, delete or move:NAME, a name without / below .dtfs")]
pub struct OrphansProblem(String);

impl FromStr for Orphans {
    type Err = OrphansProblem;

    fn from_str(text: &str) -> Result<Orphans, OrphansProblem> {
        let problem = || OrphansProblem(text.escape_debug().to_string());
        match (text, text.strip_prefix("move:")) {
            ("report", _) => Ok(Orphans::Report),
            ("delete", _) => Ok(Orphans::Delete),
            (_, Some(name)) if !["park", "orphans", "id", "id.new"].contains(&name) => {
                Name::new(name.as_bytes()).map(Orphans::Move).map_err(|_| problem())
            }
            _ => Err(problem()),
        }
    }
}

impl TryFrom<String> for Orphans {
    type Error = OrphansProblem;

    fn try_from(text: String) -> Result<Orphans, OrphansProblem> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_becomes_of_orphans() {
        assert_eq!("report".parse(), Ok(Orphans::Report));
        assert_eq!("delete".parse(), Ok(Orphans::Delete));
        assert_eq!("move:old".parse(), Ok(Orphans::Move(Name::new(b"old").unwrap())));
        for bad in ["", "move", "move:", "move:a/b", "move:..", "move:park", "Delete"] {
            assert!(bad.parse::<Orphans>().is_err(), "{bad}");
        }
    }
}
