//! A directory's state, which comes in parts with records between them.
//!
//! From the first part on the directory counts as mirrored: records change its entries, and each part sets the slots that
//! it names. So a slot is right from the moment on that a part or a record has *settled* it. What was there before the
//! first part and was settled by none when the last one has come is not there on the source, and is put out.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::catalog::Known;
use super::objects::{Occupant, is_of_shape};
use super::park::OID_XATTR;
use super::{Applier, Outcome};
use crate::base::{Name, Oid, faults};
use crate::record::{Attrs, DirItem, Op, RESERVED_DIR, Shape, Slot, Xattr};
use crate::sys::{self, DirStream, InodeFlags};

/// The directory whose parts are coming.
pub(super) struct Listing {
    oid: Oid,
    before: Before,
    /// Objects in it whose state is not all here; only of use when the source does not send them unasked.
    lacking: Vec<Oid>,
}

/// The names that were in a directory before its first part, sorted, in one buffer: there may be very many.
#[derive(Default)]
struct Before {
    bytes: Vec<u8>,
    /// Where each name ends.
    ends: Vec<usize>,
    settled: Vec<bool>,
}

/// A part of a directory's state.
pub(super) struct Part<'a> {
    pub(super) attrs: &'a Attrs,
    pub(super) xattrs: &'a [Xattr],
    pub(super) flags: &'a InodeFlags,
    pub(super) first: bool,
    pub(super) last: bool,
    pub(super) items: &'a [DirItem],
}

impl<'a> Part<'a> {
    pub(super) fn of(op: &'a Op) -> Option<Part<'a>> {
        match op {
            Op::StateDir { attrs, xattrs, flags, first, last, items } => {
                Some(Part { attrs, xattrs, flags, first: *first, last: *last, items })
            }
            _ => None,
        }
    }
}

impl Before {
    fn read(dir: OwnedFd, is_root: bool) -> Outcome<Before> {
        let mut stream = DirStream::new(dir);
        let (mut bytes, mut spans) = (Vec::new(), Vec::new());
        while let Some(entry) = stream.next_entry()? {
            if Name::new(&entry.name).is_err() || is_root && entry.name == RESERVED_DIR {
                continue;
            }
            let start = bytes.len();
            bytes.extend_from_slice(&entry.name);
            spans.push((start, bytes.len()));
        }
        spans.sort_unstable_by(|a, b| bytes[a.0..a.1].cmp(&bytes[b.0..b.1]));
        let mut before = Before { settled: vec![false; spans.len()], ..Before::default() };
        for (start, end) in spans {
            before.bytes.extend_from_slice(&bytes[start..end]);
            before.ends.push(before.bytes.len());
        }
        Ok(before)
    }

    fn name(&self, at: usize) -> &[u8] {
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.bytes[start..self.ends[at]]
    }

