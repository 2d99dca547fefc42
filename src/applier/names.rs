//! Names: binding objects to slots and taking them out, also where the tree is from the past or from the future of the
//! record that is performed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::catalog::Known;
use super::objects::Occupant;
use super::park::{self, OID_XATTR};
use super::{Applier, Outcome, Trouble};
use crate::base::{Name, Oid, faults};
use crate::record::{Attrs, Fate, Op, Replaced, Shape, Slot, Xattr};
use crate::sys::{self, Errno, InodeFlags};

type Dir = Arc<OwnedFd>;

/// A rename as its record says it.
struct Move<'a> {
    oid: Oid,
    from: &'a Slot,
    to: &'a Slot,
    shape: &'a Shape,
    replaced: Option<Replaced>,
}

impl Applier {
    pub(super) fn perform_namespace(&mut self, oid: Oid, op: &Op) -> Outcome<()> {
        match op {
            Op::Create { slot, shape, attrs, xattrs, flags, parent_after } => {
                self.create(oid, slot, shape, (xattrs, flags))?;
                self.touch(oid, *attrs);
                self.touch(slot.parent, *parent_after);
            }
            Op::Link { slot, shape, attrs, parent_after } => {
                if self.mirrored(slot.parent)?.is_some() {
                    self.ensure_or_need(oid, shape)?;
                    self.bind(slot, oid)?;
                }
                self.touch(oid, *attrs);
                self.touch(slot.parent, *parent_after);
            }
            Op::Unlink { slot, fate, parent_after } => {
                self.unlink(oid, slot, *fate)?;
                self.touch(slot.parent, *parent_after);
            }
            Op::Rename { from, to, shape, attrs, replaced, from_after, to_after } => {
                self.rename(&Move { oid, from, to, shape, replaced: *replaced })?;
                self.touch(oid, *attrs);
                self.touch(from.parent, *from_after);
                self.touch(to.parent, *to_after);
            }
            Op::Exchange { from, to, shape, attrs, other, other_shape, other_attrs, from_after, to_after } => {
                self.exchange((oid, from, shape), (*other, to, other_shape))?;
                self.touch(oid, *attrs);
                self.touch(*other, *other_attrs);
                self.touch(from.parent, *from_after);
                self.touch(to.parent, *to_after);
            }
            _ => {}
        }
        Ok(())
    }

    /// The directory when its entries are known here; else what happens in it waits for its state.
    pub(super) fn mirrored(&mut self, oid: Oid) -> Outcome<Option<Dir>> {
        match self.catalog.get(oid)? {
            Some(row) if row.kind == libc::S_IFDIR && (row.known == Known::Complete || self.follows(oid)) => {
                self.fd(oid)
            }
            _ => Ok(None),
        }
    }

    /// A new object is complete by its record. One that is there already (the record is performed again) goes back to the
    /// state it was born with; the records that follow fill it again.
    fn create(
        &mut self,
        oid: Oid,
        slot: &Slot,
        shape: &Shape,
        (xattrs, flags): (&[Xattr], &InodeFlags),
    ) -> Outcome<()> {
        self.adopt_from_slot(oid, slot, shape)?;
        self.ensure(oid, shape)?;
        if let Some(fd) = self.fd(oid)?.filter(|_| self.is_keeping()) {
            self.keep_content(oid, fd.as_fd())?;
        }
        self.catalog.set_known(oid, Known::Complete)?;
        self.catalog.unblock(oid);
        self.forget_missing(oid);
        if let Some(fd) = self.fd(oid)? {
            let fresh = self.fresh.contains(oid);
            if shape.is_file() && !fresh {
                self.tree.mutate().truncate(fd.as_fd(), 0)?;
            }
            if !(fresh && xattrs.is_empty()) {
                self.fresh.remove(oid);
                self.replace_xattrs(fd.as_fd(), xattrs)?;
            }
            if !(fresh && flags.is_plain()) {
                self.set_hints(oid, shape.kind, fd.as_fd(), flags)?;
                self.touched.entry(oid).or_default().flags = Some(*flags);
            }
        }
        self.bind(slot, oid)
    }

