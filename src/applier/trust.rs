//! What a copy does not take from a source that is trusted with content only.
//!
//! Records are sifted where they are performed and where they are compared, by the same rule, so that a verification does not
//! report what was left out. A device becomes an empty file that nobody may open: its name stays taken, and everything that
//! its source does to it later has an object.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::Applier;
use super::replica::{Replica, ReplicaError};
use super::roles::{set_marker, write_whole};
use crate::base::Oid;
use crate::record::{Attrs, Op, Record, Shape, Xattr};

/// While it is there the copy is restricted, also for whoever promotes it.
const RESTRICTED: &str = "restricted";
/// The objects of which something was left out: their oids, 16 bytes each.
const LEFT_OUT: &str = "left-out";
/// Objects that a session names in its log.
const MOST_NAMED: usize = 100;
/// Objects that are remembered; of more it is only known that there are more.
const MOST_KEPT: usize = 65_536;

/// What a source is trusted with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Trust {
    /// Everything: the same people run both hosts.
    #[default]
    Full,
    /// No device nodes, no set-user-ID and set-group-ID bits, no xattrs of `trusted.*` and `security.*`.
    Restricted,
}

/// Leaves out what a restricted copy does not take.
pub(super) struct Sieve {
    trust: Trust,
    /// The directory that the list lies in.
    state: PathBuf,
    /// The objects of which something was left out.
    left_out: BTreeSet<Oid>,
    /// The file does not say what `left_out` does.
    is_changed: bool,
    named: usize,
}

impl Sieve {
    pub(super) fn of(state: &Path) -> Sieve {
        let trust = if state.join(RESTRICTED).exists() { Trust::Restricted } else { Trust::Full };
        // A list that is lost is told anew with the next comparison of the whole tree.
        let oids = fs::read(state.join(LEFT_OUT)).unwrap_or_default();
        let left_out = oids.as_chunks().0.iter().map(|oid| Oid::from_bytes(*oid)).take(MOST_KEPT).collect();
        Sieve { trust, state: state.to_owned(), left_out, is_changed: false, named: 0 }
    }

    /// How many objects lack something here because of who sent them; at most as many as are remembered.
    pub(super) fn left_out(&self) -> u32 {
        self.left_out.len() as u32
    }

    /// What is to be performed instead of `record`; `None` when that is the record itself.
    pub(super) fn sift<'r>(&mut self, record: &Record<'r>) -> Option<Record<'r>> {
        if self.trust == Trust::Full {
            self.take_back(record);
            return None;
        }
        let (sifted, left) = sifted(record);
        match left.of_itself {
            true => self.note(record),
            false => self.take_back(record),
        }
        sifted
    }

    fn note(&mut self, record: &Record<'_>) {
        if self.left_out.len() < MOST_KEPT && self.left_out.insert(record.oid) {
            self.is_changed = true;
            if self.named < MOST_NAMED {
                self.named += 1;
                let word = record.op.word();
                tracing::warn!(oid = %record.oid, tid = %record.tid, word, "left out of a restricted copy");
            }
        }
    }

    /// An object whose whole state came and was taken lacks nothing.
    fn take_back(&mut self, record: &Record<'_>) {
        if matches!(record.op, Op::StateObject { .. } | Op::StateAttrs { .. } | Op::StateDir { .. }) {
            self.gone(record.oid);
        }
    }

    /// What is gone lacks nothing.
    pub(super) fn gone(&mut self, oid: Oid) {
        self.is_changed |= self.left_out.remove(&oid);
    }

    /// Writes the list down, when it has changed: before the catalog says that what it speaks of was performed. A list that
    /// cannot be written is tried again with the next state; nothing rests on it but what people are told.
    pub(super) fn save(&mut self) {
        if !self.is_changed {
            return;
        }
        let bytes: Vec<u8> = self.left_out.iter().flat_map(|oid| oid.to_bytes()).collect();
        match write_whole(&self.state, LEFT_OUT, &bytes) {
            Ok(()) => self.is_changed = false,
            Err(error) => tracing::warn!(%error, "the list of what was left out is not written"),
        }
    }

    /// The record as a restricted copy compares it; `None` when that is the record itself.
    pub(super) fn sift_check<'r>(&self, record: &Record<'r>) -> Option<Record<'r>> {
        match self.trust {
            Trust::Full => None,
            Trust::Restricted => sifted(record).0,
        }
    }
}

