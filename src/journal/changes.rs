//! What a run of records changed, object by object: what stays of records that are dropped before a target had them.

use std::collections::{BTreeMap, HashMap};

use crate::base::{Oid, Tid};
use crate::record::{Attrs, Fate, Instead, Op, Record};

/// A range up to the end of the file, however long it is: file offsets are below 2^63.
const END: u64 = i64::MAX as u64;
/// Ranges of one file, before they are made coarser.
const MOST_EXTENTS: usize = 64;
/// Ranges are rounded to multiples of one of these, the next when there are too many; then the file counts as a whole.
const GRAINS: [u64; 2] = [4 << 10, 1 << 20];

/// What changed, and since when.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::journal) struct Change {
    /// TID of the first change.
    pub(in crate::journal) since: Tid,
    /// What.
    pub(in crate::journal) what: What,
}

/// What of an object changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::journal) enum What {
    /// A directory: its entries, and with them its attributes.
    Entries,
    /// Not a directory: it is new, all of it.
    Born,
    /// Attributes, and data in these ranges.
    Extents(Extents),
    /// Not a directory: it may have changed anywhere.
    Anywhere,
}

/// Ranges of a file that do not touch each other.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(in crate::journal) struct Extents {
    /// From the first byte to the one behind the last.
    ranges: BTreeMap<u64, u64>,
    /// Which of [`GRAINS`] they are rounded to.
    grain: usize,
}

/// The changes of a run of records.
#[derive(Default)]
pub(in crate::journal) struct Changes {
    objects: HashMap<Oid, Change>,
}

impl Changes {
    /// Notes one record.
    pub(in crate::journal) fn note(&mut self, record: &Record<'_>) {
        let (oid, tid) = (record.oid, record.tid);
        match &record.op {
            Op::Create { slot, shape, .. } => {
                self.entries(slot.parent, tid);
                match shape.is_dir() {
                    true => self.entries(oid, tid),
                    false => self.set(oid, tid, What::Born),
                }
            }
            Op::Link { slot, .. } => {
                self.entries(slot.parent, tid);
                self.attributes(oid, tid);
            }
            Op::Unlink { slot, fate, .. } => {
                self.entries(slot.parent, tid);
                self.end(oid, *fate, tid);
            }
            Op::Rename { from, to, replaced, .. } => {
                self.entries(from.parent, tid);
                self.entries(to.parent, tid);
                self.attributes(oid, tid);
                if let Some(replaced) = replaced {
                    self.end(replaced.oid, replaced.fate, tid);
                }
            }
            Op::Exchange { from, to, other, .. } => {
                self.entries(from.parent, tid);
                self.entries(to.parent, tid);
                self.attributes(oid, tid);
                self.attributes(*other, tid);
            }
            Op::Gone => self.end(oid, Fate::Gone, tid),
            Op::Filtered { instead: Some(Instead { oid, op }), .. } => {
                self.note(&Record { oid: *oid, op: Op::clone(op), ..record.clone() });
            }
            Op::Filtered { instead: None, .. } => {}
            op => self.note_content(oid, op, record.payload.len() as u64, tid),
        }
    }

    fn note_content(&mut self, oid: Oid, op: &Op, payload_bytes: u64, tid: Tid) {
        match op {
            Op::Write { offset, .. } => self.extent(oid, *offset, payload_bytes, tid),
            Op::Truncate { attrs: Attrs { size, .. } } => self.extent(oid, *size, END - (*size).min(END), tid),
            Op::Allocate { offset, len, .. } => self.extent(oid, *offset, *len, tid),
            _ => self.attributes(oid, tid),
        }
    }

    /// Notes that `oid` may have changed in any way. Whether it is a directory is not known here.
    pub(in crate::journal) fn suspect(&mut self, oid: Oid, tid: Tid) {
        let change = self.change(oid, tid);
        if change.what != What::Entries {
            change.what = What::Anywhere;
        }
    }

