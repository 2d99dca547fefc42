//! Fields that several messages have.

use crate::base::{ChainDigest, EpochId, Position, Tid, is_unprintable};
use crate::record::{DecodeError, FieldReader};

/// Longest text of a message.
pub(super) const MAX_TEXT_BYTES: usize = 1024;

pub(super) fn position(r: &mut FieldReader<'_>, what: &'static str) -> Result<Position, DecodeError> {
    let epoch = EpochId(r.fixed(what)?);
    let tid = Tid(r.u64(what)?);
    Ok(Position { epoch, tid, digest: ChainDigest(r.fixed(what)?) })
}

pub(super) fn clip(text: &str) -> &[u8] {
    &text.as_bytes()[..text.floor_char_boundary(MAX_TEXT_BYTES)]
}

/// Text from a peer is shown to people: what a terminal would act on does not get through.
pub(super) fn text(r: &mut FieldReader<'_>) -> Result<String, DecodeError> {
    let offset = r.offset();
    let bytes = r.short_bytes("text")?;
    if bytes.len() > MAX_TEXT_BYTES {
        return Err(DecodeError::Value { what: "text length", offset, value: bytes.len() as u64 });
    }
    let mut text: String =
        String::from_utf8_lossy(bytes).chars().map(|c| if is_unprintable(c) { '?' } else { c }).collect();
    // Three bytes stand for one that is not UTF-8.
    text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
    Ok(text)
}