/// What was left out of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Left {
    /// Of the object that it speaks of.
    of_itself: bool,
    /// Of others that it tells about: the directories that it is in, or the object that it changes places with.
    of_others: bool,
}

fn sifted<'r>(record: &Record<'r>) -> (Option<Record<'r>>, Left) {
    let mut op = record.op.clone();
    let left = sift_op(&mut op);
    let changed = left != Left::default();
    let record = changed.then_some(Record {
        tid: record.tid,
        time_ns: record.time_ns,
        oid: record.oid,
        op,
        payload: record.payload,
    });
    (record, left)
}

fn sift_op(op: &mut Op) -> Left {
    let itself = |of_itself| Left { of_itself, of_others: false };
    match op {
        Op::Create { shape, attrs, xattrs, parent_after, .. } => Left {
            of_itself: sift_shape(shape) | sift_attrs(attrs) | sift_xattrs(xattrs),
            of_others: sift_attrs(parent_after),
        },
        Op::Link { shape, attrs, parent_after, .. } => {
            Left { of_itself: sift_shape(shape) | sift_attrs(attrs), of_others: sift_attrs(parent_after) }
        }
        Op::Unlink { parent_after, .. } => Left { of_itself: false, of_others: sift_attrs(parent_after) },
        Op::Rename { shape, attrs, from_after, to_after, .. } => Left {
            of_itself: sift_shape(shape) | sift_attrs(attrs),
            of_others: sift_attrs(from_after) | sift_attrs(to_after),
        },
        Op::Exchange { shape, attrs, other_shape, other_attrs, from_after, to_after, .. } => Left {
            of_itself: sift_shape(shape) | sift_attrs(attrs),
            of_others: sift_shape(other_shape)
                | sift_attrs(other_attrs)
                | sift_attrs(from_after)
                | sift_attrs(to_after),
        },
        Op::SetXattr { xattr: Xattr { name, .. }, attrs } | Op::RemoveXattr { name, attrs } if is_dangerous(name) => {
            let mut attrs = *attrs;
            sift_attrs(&mut attrs);
            *op = Op::SetAttr { attrs };
            itself(true)
        }
        Op::StateDir { attrs, xattrs, items, .. } => {
            let entries = items.iter_mut().fold(false, |any, item| sift_shape(&mut item.shape) | any);
            Left { of_itself: sift_attrs(attrs) | sift_xattrs(xattrs), of_others: entries }
        }
        Op::StateObject { shape, attrs, xattrs, .. } | Op::StateAlike { shape, attrs, xattrs, .. } => {
            itself(sift_shape(shape) | sift_attrs(attrs) | sift_xattrs(xattrs))
        }
        Op::StateAttrs { attrs, xattrs, .. } => itself(sift_attrs(attrs) | sift_xattrs(xattrs)),
        Op::Write { attrs, .. }
        | Op::Truncate { attrs }
        | Op::Allocate { attrs, .. }
        | Op::SetAttr { attrs }
        | Op::SetXattr { attrs, .. }
        | Op::RemoveXattr { attrs, .. }
        | Op::SetFlags { attrs, .. }
        | Op::StateData { attrs, .. }
        | Op::StateHole { attrs, .. }
        | Op::StateHash { attrs, .. }
        | Op::StateEnd { attrs } => itself(sift_attrs(attrs)),
        // What stands in it comes here by itself.
        Op::Filtered { .. } | Op::Gone | Op::StateGone | Op::StateOutside => Left::default(),
    }
}

fn is_device(mode: u32) -> bool {
    matches!(mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK)
}

fn sift_shape(shape: &mut Shape) -> bool {
    let device = is_device(shape.kind);
    if device {
        *shape = Shape::plain(libc::S_IFREG);
    }
    device
}