    /// From when on they count: nothing of it is certain from `tid` on.
    pub(in crate::journal) fn count_from(&mut self, tid: Tid) {
        self.objects.values_mut().for_each(|change| change.since = tid);
    }

    /// The objects and what became of them, those that are not directories first: a directory's listing then finds its
    /// new entries known.
    pub(in crate::journal) fn in_order(&self) -> impl Iterator<Item = (Oid, &Change)> {
        let of = |directories: bool| {
            let wanted = move |change: &Change| (change.what == What::Entries) == directories;
            self.objects.iter().filter(move |(_, change)| wanted(change)).map(|(oid, change)| (*oid, change))
        };
        of(false).chain(of(true))
    }

    /// Number of objects.
    pub(in crate::journal) fn len(&self) -> usize {
        self.objects.len()
    }

    fn change(&mut self, oid: Oid, tid: Tid) -> &mut Change {
        let new = || Change { since: tid, what: What::Extents(Extents::default()) };
        self.objects.entry(oid).or_insert_with(new)
    }

    fn set(&mut self, oid: Oid, tid: Tid, what: What) {
        self.change(oid, tid).what = what;
    }

    fn entries(&mut self, oid: Oid, tid: Tid) {
        self.set(oid, tid, What::Entries);
    }

    fn attributes(&mut self, oid: Oid, tid: Tid) {
        self.change(oid, tid);
    }

    fn extent(&mut self, oid: Oid, offset: u64, len: u64, tid: Tid) {
        let change = self.change(oid, tid);
        if let What::Extents(extents) = &mut change.what
            && !extents.add(offset, len)
        {
            change.what = What::Anywhere;
        }
    }

    /// An object lost a name, or went. One that came and went within the run needs nothing of its own: where a target has
    /// a name of it after all, the listing of the directory puts that out, and the target asks.
    fn end(&mut self, oid: Oid, fate: Fate, tid: Tid) {
        if fate == Fate::Kept {
            return;
        }
        match self.objects.get(&oid) {
            Some(Change { what: What::Born, .. }) => {
                self.objects.remove(&oid);
            }
            // Reading it will say that it is gone.
            _ => self.set(oid, tid, What::Extents(Extents::default())),
        }
    }
}

impl Extents {
    /// Adds a range; false when there are too many even of the coarsest grain: then nothing less than the whole file will
    /// do.
    pub(in crate::journal) fn add(&mut self, offset: u64, len: u64) -> bool {
        if len > 0 {
            self.insert(offset, offset.saturating_add(len).min(END));
        }
        while self.ranges.len() > MOST_EXTENTS && self.grain + 1 < GRAINS.len() {
            self.grain += 1;
            for (start, end) in std::mem::take(&mut self.ranges) {
                self.insert(start, end);
            }
        }
        self.ranges.len() <= MOST_EXTENTS
    }

