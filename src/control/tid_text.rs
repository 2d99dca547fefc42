//! TIDs as text in JSON: `"0x%016x"`.

use serde::{Deserialize, Deserializer, Serializer, de};

use crate::base::Tid;

pub(super) fn serialize<S: Serializer>(tid: &Tid, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(tid)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Tid, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
}

/// The same for a TID that may be missing (`null`).
pub(super) mod option {
    use super::{Deserialize, Deserializer, Serializer, Tid, de};

    pub(in super::super) fn serialize<S: Serializer>(tid: &Option<Tid>, serializer: S) -> Result<S::Ok, S::Error> {
        match tid {
            Some(tid) => serializer.collect_str(tid),
            None => serializer.serialize_none(),
        }
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Tid>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(de::Error::custom)).transpose()
    }
}
