//! What an operator writes in one word: mount options, URLs, names, sizes. What is understood is written in a form that
//! reads back as the same.
#![no_main]

use std::fmt::{Debug, Display};
use std::str::FromStr;

use dtfs::base::{Oid, Tid, VolumeUuid};
use dtfs::config::{ByteSize, MountOptions, TargetName, TargetUrl, VolumeName};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    reads_back::<MountOptions>(text);
    reads_back::<TargetUrl>(text);
    reads_back::<ByteSize>(text);
    reads_back::<Tid>(text);
    reads_back::<Oid>(text);
    reads_back::<VolumeUuid>(text);
    if let Some(name) = reads_back::<VolumeName>(text) {
        is_one_component(name.as_str());
    }
    if let Some(name) = reads_back::<TargetName>(text) {
        is_one_component(name.as_str());
    }
});

fn reads_back<T: FromStr + Display + PartialEq + Debug>(text: &str) -> Option<T> {
    let value = text.parse::<T>().ok()?;
    let written = value.to_string();
    let again = written.parse::<T>().ok();
    assert_eq!(again.as_ref(), Some(&value), "{written:?}");
    Some(value)
}

/// Volumes and targets name files.
fn is_one_component(name: &str) {
    assert!(!name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']));
    assert!(!name.chars().any(char::is_control));
}