    fn adopt_from_slot(&mut self, oid: Oid, slot: &Slot, shape: &Shape) -> Outcome<()> {
        if self.catalog.get(oid)?.is_some() {
            return Ok(());
        }
        let Some(dir) = self.mirrored(slot.parent)? else {
            return Ok(());
        };
        match self.occupant(dir.as_fd(), &slot.name)? {
            Some(occupant) if occupant.is(oid) && occupant.kind() == shape.kind => {
                self.register(oid, &occupant, Known::Placeholder)
            }
            _ => Ok(()),
        }
    }

    fn unlink(&mut self, oid: Oid, slot: &Slot, fate: Fate) -> Outcome<()> {
        if let Some(dir) = self.mirrored(slot.parent)? {
            match self.occupant(dir.as_fd(), &slot.name)? {
                Some(occupant) if occupant.is(oid) => match fate {
                    Fate::Gone => self.remove_entry(dir.as_fd(), &slot.name, &occupant)?,
                    Fate::Kept => self.put_out(dir.as_fd(), &slot.name, &occupant)?,
                },
                _ => {}
            }
        }
        match fate {
            Fate::Gone => self.drop_object(oid),
            Fate::Kept => Ok(()),
        }
    }

    fn rename(&mut self, step: &Move<'_>) -> Outcome<()> {
        let from = self.mirrored(step.from.parent)?;
        let to = self.mirrored(step.to.parent)?;
        let there = match &from {
            Some(dir) => self.occupant(dir.as_fd(), &step.from.name)?.filter(|o| o.is(step.oid)),
            None => None,
        };
        match (&from, &to, there) {
            (Some(from), Some(to), Some(occupant)) => self.rename_in_place(step, from, to, &occupant)?,
            (from, to, there) => {
                if let (Some(from), Some(occupant)) = (from, there) {
                    self.put_out(from.as_fd(), &step.from.name, &occupant)?;
                }
                if to.is_some() {
                    self.ensure_or_need(step.oid, step.shape)?;
                    self.bind(step.to, step.oid)?;
                } else if self.catalog.get(step.oid)?.is_some() {
                    self.bind(step.to, step.oid)?;
                }
            }
        }
        match step.replaced {
            Some(Replaced { oid, fate: Fate::Gone }) => self.drop_object(oid),
            _ => Ok(()),
        }
    }

    /// The usual case: one renameat2, so that a reader of the target sees the old or the new and never nothing.
    fn rename_in_place(&mut self, step: &Move<'_>, from: &Dir, to: &Dir, occupant: &Occupant) -> Outcome<()> {
        if self.catalog.get(step.oid)?.is_none() {
            self.register(step.oid, occupant, Known::Placeholder)?;
            self.need(step.oid);
        }
        if let Some(present) = self.occupant(to.as_fd(), &step.to.name)? {
            if present.is(step.oid) {
                self.settle(step.to.parent, &step.to.name);
                // Two names of one file: rename(2) would do nothing. The old name goes.
                return self.put_out(from.as_fd(), &step.from.name, occupant);
            }
            let goes = step.replaced.is_some_and(|r| present.is(r.oid) && r.fate == Fate::Gone);
            if !goes || present.is_dir() || occupant.is_dir() {
                self.preserve_of(to)?;
                self.put_out(to.as_fd(), &step.to.name, &present)?;
            } else {
                self.keep_entry(to.as_fd(), &step.to.name, &present)?;
            }
        }
        self.move_entry(from.as_fd(), &step.from.name, to.as_fd(), &step.to.name, step.oid)?;
        self.settle(step.to.parent, &step.to.name);
        Ok(())
    }

    /// renameat2, and when the destination lies below the moved directory, that is parked out of the way first: such a tree
    /// is from the future of this record.
    fn move_entry(
        &mut self,
        from: BorrowedFd<'_>,
        from_name: &Name,
        to: BorrowedFd<'_>,
        to_name: &Name,
        oid: Oid,
    ) -> Outcome<()> {
        match self.tree.mutate().rename(from, from_name, to, to_name, 0) {
            Err(Errno::EINVAL) => {
                self.park_ancestor(to, oid)?;
                Ok(self.tree.mutate().rename(from, from_name, to, to_name, 0)?)
            }
            other => Ok(other?),
        }
    }

