//! Include and exclude rules, as a volume's file has them.

use serde::{Deserialize, Deserializer};

use crate::base::Rules;

/// Reads an array of rules.
pub(super) fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Rules, D::Error> {
    let lines = Vec::<String>::deserialize(from)?;
    Rules::parse(lines.iter().map(String::as_str)).map_err(serde::de::Error::custom)
}
