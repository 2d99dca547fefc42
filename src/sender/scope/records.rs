//! Changes: what each is for the target, and what has to be compared for it.

use super::{Names, Place, Scope, attributes, compared};
use crate::base::{Oid, Tid, faults};
use crate::catchup::TreeView;
use crate::journal::NewWork;
use crate::record::{Attrs, DecodeError, Draft, Fate, Instead, Op, Record, Replaced, Shape, Slot};
use crate::sender::SessionError;

/// What becomes of a record.
enum Judgement {
    /// It goes as it is.
    Keep,
    /// It is nothing to the target.
    Drop,
    /// It is this to the target.
    Instead(Instead),
}

use Judgement::Keep;

fn instead(oid: Oid, op: Op) -> Judgement {
    Judgement::Instead(Instead { oid, op: Box::new(op) })
}

/// An object that a change moves.
struct Mover<'a> {
    oid: Oid,
    from: &'a Slot,
    to: &'a Slot,
    /// Whether it was, and is, replicated by these names.
    was_in: bool,
    is_in: bool,
}

/// The directories of a rename: what they are afterwards.
struct After<'a> {
    from: &'a Attrs,
    to: &'a Attrs,
}

impl Scope {
    /// The records as the target gets them, and rows that must stand before it does.
    ///
    /// # Errors
    /// When a record or the tree cannot be read.
    pub(in crate::sender) fn filter_records(
        &mut self,
        view: &dyn TreeView,
        body: Vec<u8>,
    ) -> Result<(Vec<u8>, Vec<NewWork>), SessionError> {
        let (mut out, mut rows) = (Vec::with_capacity(body.len()), Vec::new());
        let mut rest = &body[..];
        while !rest.is_empty() {
            let (record, len) = Record::parse(rest).map_err(|_| SessionError::Protocol("a record cannot be read"))?;
            let mut original = [0; 56];
            original.copy_from_slice(&rest[..56]);
            let judgement = match faults::skipped("sender.rules") {
                true => Keep,
                false => self.judge(view, &record, &mut rows)?,
            };
            self.at = record.tid;
            let instead = match judgement {
                Keep => None,
                Judgement::Drop => Some(None),
                Judgement::Instead(instead) => Some(Some(instead)),
            };
            match instead {
                None => out.extend_from_slice(&rest[..len]),
                Some(instead) => {
                    let op = Op::Filtered { original, instead };
                    out.extend_from_slice(Draft::new(record.oid, &op, &[]).seal(record.tid, record.time_ns).bytes());
                }
            }
            rest = &rest[len..];
        }
        Ok((out, rows))
    }

    fn judge(
        &mut self,
        view: &dyn TreeView,
        record: &Record<'_>,
        rows: &mut Vec<NewWork>,
    ) -> Result<Judgement, SessionError> {
        let (oid, tid) = (record.oid, record.tid);
        Ok(match &record.op {
            Op::Create { slot, shape, parent_after, .. } => self.create(oid, slot, shape, parent_after),
            Op::Link { slot, parent_after, .. } => self.link((oid, tid), slot, parent_after, rows),
            Op::Unlink { slot, fate, .. } => self.unlink((oid, tid), slot, *fate, rows),
            Op::Rename { from, to, shape, replaced, from_after, to_after, .. } => {
                if let Some(replaced) = replaced {
                    self.replaced(*replaced, tid, to, rows);
                }
                let mover = self.moves(view, oid, shape, (from, to), tid, rows)?;
                self.rename(&mover, &After { from: from_after, to: to_after }, rows)
            }
            Op::Exchange { .. } => self.exchange(view, record, rows)?,
            Op::Gone => {
                self.forget(oid);
                Keep
            }
            _ if self.is_outside(oid) => Judgement::Drop,
            _ => Keep,
        })
    }

    fn create(&mut self, oid: Oid, slot: &Slot, shape: &Shape, parent_after: &Attrs) -> Judgement {
        let is_in = self.includes(slot, shape.is_dir());
        if shape.is_dir() {
            self.set_place(oid, slot);
        } else if is_in {
            self.names.remove(&oid);
        } else {
            self.names.insert(oid, Names { slots: vec![slot.clone()], count: 1, counted: Tid::ZERO });
        }
        match is_in {
            true => Keep,
            false => self.not_there(oid, slot, parent_after),
        }
    }