    fn find(&self, name: &[u8]) -> Option<usize> {
        let (mut low, mut high) = (0, self.ends.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.name(middle).cmp(name) {
                std::cmp::Ordering::Equal => return Some(middle),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    fn settle(&mut self, name: &[u8]) {
        if let Some(at) = self.find(name) {
            self.settled[at] = true;
        }
    }

    fn is_open(&self, name: &[u8]) -> bool {
        self.find(name).is_some_and(|at| !self.settled[at])
    }
}

impl Applier {
    /// Performs a part. What is performed once more changes nothing.
    pub(super) fn perform_part(&mut self, oid: Oid, part: &Part<'_>) -> Outcome<()> {
        if part.first {
            self.begin_listing(oid, part)?;
        }
        if !self.lists(oid) {
            // The parts before are not here, or one of them could not be performed.
            if part.last && !self.catalog.is_blocked(oid) {
                self.need(oid);
            }
            return Ok(());
        }
        let Some(dir) = self.fd(oid)? else {
            return Ok(());
        };
        for item in part.items {
            self.set_slot(oid, dir.as_fd(), item)?;
        }
        match part.last {
            true => self.end_listing(oid, dir.as_fd(), part),
            false => Ok(()),
        }
    }

    /// Whether the directory's entries follow the records, because its first part has come.
    pub(super) fn follows(&self, oid: Oid) -> bool {
        self.lists(oid) && !faults::skipped("applier.follow_parts")
    }

    /// Whether the parts of this directory are coming.
    fn lists(&self, oid: Oid) -> bool {
        self.listing.as_ref().is_some_and(|listing| listing.oid == oid)
    }

    /// The directory is gone, or a part of it could not be performed: the parts that follow say nothing.
    pub(super) fn give_up_listing(&mut self, oid: Oid) {
        if self.lists(oid) {
            self.listing = None;
        }
    }

    /// A record has set the slot.
    pub(super) fn settle(&mut self, parent: Oid, name: &Name) {
        let listing = self.listing.as_mut().filter(|listing| listing.oid == parent);
        if let Some(listing) = listing.filter(|_| !faults::skipped("applier.settle")) {
            listing.before.settle(name.as_bytes());
        }
    }

    fn begin_listing(&mut self, oid: Oid, part: &Part<'_>) -> Outcome<()> {
        self.listing = None;
        self.listed = None;
        self.ensure(oid, &Shape::plain(libc::S_IFDIR))?;
        let Some(fd) = self.fd(oid)? else {
            return Ok(());
        };
        self.replace_xattrs(fd.as_fd(), part.xattrs)?;
        self.forget_displaced_from(oid, |_| true)?;
        let list = sys::openat(fd.as_fd(), c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
        let before = Before::read(list, oid == Oid::ROOT)?;
        if self.catalog.get(oid)?.is_some_and(|row| row.known <= Known::Placeholder) {
            self.catalog.set_known(oid, Known::Partial)?;
        }
        self.touch_listed(oid, *part.attrs, *part.flags);
        self.listing = Some(Listing { oid, before, lacking: Vec::new() });
        Ok(())
    }

    fn end_listing(&mut self, oid: Oid, dir: BorrowedFd<'_>, part: &Part<'_>) -> Outcome<()> {
        self.replace_xattrs(dir, part.xattrs)?;
        // It stays until all is done: what fails on a full disk is performed once more.
        let Some(mut listing) = self.listing.take() else {
            return Ok(());
        };
        let done = self.put_out_open(oid, dir, &mut listing.before);
        let lacking = std::mem::take(&mut listing.lacking);
        if let Err(trouble) = done {
            self.listing = Some(Listing { lacking, ..listing });
            return Err(trouble);
        }
        self.catalog.set_known(oid, Known::Complete)?;
        self.catalog.unblock(oid);
        self.listed = Some((oid, lacking));
        self.touch_listed(oid, *part.attrs, *part.flags);
        Ok(())
    }

    /// Makes one slot what the source says. The source has queued the child, or a StateEnd follows at which those that
    /// lack are asked for.
    fn set_slot(&mut self, parent: Oid, dir: BorrowedFd<'_>, item: &DirItem) -> Outcome<()> {
        if !self.takes_over(parent, dir, item)? {
            self.ensure(item.oid, &item.shape)?;
            self.bind(&Slot { parent, name: item.name.clone() }, item.oid)?;
        }
        let lacks = self.catalog.get(item.oid)?.is_none_or(|row| row.known != Known::Complete);
        if let Some(listing) = &mut self.listing {
            listing.before.settle(item.name.as_bytes());
            listing.lacking.extend(lacks.then_some(item.oid));
        }
        Ok(())
    }

    /// Whether what stands in the slot from before the listing is right, or has become right; else it is put out.
    fn takes_over(&mut self, parent: Oid, dir: BorrowedFd<'_>, item: &DirItem) -> Outcome<bool> {
        if !self.listing.as_ref().is_some_and(|listing| listing.before.is_open(item.name.as_bytes())) {
            return Ok(false);
        }
        let Some(occupant) = self.occupant(dir, &item.name)? else {
            return Ok(false);
        };
        if self.takes_place(&occupant, item)? {
            self.forget_displaced(item.oid)?;
            return Ok(true);
        }
        self.put_out_unlisted(parent, dir, &item.name, &occupant)?;
        Ok(false)
    }

    /// Puts out every entry that nothing has settled.
    fn put_out_open(&mut self, oid: Oid, dir: BorrowedFd<'_>, before: &mut Before) -> Outcome<()> {
        self.forget_displaced_from(oid, |name| before.is_open(name.as_bytes()))?;
        for at in 0..before.settled.len() {
            if before.settled[at] || faults::skipped("applier.put_out_open") {
                continue;
            }
            if let Ok(name) = Name::new(before.name(at))
                && let Some(occupant) = self.occupant(dir, &name)?
            {
                self.put_out_unlisted(oid, dir, &name, &occupant)?;
            }
            before.settled[at] = true;
        }
        Ok(())
    }

    /// Whether `occupant` is the object that the listing names, or can become it: a file or directory that was here before
    /// the tree became a replica is taken over when nothing else shares its content.
    fn takes_place(&mut self, occupant: &Occupant, item: &DirItem) -> Outcome<bool> {
        if occupant.is(item.oid) {
            if occupant.kind() != item.shape.kind || !is_of_shape(occupant.fd.as_fd(), &item.shape)? {
                return Ok(false);
            }
            if self.catalog.get(item.oid)?.is_none() {
                self.register(item.oid, occupant, Known::Placeholder)?;
            }
            return Ok(true);
        }
        let alone = occupant.is_dir() || occupant.kind() == libc::S_IFREG && occupant.stat.nlink == 1;
        let free = occupant.oid.is_none() && self.catalog.get(item.oid)?.is_none();
        if !(alone && free && occupant.kind() == item.shape.kind) {
            return Ok(false);
        }
        self.set_xattr(occupant.fd.as_fd(), OID_XATTR, &item.oid.to_bytes())?;
        self.register(item.oid, occupant, Known::Placeholder)?;
        Ok(true)
    }

    fn put_out_unlisted(&mut self, parent: Oid, dir: BorrowedFd<'_>, name: &Name, occupant: &Occupant) -> Outcome<()> {
        self.preserve(parent, dir)?;
        self.put_out(dir, name, occupant)?;
        if let Some(oid) = occupant.oid.filter(|_| !occupant.stale) {
            self.unlisted.insert(oid);
        }
        Ok(())
    }

    /// Asks about objects that a listing put out and that nothing has bound since: the source says what became of them.
    pub(super) fn ask_for_unlisted(&mut self) -> Outcome<()> {
        while let Some(oid) = self.unlisted.first().copied() {
            let entry = super::park::entry(oid)?;
            if self.tree.open_child(self.park.fd(), &entry, libc::O_PATH).is_ok() {
                self.need(oid);
            }
            self.unlisted.remove(&oid);
        }
        Ok(())
    }

    /// The end of a directory's state says that nothing of its children follows: those that are not known here are asked
    /// for. So a subtree that came into the source's tree from outside, with nothing in it that looks new, is fetched whole.
    pub(super) fn ask_for_children(&mut self, oid: Oid) -> Outcome<()> {
        let Some((_, children)) = self.listed.take().filter(|(listed, _)| *listed == oid) else {
            self.need(oid);
            return Ok(());
        };
        for child in children {
            if self.catalog.get(child)?.is_none_or(|row| row.known != Known::Complete) {
                self.need(child);
            }
        }
        Ok(())
    }
}
