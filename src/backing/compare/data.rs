//! Content and holes of two regular files of equal size.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::object::{Failure, Object};
use super::{CompareOptions, What};
use crate::backing::extents::{data_in, written};
use crate::sys;

const BLOCK_BYTES: usize = 1 << 20;

/// Compares the content, and the holes when asked. Returns how many bytes were read on each side.
pub(super) fn compare(a: &Object, b: &Object, options: &CompareOptions, found: &mut Vec<What>) -> Result<u64, Failure> {
    let size = a.stat.size;
    let (file_a, file_b) = (open(a)?, open(b)?);
    // Before the content: reading fills the page cache, and cached pages of a preallocated range count as data.
    let map_a = data_in(file_a.as_fd(), 0..size).map_err(|errno| (a.side, errno))?;
    let map_b = data_in(file_b.as_fd(), 0..size).map_err(|errno| (b.side, errno))?;
    if options.holes && map_a != map_b {
        let written_a = written(file_a.as_fd(), 0..size).map_err(|errno| (a.side, errno))?;
        let written_b = written(file_b.as_fd(), 0..size).map_err(|errno| (b.side, errno))?;
        found.extend(first_unequal(&written_a, &written_b).map(|offset| What::Holes { offset }));
    }
    content((a, file_a.as_fd()), (b, file_b.as_fd()), union(map_a, map_b), found)
}

fn open(object: &Object) -> Result<OwnedFd, Failure> {
    sys::reopen(object.fd.as_fd(), libc::O_RDONLY | libc::O_NOATIME).map_err(|errno| (object.side, errno))
}

/// Where two maps first differ.
fn first_unequal(a: &[Range<u64>], b: &[Range<u64>]) -> Option<u64> {
    let edges = |map: &[Range<u64>]| map.iter().flat_map(|r| [r.start, r.end]).chain([u64::MAX]).collect::<Vec<_>>();
    edges(a).into_iter().zip(edges(b)).find(|(x, y)| x != y).map(|(x, y)| x.min(y))
}

/// What is data on either side.
fn union(a: Vec<Range<u64>>, b: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut all = [a, b].concat();
    all.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in all {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

fn content(
    (a, file_a): (&Object, BorrowedFd<'_>),
    (b, file_b): (&Object, BorrowedFd<'_>),
    ranges: Vec<Range<u64>>,
    found: &mut Vec<What>,
) -> Result<u64, Failure> {
    let (mut buffer_a, mut buffer_b) = (Vec::new(), Vec::new());
    let mut bytes = 0;
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(BLOCK_BYTES as u64) as usize;
            buffer_a.resize(len, 0);
            buffer_b.resize(len, 0);
            sys::read_exact_at(file_a, &mut buffer_a, at).map_err(|errno| (a.side, errno))?;
            sys::read_exact_at(file_b, &mut buffer_b, at).map_err(|errno| (b.side, errno))?;
            bytes += len as u64;
            if let Some(index) = buffer_a.iter().zip(&buffer_b).position(|(x, y)| x != y) {
                found.push(What::Content { offset: at + index as u64 });
                return Ok(bytes);
            }
            at += len as u64;
        }
    }
    Ok(bytes)
}