    fn link(&mut self, (oid, tid): (Oid, Tid), slot: &Slot, after: &Attrs, rows: &mut Vec<NewWork>) -> Judgement {
        let (is_in, was_out) = (self.includes(slot, false), self.is_outside(oid));
        match self.names.get_mut(&oid) {
            Some(names) if !names.slots.contains(slot) => {
                names.slots.push(slot.clone());
                if names.count != Names::UNKNOWN && tid > names.counted {
                    names.count += 1;
                }
            }
            None if !is_in => {
                let names = Names { slots: vec![slot.clone()], count: Names::UNKNOWN, counted: tid };
                self.names.insert(oid, names);
            }
            _ => {}
        }
        self.note_crossing(oid, was_out, tid, rows);
        match is_in {
            true => Keep,
            false => self.not_there(oid, slot, after),
        }
    }

    fn unlink(&mut self, (oid, tid): (Oid, Tid), slot: &Slot, fate: Fate, rows: &mut Vec<NewWork>) -> Judgement {
        let is_dir = self.dirs.contains_key(&oid);
        let is_in = self.includes(slot, is_dir);
        let was_out = self.is_outside(oid);
        self.lose_name(oid, slot, tid);
        self.note_crossing(oid, was_out, tid, rows);
        if is_in && fate == Fate::Kept && self.names.contains_key(&oid) {
            // Its other names may all be outside: then it is not to wait for one.
            rows.push(compared(oid, false));
        }
        if fate == Fate::Gone || is_dir {
            self.forget(oid);
        }
        match (is_in, fate) {
            // In a directory that is inside it says what that is afterwards, and takes no name that is there.
            _ if is_in || self.place(slot.parent) != Place::Outside => Keep,
            (_, Fate::Gone) => instead(oid, Op::Gone),
            (_, Fate::Kept) => Judgement::Drop,
        }
    }

    /// The object in the slot was put out of it.
    fn replaced(&mut self, replaced: Replaced, tid: Tid, slot: &Slot, rows: &mut Vec<NewWork>) {
        let Replaced { oid, fate } = replaced;
        let was_out = self.is_outside(oid);
        self.lose_name(oid, slot, tid);
        self.note_crossing(oid, was_out, tid, rows);
        match fate {
            Fate::Gone => self.forget(oid),
            Fate::Kept if self.dirs.contains_key(&oid) => self.forget(oid),
            Fate::Kept if self.names.contains_key(&oid) => rows.push(compared(oid, false)),
            Fate::Kept => {}
        }
    }

