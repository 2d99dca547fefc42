//! Readings of state, of which a target gets what is inside at their stamp.

use super::Scope;
use crate::base::Oid;
use crate::record::{DecodeError, DirItem, Draft, Op, Record, Slot};

/// What a target does with readings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::sender) enum Use {
    /// It takes them over.
    Apply,
    /// It compares them.
    Check,
}

impl Scope {
    /// The readings without what is outside. Every record up to their stamp was judged.
    ///
    /// # Errors
    /// When one cannot be read.
    pub(in crate::sender) fn filter_state(&mut self, body: &[u8], what_for: Use) -> Result<Vec<u8>, DecodeError> {
        let mut out = Vec::with_capacity(body.len());
        let mut rest = body;
        while !rest.is_empty() {
            let (record, len) = Record::parse(rest)?;
            self.filter_reading(&record, &rest[..len], what_for, &mut out);
            rest = &rest[len..];
        }
        Ok(out)
    }

    fn filter_reading(&mut self, record: &Record<'_>, bytes: &[u8], what_for: Use, out: &mut Vec<u8>) {
        let oid = record.oid;
        let outside = |out: &mut Vec<u8>| {
            out.extend_from_slice(Draft::new(oid, &Op::StateOutside, &[]).seal(record.tid, 0).bytes());
        };
        if self.is_outside(oid) {
            let is_head = matches!(
                record.op,
                Op::StateDir { .. } | Op::StateObject { .. } | Op::StateAttrs { .. } | Op::StateAlike { .. }
            );
            match (what_for, &record.op) {
                (Use::Apply, Op::StateGone) => out.extend_from_slice(bytes),
                (Use::Apply, _) if is_head => outside(out),
                _ => {}
            }
            return;
        }
        match &record.op {
            Op::StateDir { items, .. } if !items.iter().all(|item| self.includes_item(oid, item)) => {
                let mut op = record.op.clone();
                if let Op::StateDir { items, .. } = &mut op {
                    items.retain(|item| self.includes_item(oid, item));
                }
                out.extend_from_slice(Draft::new(oid, &op, &[]).seal(record.tid, 0).bytes());
            }
            _ => out.extend_from_slice(bytes),
        }
        // Where some of its names are not known, the target knows whether one of them is inside.
        let is_end = matches!(record.op, Op::StateEnd { .. } | Op::StateAlike { .. });
        if what_for == Use::Apply && is_end && self.names.contains_key(&oid) {
            outside(out);
        }
    }

    fn includes_item(&mut self, dir: Oid, item: &DirItem) -> bool {
        self.includes(&Slot { parent: dir, name: item.name.clone() }, item.shape.is_dir())
    }
}