    fn exchange(&mut self, a: (Oid, &Slot, &Shape), b: (Oid, &Slot, &Shape)) -> Outcome<()> {
        let (a_dir, b_dir) = (self.mirrored(a.1.parent)?, self.mirrored(b.1.parent)?);
        let a_there = self.holds(a_dir.as_ref(), a.1, a.0)?;
        let b_there = self.holds(b_dir.as_ref(), b.1, b.0)?;
        if let (Some(x), Some(y), Some(_), Some(_)) = (&a_dir, &b_dir, &a_there, &b_there) {
            let tree = self.tree.mutate();
            let done = tree.rename(x.as_fd(), &a.1.name, y.as_fd(), &b.1.name, libc::RENAME_EXCHANGE);
            if done != Err(Errno::EINVAL) {
                done?;
                self.settle(a.1.parent, &a.1.name);
                self.settle(b.1.parent, &b.1.name);
                return Ok(());
            }
        }
        for (dir, slot, there) in [(&a_dir, a.1, a_there), (&b_dir, b.1, b_there)] {
            if let (Some(dir), Some(occupant)) = (dir, there) {
                self.put_out(dir.as_fd(), &slot.name, &occupant)?;
            }
        }
        for ((oid, _, shape), slot, dir) in [(a, b.1, &b_dir), (b, a.1, &a_dir)] {
            if dir.is_some() {
                self.ensure_or_need(oid, shape)?;
                self.bind(slot, oid)?;
            } else if self.catalog.get(oid)?.is_some() {
                self.bind(slot, oid)?;
            }
        }
        Ok(())
    }

    fn holds(&mut self, dir: Option<&Dir>, slot: &Slot, oid: Oid) -> Outcome<Option<Occupant>> {
        match dir {
            Some(dir) => Ok(self.occupant(dir.as_fd(), &slot.name)?.filter(|occupant| occupant.is(oid))),
            None => Ok(None),
        }
    }

    /// Binds a known object to a slot. Into a directory whose entries are not known yet nothing is bound: a directory waits
    /// in the park until that directory's state names it.
    pub(super) fn bind(&mut self, slot: &Slot, oid: Oid) -> Outcome<()> {
        // First: a mark that outlived this would put the object back where it does not belong any more.
        self.forget_displaced(oid)?;
        let Some(dir) = self.mirrored(slot.parent)? else {
            return self.park_dir(oid);
        };
        self.preserve(slot.parent, dir.as_fd())?;
        faults::point("applier.bind")?;
        self.remove_left_over(oid)?;
        if !self.place_parked(oid, dir.as_fd(), &slot.name)? {
            match self.occupant(dir.as_fd(), &slot.name)? {
                Some(occupant) if occupant.is(oid) => {}
                occupant => {
                    if let Some(occupant) = occupant {
                        self.put_out(dir.as_fd(), &slot.name, &occupant)?;
                    }
                    self.place(oid, dir.as_fd(), &slot.name)?;
                }
            }
        }
        self.settle(slot.parent, &slot.name);
        Ok(())
    }

    /// What is in the park under this oid is the object, unless the object itself has a name already: then it was made before a
    /// crash, by a session that did not know of that name yet, and must get none.
    fn remove_left_over(&mut self, oid: Oid) -> Outcome<()> {
        if self.fresh.contains(oid) || faults::skipped("applier.left_over") {
            return Ok(());
        }
        let (entry, parked) = (park::entry(oid)?, self.park.dir());
        match self.occupant(parked.as_fd(), &entry)? {
            Some(occupant) if occupant.stale => self.remove_entry(parked.as_fd(), &entry, &occupant),
            _ => Ok(()),
        }
    }

