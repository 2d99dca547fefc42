//! What a copy does not take from a source that is trusted with content only.
//!
//! Records are sifted where they are performed and where they are compared, by the same rule, so that a verification does not
//! report what was left out. A device becomes an empty file that nobody may open: its name stays taken, and everything that
//! its source does to it later has an object.

use super::replica::{Replica, ReplicaError};
use super::roles::set_marker;
use crate::record::{Attrs, Op, Record, Shape, Xattr};

/// While it is there the copy is restricted, also for whoever promotes it.
const RESTRICTED: &str = "restricted";
/// Objects that a session names in its log.
const MOST_NAMED: u64 = 100;

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
#[derive(Default)]
pub(super) struct Sieve {
    trust: Trust,
    dropped: u64,
}

impl Sieve {
    pub(super) fn of(state: &std::path::Path) -> Sieve {
        let trust = if state.join(RESTRICTED).exists() { Trust::Restricted } else { Trust::Full };
        Sieve { trust, dropped: 0 }
    }

    /// What is to be done instead of `record`; `None` when that is the record itself.
    pub(super) fn sift<'r>(&mut self, record: &Record<'r>) -> Option<Record<'r>> {
        if self.trust == Trust::Full {
            return None;
        }
        let mut op = record.op.clone();
        if !sift_op(&mut op) {
            return None;
        }
        self.dropped += 1;
        if self.dropped <= MOST_NAMED {
            tracing::warn!(oid = %record.oid, tid = %record.tid, word = op.word(), "left out of a restricted copy");
        }
        Some(Record { tid: record.tid, time_ns: record.time_ns, oid: record.oid, op, payload: record.payload })
    }
}

/// Whether something was left out.
fn sift_op(op: &mut Op) -> bool {
    match op {
        Op::Create { shape, attrs, xattrs, parent_after, .. } => {
            sift_shape(shape) | sift_attrs(attrs) | sift_xattrs(xattrs) | sift_attrs(parent_after)
        }
        Op::Link { shape, attrs, parent_after, .. } => sift_shape(shape) | sift_attrs(attrs) | sift_attrs(parent_after),
        Op::Unlink { parent_after, .. } => sift_attrs(parent_after),
        Op::Rename { shape, attrs, from_after, to_after, .. } => {
            sift_shape(shape) | sift_attrs(attrs) | sift_attrs(from_after) | sift_attrs(to_after)
        }
        Op::Exchange { shape, attrs, other_shape, other_attrs, from_after, to_after, .. } => {
            sift_shape(shape)
                | sift_attrs(attrs)
                | sift_shape(other_shape)
                | sift_attrs(other_attrs)
                | sift_attrs(from_after)
                | sift_attrs(to_after)
        }
        Op::SetXattr { xattr: Xattr { name, .. }, attrs } | Op::RemoveXattr { name, attrs } if is_dangerous(name) => {
            let mut attrs = *attrs;
            sift_attrs(&mut attrs);
            *op = Op::SetAttr { attrs };
            true
        }
        Op::StateDir { attrs, xattrs, items, .. } => {
            let entries = items.iter_mut().fold(false, |any, item| sift_shape(&mut item.shape) | any);
            sift_attrs(attrs) | sift_xattrs(xattrs) | entries
        }
        Op::StateObject { shape, attrs, xattrs, .. } | Op::StateAlike { shape, attrs, xattrs, .. } => {
            sift_shape(shape) | sift_attrs(attrs) | sift_xattrs(xattrs)
        }
        Op::StateAttrs { attrs, xattrs, .. } => sift_attrs(attrs) | sift_xattrs(xattrs),
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
        | Op::StateEnd { attrs } => sift_attrs(attrs),
        // What stands in it comes here by itself.
        Op::Filtered { .. } | Op::Gone | Op::StateGone | Op::StateOutside => false,
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
        assert!(sift_op(&mut op));
        let Op::StateAttrs { attrs: left, xattrs, .. } = &op else { panic!("another record") };
        assert_eq!(left.mode, libc::S_IFREG | 0o755);
        assert_eq!(xattrs[..], ["user.a", "system.posix_acl_access"].map(xattr));
        assert!(!sift_op(&mut op), "what is harmless is not touched");
        let mut op = Op::SetXattr { xattr: xattr("security.capability"), attrs: attrs(libc::S_IFREG | 0o4711) };
        assert!(sift_op(&mut op));
        assert_eq!(op, Op::SetAttr { attrs: attrs(libc::S_IFREG | 0o711) });
        let mut shape = Shape { kind: libc::S_IFBLK, rdev: 7, link_text: Vec::new() };
        assert!(sift_shape(&mut shape) && shape == Shape::plain(libc::S_IFREG));
    }
}
