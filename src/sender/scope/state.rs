//! Readings of state, of which a target gets what is inside at their stamp.

use super::{Scope, compared};
use crate::base::Oid;
use crate::journal::NewWork;
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
    /// The readings without what is outside, and rows that must stand before the target has them. Every record up to their
    /// stamp was judged.
    ///
    /// # Errors
    /// When one cannot be read.
    pub(in crate::sender) fn filter_state(
        &mut self,
        body: &[u8],
        what_for: Use,
    ) -> Result<(Vec<u8>, Vec<NewWork>), DecodeError> {
        let (mut out, mut rows) = (Vec::with_capacity(body.len()), Vec::new());
        let mut rest = body;
        while !rest.is_empty() {
            let (record, len) = Record::parse(rest)?;
            if let Op::StateDir { items, .. } = &record.op {
                self.take_listing(record.oid, items, &mut rows);
            }
            self.filter_reading(&record, &rest[..len], what_for, &mut out);
            rest = &rest[len..];
        }
        Ok((out, rows))
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

    /// A listing is what there is at its stamp, also of what was moved behind the journal: while the volume was not mounted.
    fn take_listing(&mut self, dir: Oid, items: &[DirItem], rows: &mut Vec<NewWork>) {
        for item in items {
            let slot = Slot { parent: dir, name: item.name.clone() };
            let is_dir = item.shape.is_dir();
            let is_news = match is_dir {
                true => self.dirs.get(&item.oid) != Some(&slot),
                false => self.names.get(&item.oid).is_some_and(|names| !names.slots.contains(&slot)),
            };
            if !is_news {
                continue;
            }
            let was_out = self.is_outside(item.oid);
            if is_dir {
                self.set_place(item.oid, &slot);
            } else if let Some(names) = self.names.get_mut(&item.oid) {
                names.slots.push(slot);
                names.count = names.count.max(names.slots.len() as u32);
            }
            if was_out && !self.is_outside(item.oid) {
                rows.push(compared(item.oid, is_dir));
            }
        }
    }

    fn includes_item(&mut self, dir: Oid, item: &DirItem) -> bool {
        self.includes(&Slot { parent: dir, name: item.name.clone() }, item.shape.is_dir())
    }
}