    /// The usual case, in one call: the object waits in the park and its name is free. Changes nothing otherwise.
    fn place_parked(&self, oid: Oid, dir: BorrowedFd<'_>, name: &Name) -> Outcome<bool> {
        let entry = park::entry(oid)?;
        match self.tree.mutate().rename(self.park.fd(), &entry, dir, name, libc::RENAME_NOREPLACE) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST | Errno::ENOENT | Errno::EINVAL | Errno::EPERM | Errno::EXDEV) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Gives a free name to a known object, an immutable one too: a file gets a further name, a directory moves.
    fn place(&mut self, oid: Oid, dir: BorrowedFd<'_>, name: &Name) -> Outcome<()> {
        match self.place_unlocked(oid, dir, name) {
            Err(Trouble::Errno(Errno::EPERM)) if self.lift_flags(oid)? => self.place_unlocked(oid, dir, name),
            done => done,
        }
    }

    fn place_unlocked(&mut self, oid: Oid, dir: BorrowedFd<'_>, name: &Name) -> Outcome<()> {
        let entry = park::entry(oid)?;
        let parked = self.park.dir();
        match self.tree.mutate().rename(parked.as_fd(), &entry, dir, name, libc::RENAME_NOREPLACE) {
            Ok(()) => return Ok(()),
            Err(Errno::ENOENT) => {}
            Err(Errno::EINVAL) => return self.move_entry(parked.as_fd(), &entry, dir, name, oid),
            Err(errno) => return Err(errno.into()),
        }
        let Some(fd) = self.fd(oid)? else {
            return Ok(());
        };
        if self.catalog.get(oid)?.is_none_or(|row| row.kind != libc::S_IFDIR) {
            return Ok(self.tree.mutate().link(fd.as_fd(), dir, name)?);
        }
        let Some((from, from_name)) = self.locate_dir(fd.as_fd())? else {
            return if is_led_away(fd.as_fd()) { self.make_anew(oid, dir, name) } else { Ok(()) };
        };
        self.preserve_of(&Arc::new(from.as_fd().try_clone_to_owned().map_err(|_| Errno::EMFILE)?))?;
        self.move_entry(from.as_fd(), &from_name, dir, name, oid)
    }

    /// Somebody has moved the directory out of the tree, while nothing kept him out. It is his now; another one takes its place,
    /// and its entries are asked for.
    fn make_anew(&mut self, oid: Oid, dir: BorrowedFd<'_>, name: &Name) -> Outcome<()> {
        tracing::warn!(%oid, "a directory was moved out of the tree: it is made anew");
        self.open.remove(&oid);
        self.catalog.remove(oid)?;
        self.ensure_or_need(oid, &Shape::plain(libc::S_IFDIR))?;
        self.place_unlocked(oid, dir, name)
    }

    /// Takes an object out of its slot: into the park when this was its last name. What is not ours goes to the orphans,
    /// what is left over from before a crash goes away. An immutable object is made changeable until the group ends.
    pub(super) fn put_out(&mut self, dir: BorrowedFd<'_>, name: &Name, occupant: &Occupant) -> Outcome<()> {
        match self.put_out_unlocked(dir, name, occupant) {
            Err(Trouble::Errno(Errno::EPERM)) if self.lift_occupant(occupant)? => {
                self.put_out_unlocked(dir, name, occupant)
            }
            done => done,
        }
    }

