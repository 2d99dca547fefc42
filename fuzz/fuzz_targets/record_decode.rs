//! Records from a peer or a disk: any bytes are refused or understood, and what is understood has one encoding only.
#![no_main]

use dtfs::base::Oid;
use dtfs::record::{Draft, Op, RESERVED_DIR, RESERVED_XATTR_PREFIX, Record, RecordIter, Slot, Xattr};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for record in RecordIter::new(data).flatten() {
        judge(&record);
    }
    if let Some(bytes) = dtfs_fuzz::sealed(data) {
        if let Ok((record, len)) = Record::parse(&bytes) {
            judge(&record);
            assert_eq!(len, bytes.len());
        }
    }
});

fn judge(record: &Record<'_>) {
    let again = Draft::new(record.oid, &record.op, record.payload).seal(record.tid, record.time_ns);
    let (decoded, _) = Record::parse(again.bytes()).expect("what was encoded can be decoded");
    assert_eq!(&decoded, record);
    slots(&record.op).for_each(check_slot);
    xattrs(&record.op).for_each(check_xattr);
}

/// The rules of names once more, written another way than the decoder's.
fn check_slot(slot: &Slot) {
    let name = slot.name.as_bytes();
    assert!((1..=255).contains(&name.len()));
    assert!(name.iter().all(|byte| *byte != 0 && *byte != b'/'));
    assert!(name.iter().any(|byte| *byte != b'.') || name.len() > 2);
    assert!(slot.parent != Oid::ROOT || name != RESERVED_DIR);
}

fn check_xattr(xattr: &Xattr) {
    assert!(!xattr.name.starts_with(RESERVED_XATTR_PREFIX));
    assert!((1..=255).contains(&xattr.name.len()) && !xattr.name.contains(&0));
}

fn slots(op: &Op) -> impl Iterator<Item = &Slot> {
    let (one, two) = match op {
        Op::Create { slot, .. } | Op::Link { slot, .. } | Op::Unlink { slot, .. } => (Some(slot), None),
        Op::Rename { from, to, .. } | Op::Exchange { from, to, .. } => (Some(from), Some(to)),
        _ => (None, None),
    };
    one.into_iter().chain(two)
}

fn xattrs(op: &Op) -> impl Iterator<Item = &Xattr> {
    let many: &[Xattr] = match op {
        Op::Create { xattrs, .. }
        | Op::StateDir { xattrs, .. }
        | Op::StateObject { xattrs, .. }
        | Op::StateAttrs { xattrs, .. }
        | Op::StateAlike { xattrs, .. } => xattrs,
        Op::SetXattr { xattr, .. } => std::slice::from_ref(xattr),
        _ => &[],
    };
    many.iter()
}