fn sift_attrs(attrs: &mut Attrs) -> bool {
    let before = attrs.mode;
    attrs.mode &= !(libc::S_ISUID | libc::S_ISGID);
    if is_device(before) {
        attrs.mode = libc::S_IFREG;
        attrs.size = 0;
    }
    attrs.mode != before
}

fn sift_xattrs(xattrs: &mut Vec<Xattr>) -> bool {
    let before = xattrs.len();
    xattrs.retain(|xattr| !is_dangerous(&xattr.name));
    xattrs.len() != before
}

fn is_dangerous(name: &[u8]) -> bool {
    name.starts_with(b"trusted.") || name.starts_with(b"security.")
}

impl Replica {
    /// What its source is trusted with, from now on.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub fn trust(&self, trust: Trust) -> Result<(), ReplicaError> {
        set_marker(&self.state, RESTRICTED, trust == Trust::Restricted)
    }
}

impl Applier {
    /// Of how many objects something was left out because of who sent them; at most as many as are remembered.
    pub fn left_out(&self) -> u32 {
        self.sieve.left_out()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dangerous_is_left_out_and_nothing_else() {
        let xattr = |name: &str| Xattr { name: name.as_bytes().to_vec(), value: b"v".to_vec() };
        let attrs = |mode| Attrs { mode, ..Attrs::default() };
        let mut op = Op::StateAttrs {
            attrs: attrs(libc::S_IFREG | 0o6755),
            xattrs: ["user.a", "trusted.b", "security.capability", "system.posix_acl_access"].map(xattr).to_vec(),
            flags: Default::default(),
        };
        assert!(sift_op(&mut op).of_itself);
        let Op::StateAttrs { attrs: left, xattrs, .. } = &op else { panic!("another record") };
        assert_eq!(left.mode, libc::S_IFREG | 0o755);
        assert_eq!(xattrs[..], ["user.a", "system.posix_acl_access"].map(xattr));
        assert_eq!(sift_op(&mut op), Left::default(), "what is harmless is not touched");
        let mut op = Op::SetXattr { xattr: xattr("security.capability"), attrs: attrs(libc::S_IFREG | 0o4711) };
        assert!(sift_op(&mut op).of_itself);
        assert_eq!(op, Op::SetAttr { attrs: attrs(libc::S_IFREG | 0o711) });
        let mut shape = Shape { kind: libc::S_IFBLK, rdev: 7, link_text: Vec::new() };
        assert!(sift_shape(&mut shape) && shape == Shape::plain(libc::S_IFREG));
    }

    #[test]
    fn what_lacks_something_is_counted_once_and_remembered() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(RESTRICTED), b"").unwrap();
        let mut sieve = Sieve::of(dir.path());
        let oid = |ino| Oid { ino, ..Oid::ROOT };
        let of = |ino, op: Op| Record { tid: crate::base::Tid(1), time_ns: 0, oid: oid(ino), op, payload: &[] };
        let mode = |mode| Op::SetAttr { attrs: Attrs { mode: libc::S_IFREG | mode, ..Attrs::default() } };
        for _ in 0..3 {
            assert!(sieve.sift(&of(9, mode(0o4755))).is_some());
        }
        assert!(sieve.sift(&of(10, mode(0o755))).is_none());
        assert!(sieve.sift(&of(11, mode(0o2755))).is_some());
        assert_eq!(sieve.left_out(), 2);
        sieve.save();
        let mut sieve = Sieve::of(dir.path());
        assert_eq!(sieve.left_out(), 2);
        sieve.gone(oid(9));
        assert_eq!(sieve.left_out(), 1);
        // Trusted from now on: what comes whole lacks nothing any more.
        sieve.trust = Trust::Full;
        let state = Op::StateAttrs { attrs: Attrs::default(), xattrs: vec![], flags: Default::default() };
        assert!(sieve.sift(&of(11, state)).is_none());
        assert_eq!(sieve.left_out(), 0);
    }
}