    fn put_out_unlocked(&mut self, dir: BorrowedFd<'_>, name: &Name, occupant: &Occupant) -> Outcome<()> {
        faults::point("applier.put_out")?;
        let Some(oid) = occupant.oid else {
            return self.put_among_orphans(dir, name, occupant);
        };
        if occupant.stale || (!occupant.is_dir() && occupant.stat.nlink > 1) {
            return self.remove_entry(dir, name, occupant);
        }
        let entry = park::entry(oid)?;
        self.open.remove(&oid);
        let parked = self.park.fd();
        match self.tree.mutate().rename(dir, name, parked, &entry, 0) {
            Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR | Errno::EISDIR) => {
                let parked = parked.try_clone_to_owned().map_err(|_| Errno::EMFILE)?;
                if let Some(old) = self.occupant(parked.as_fd(), &entry)? {
                    self.remove_entry(parked.as_fd(), &entry, &old)?;
                }
                Ok(self.tree.mutate().rename(dir, name, parked.as_fd(), &entry, 0)?)
            }
            other => Ok(other?),
        }
    }

    fn put_among_orphans(&mut self, dir: BorrowedFd<'_>, name: &Name, occupant: &Occupant) -> Outcome<()> {
        let label = format!("{}-{:x}", occupant.key.ino, occupant.key.generation);
        let label = Name::new(label.as_bytes()).map_err(|_| Errno::EINVAL)?;
        tracing::warn!(%name, %label, "an object that is not of the volume was moved to .dtfs/orphans");
        self.note_orphan(dir, name, occupant);
        let orphans = self.park.orphans();
        match self.tree.mutate().rename(dir, name, orphans, &label, libc::RENAME_NOREPLACE) {
            // Another name of the same object: it is kept under the first.
            Err(Errno::EEXIST) if self.tree.lookup(orphans, &label)?.key == occupant.key => {
                Ok(self.tree.mutate().unlink(dir, name)?)
            }
            done => Ok(done?),
        }
    }

    fn park_dir(&mut self, oid: Oid) -> Outcome<()> {
        if oid == Oid::ROOT || self.catalog.get(oid)?.is_none_or(|row| row.kind != libc::S_IFDIR) {
            return Ok(());
        }
        let Some(fd) = self.fd(oid)? else {
            return Ok(());
        };
        let Some((parent, name)) = self.locate_dir(fd.as_fd())? else {
            return Ok(());
        };
        if self.tree.key_of(parent.as_fd())? == self.tree.key_of(self.park.fd())? {
            return Ok(());
        }
        match self.occupant(parent.as_fd(), &name)? {
            Some(occupant) => self.put_out(parent.as_fd(), &name, &occupant),
            None => Ok(()),
        }
    }

    fn preserve_of(&mut self, dir: &Dir) -> Outcome<()> {
        let bytes = self.tree.xattr(dir.as_fd(), OID_XATTR)?;
        match bytes.and_then(|bytes| bytes.try_into().ok()).map(Oid::from_bytes) {
            Some(oid) => self.preserve(oid, dir.as_fd()),
            None => Ok(()),
        }
    }

    /// Where a directory is bound now: its parent and its name there. `None` for the root, and for one that is not in the tree.
    pub(super) fn locate_dir(&self, dir: BorrowedFd<'_>) -> Outcome<Option<(OwnedFd, Name)>> {
        let key = self.tree.key_of(dir)?;
        if key == self.tree.root_key() {
            return Ok(None);
        }
        let parent = match sys::openat(dir, c"..", libc::O_RDONLY | libc::O_DIRECTORY, 0) {
            Err(Errno::ENOENT) => return Ok(None),
            parent => parent?,
        };
        // The kernel knows the name of an open directory; it is only a hint until the entry was looked at.
        if let Some(name) = sys::last_component(dir)
            && self.tree.lookup(parent.as_fd(), &name).is_ok_and(|found| found.key == key)
        {
            return Ok(Some((parent, name)));
        }
        let list = sys::openat(parent.as_fd(), c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
        for name in super::objects::entry_names(list)? {
            if self.tree.lookup(parent.as_fd(), &name).is_ok_and(|found| found.key == key) {
                return Ok(Some((parent, name)));
            }
        }
        Ok(None)
    }

    /// Attributes of the parents are set at the end of the group; nothing else is needed for a name.
    pub(super) fn touch_listed(&mut self, oid: Oid, attrs: Attrs, flags: InodeFlags) {
        self.touch(oid, attrs);
        self.touched.entry(oid).or_default().flags = Some(flags);
    }
}

/// Whether a directory lies outside of the tree: the kernel knows no way from there to the root of the tree's own mount
/// (path_connected in fs/namei.c).
fn is_led_away(dir: BorrowedFd<'_>) -> bool {
    sys::openat(dir, c"..", libc::O_PATH | libc::O_DIRECTORY, 0).is_err_and(|errno| errno == Errno::ENOENT)
}