    /// Moves an object, and queues what the move makes doubtful.
    fn moves<'a>(
        &mut self,
        view: &dyn TreeView,
        oid: Oid,
        shape: &Shape,
        (from, to): (&'a Slot, &'a Slot),
        tid: Tid,
        rows: &mut Vec<NewWork>,
    ) -> Result<Mover<'a>, SessionError> {
        let is_dir = shape.is_dir();
        let (was_in, is_in) = (self.includes(from, is_dir), self.includes(to, is_dir));
        let was_known = self.names.contains_key(&oid);
        if is_dir {
            let before = self.place_of(from);
            self.set_place(oid, to);
            let after = self.place(oid);
            let differs = match (&before, &after) {
                (Place::Inside(a), Place::Inside(b)) => self.rules.may_differ_below(a, b),
                (before, after) => before != after,
            };
            if differs || was_in != is_in || tid <= self.settled || !is_in && self.place(from.parent) != Place::Outside
            {
                rows.push(compared(oid, true));
            }
            if was_in && !is_in {
                self.learn(view, oid).map_err(|errno| SessionError::Tree { oid, errno })?;
            }
        } else {
            let was_out = self.is_outside(oid);
            self.move_name(view, oid, (from, to), is_in);
            self.note_crossing(oid, was_out, tid, rows);
            if was_in != is_in || tid <= self.settled || !is_in && !was_known {
                rows.push(compared(oid, false));
            }
        }
        Ok(Mover { oid, from, to, was_in, is_in })
    }

    fn rename(&mut self, mover: &Mover<'_>, after: &After<'_>, rows: &mut Vec<NewWork>) -> Judgement {
        let Mover { oid, from, to, .. } = *mover;
        if mover.is_in {
            return Keep;
        }
        if mover.was_in || self.place(from.parent) != Place::Outside {
            if to.parent != from.parent && self.place(to.parent) != Place::Outside {
                rows.push(attributes(to.parent));
            }
            let op = Op::Unlink { slot: from.clone(), fate: Fate::Kept, parent_after: *after.from };
            return instead(oid, op);
        }
        self.not_there(oid, to, after.to)
    }

    fn exchange(
        &mut self,
        view: &dyn TreeView,
        record: &Record<'_>,
        rows: &mut Vec<NewWork>,
    ) -> Result<Judgement, SessionError> {
        let Op::Exchange { from, to, shape, attrs, other, other_shape, other_attrs, from_after, to_after } = &record.op
        else {
            return Ok(Keep);
        };
        let (oid, tid) = (record.oid, record.tid);
        let mover = self.moves(view, oid, shape, (from, to), tid, rows)?;
        let back = self.moves(view, *other, other_shape, (to, from), tid, rows)?;
        let replaced = |oid| Some(Replaced { oid, fate: Fate::Kept });
        Ok(match (mover.is_in, back.is_in) {
            (true, true) => Keep,
            (true, false) => {
                let op = Op::Rename {
                    from: from.clone(),
                    to: to.clone(),
                    shape: shape.clone(),
                    attrs: *attrs,
                    replaced: replaced(*other),
                    from_after: *from_after,
                    to_after: *to_after,
                };
                instead(oid, op)
            }
            (false, true) => {
                let op = Op::Rename {
                    from: to.clone(),
                    to: from.clone(),
                    shape: other_shape.clone(),
                    attrs: *other_attrs,
                    replaced: replaced(oid),
                    from_after: *to_after,
                    to_after: *from_after,
                };
                instead(*other, op)
            }
            (false, false) => {
                // One record cannot empty two slots: the other one's directory is listed.
                let parents = [from.parent, to.parent];
                rows.extend(parents.into_iter().filter(|dir| self.place(*dir) != Place::Outside).map(super::listing));
                self.rename(&mover, &After { from: from_after, to: to_after }, rows)
            }
        })
    }

    /// The object is not in the slot, as far as the target is to know; its directory is so afterwards.
    fn not_there(&mut self, oid: Oid, slot: &Slot, parent_after: &Attrs) -> Judgement {
        match self.place(slot.parent) {
            Place::Outside => Judgement::Drop,
            _ => instead(oid, Op::Unlink { slot: slot.clone(), fate: Fate::Kept, parent_after: *parent_after }),
        }
    }

    /// What was outside and is not any more lacks what was kept back meanwhile.
    fn note_crossing(&mut self, oid: Oid, was_out: bool, tid: Tid, rows: &mut Vec<NewWork>) {
        if was_out && (tid <= self.settled || !self.is_outside(oid)) {
            rows.push(compared(oid, self.dirs.contains_key(&oid)));
        }
    }

    fn place_of(&mut self, slot: &Slot) -> Place {
        match self.place(slot.parent) {
            Place::Inside(path) => {
                let path = super::join(&path, slot.name.as_bytes());
                if self.rules.excludes(&path, true) { Place::Outside } else { Place::Inside(path.into()) }
            }
            place => place,
        }
    }

    fn lose_name(&mut self, oid: Oid, slot: &Slot, tid: Tid) {
        if let Some(names) = self.names.get_mut(&oid)
            && let Some(at) = names.slots.iter().position(|known| known == slot)
        {
            names.slots.swap_remove(at);
            if names.count != Names::UNKNOWN && tid > names.counted {
                names.count = names.count.saturating_sub(1);
            }
        }
    }

    fn move_name(&mut self, view: &dyn TreeView, oid: Oid, (from, to): (&Slot, &Slot), is_in: bool) {
        match self.names.get_mut(&oid) {
            Some(names) => {
                names.slots.retain(|known| known != from && known != to);
                names.slots.push(to.clone());
            }
            None if !is_in => {
                let (count, counted) = count_names(view, oid);
                self.names.insert(oid, Names { slots: vec![to.clone()], count, counted });
            }
            None => {}
        }
    }

    fn forget(&mut self, oid: Oid) {
        self.names.remove(&oid);
        if self.dirs.remove(&oid).is_some() {
            self.places.remove(&oid);
        }
    }
}

/// How many names the object has now, and at which TID that is.
fn count_names(view: &dyn TreeView, oid: Oid) -> (u32, Tid) {
    use std::os::fd::AsFd;
    let Ok(Some(key)) = view.key_of(oid) else { return (Names::UNKNOWN, view.stamp()) };
    let _guard = view.lock(key);
    let stat = view.tree().open_key(key, libc::O_PATH).and_then(|fd| crate::sys::fstat(fd.as_fd()));
    (stat.map_or(Names::UNKNOWN, |stat| stat.nlink as u32), view.stamp())
}

impl From<DecodeError> for SessionError {
    fn from(_: DecodeError) -> SessionError {
        SessionError::Protocol("what was read here cannot be read again")
    }
}
