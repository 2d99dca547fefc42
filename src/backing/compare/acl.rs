//! An access control list and the mode say the same of owner, group (or mask) and others. The kernel keeps them so at every
//! change, but after a power loss btrfs can show the two from different moments (its log replay brings back an inode and
//! its xattrs separately). No sequence of calls makes such a pair: setting either changes the other.

/// The xattr of an access control list.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";

/// Version of the encoding, and entry tags (include/uapi/linux/posix_acl_xattr.h, posix_acl.h).
const VERSION: [u8; 4] = 2u32.to_le_bytes();
const USER_OBJ: u16 = 0x01;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The list in `value` with what `mode` says too taken from there. Anything else than a list stays as it is.
pub(super) fn by_mode(mut value: Vec<u8>, mode: u32) -> Vec<u8> {
    let Some((VERSION, entries)) = value.split_first_chunk_mut().map(|(version, entries)| (*version, entries)) else {
        return value;
    };
    let (entries, rest) = entries.as_chunks_mut::<8>();
    if !rest.is_empty() {
        return value;
    }
    let tag = |entry: &[u8; 8]| u16::from_le_bytes([entry[0], entry[1]]);
    let has_mask = entries.iter().any(|entry| tag(entry) == MASK);
    for entry in entries {
        let bits = match tag(entry) {
            USER_OBJ => mode >> 6,
            GROUP_OBJ if !has_mask => mode >> 3,
            MASK => mode >> 3,
            OTHER => mode,
            _ => continue,
        };
        entry[2..4].copy_from_slice(&((bits & 7) as u16).to_le_bytes());
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(u16, u16)]) -> Vec<u8> {
        let mut bytes = VERSION.to_vec();
        for (tag, perm) in entries {
            bytes.extend([tag.to_le_bytes(), perm.to_le_bytes()].concat());
            bytes.extend([0xff; 4]);
        }
        bytes
    }

    #[test]
    fn what_the_mode_says_is_taken_from_it_and_the_rest_stays() {
        let torn = list(&[(USER_OBJ, 6), (2, 4), (GROUP_OBJ, 5), (MASK, 4), (OTHER, 4)]);
        let whole = list(&[(USER_OBJ, 7), (2, 4), (GROUP_OBJ, 5), (MASK, 7), (OTHER, 1)]);
        assert_eq!(by_mode(torn, 0o1771), whole);
        assert_eq!(by_mode(whole.clone(), 0o1771), whole);
        let short = list(&[(USER_OBJ, 6), (GROUP_OBJ, 5), (OTHER, 4)]);
        assert_eq!(by_mode(short, 0o751), list(&[(USER_OBJ, 7), (GROUP_OBJ, 5), (OTHER, 1)]));
        assert_eq!(by_mode(b"no list".to_vec(), 0o777), b"no list");
    }
}