    /// Offset and length of each range, in order.
    pub(in crate::journal) fn ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        self.ranges.iter().map(|(start, end)| (*start, end - start))
    }

    fn insert(&mut self, start: u64, end: u64) {
        let grain = GRAINS[self.grain];
        let (mut start, mut end) = (start / grain * grain, end.div_ceil(grain).saturating_mul(grain).min(END));
        // Neighbours that overlap or touch become one with it.
        while let Some((&other, &other_end)) = self.ranges.range(..=end).next_back().filter(|(_, e)| **e >= start) {
            self.ranges.remove(&other);
            (start, end) = (start.min(other), end.max(other_end));
        }
        self.ranges.insert(start, end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Name;
    use crate::record::{Draft, Replaced, Shape, Slot};

    fn oid(ino: u8) -> Oid {
        Oid::from_bytes([ino; Oid::LEN])
    }

    fn slot(parent: u8, name: &str) -> Slot {
        Slot { parent: oid(parent), name: Name::new(name.as_bytes()).unwrap() }
    }

    /// The changes of `records`, whose TIDs start at 1.
    fn changes(records: &[(u8, Op, &[u8])]) -> Changes {
        let mut changes = Changes::default();
        for (at, (about, op, payload)) in records.iter().enumerate() {
            let bytes = Draft::new(oid(*about), op, payload).seal(Tid(at as u64 + 1), 0).bytes().to_vec();
            changes.note(&Record::parse(&bytes).unwrap().0);
        }
        changes
    }

    fn create(parent: u8, kind: u32) -> Op {
        let attrs = Attrs::default();
        Op::Create {
            slot: slot(parent, "x"),
            shape: Shape::plain(kind),
            attrs,
            flags: crate::sys::InodeFlags::default(),
            xattrs: Vec::new(),
            parent_after: attrs,
        }
    }

    fn write(offset: u64) -> Op {
        Op::Write { offset, attrs: Attrs::default() }
    }

    fn what(changes: &Changes, about: u8) -> Option<&What> {
        changes.objects.get(&oid(about)).map(|change| &change.what)
    }

    #[test]
    fn ranges_join_and_coarsen() {
        let mut extents = Extents::default();
        assert!(extents.add(5000, 10) && extents.add(0, 1) && extents.add(9000, 0));
        assert_eq!(extents.ranges().collect::<Vec<_>>(), [(0, 8192)]);
        assert!((0..=MOST_EXTENTS as u64).all(|at| extents.add(at * 16384, 1)));
        assert_eq!(extents.ranges().collect::<Vec<_>>(), [(0, 2 << 20)], "rounded to the next grain");
        let fits = |at: &u64| extents.add(at * (4 << 20), 1);
        assert_eq!((1..1000).take_while(fits).count(), MOST_EXTENTS - 1, "then it is the whole file");
    }

    #[test]
    fn a_range_may_reach_to_the_end() {
        let attrs = Attrs { size: 100, ..Attrs::default() };
        let changes = changes(&[(9, Op::Truncate { attrs }, b""), (9, write(1 << 40), b"x")]);
        let Some(What::Extents(extents)) = what(&changes, 9) else { panic!("{:?}", what(&changes, 9)) };
        assert_eq!(extents.ranges().collect::<Vec<_>>(), [(0, END)]);
    }

    #[test]
    fn what_came_and_went_leaves_its_directory_only() {
        let attrs = Attrs::default();
        let gone = Op::Unlink { slot: slot(2, "x"), fate: Fate::Gone, parent_after: attrs };
        let changes = changes(&[(9, create(2, libc::S_IFREG), b""), (9, write(0), b"abc"), (9, gone, b"")]);
        assert_eq!((changes.len(), what(&changes, 2)), (1, Some(&What::Entries)));
        assert_eq!(changes.objects[&oid(2)].since, Tid(1));
    }

    #[test]
    fn what_was_there_before_and_went_is_read_once_more() {
        let attrs = Attrs::default();
        let rename = Op::Rename {
            from: slot(2, "x"),
            to: slot(3, "x"),
            shape: Shape::plain(libc::S_IFREG),
            attrs,
            replaced: Some(Replaced { oid: oid(8), fate: Fate::Gone }),
            from_after: attrs,
            to_after: attrs,
        };
        let changes = changes(&[(8, write(0), b"abc"), (9, rename, b"")]);
        assert_eq!(what(&changes, 8), Some(&What::Extents(Extents::default())));
        assert_eq!(what(&changes, 9), Some(&What::Extents(Extents::default())));
        assert_eq!(changes.in_order().skip(2).map(|(_, c)| &c.what).collect::<Vec<_>>(), [&What::Entries; 2]);
    }

    #[test]
    fn a_new_directory_is_listed_and_a_new_file_is_sent() {
        let changes = changes(&[
            (7, create(2, libc::S_IFDIR), b""),
            (9, create(7, libc::S_IFREG), b""),
            (9, write(1 << 30), b"abc"),
            (5, write(0), b"abc"),
        ]);
        assert_eq!(what(&changes, 7), Some(&What::Entries));
        assert_eq!(what(&changes, 9), Some(&What::Born));
        assert!(matches!(what(&changes, 5), Some(What::Extents(extents)) if extents.ranges().count() == 1));
    }
}
