//! Reading from a tree that somebody else changes.

use crate::base::Tid;
use crate::catchup::TreeView;

/// While it lives the tree can be read; without a view nothing is read.
pub(super) struct Turn<'a>(Option<&'a dyn TreeView>);

impl<'a> Turn<'a> {
    /// `None` when the tree cannot be read now; always one when nothing is to be read.
    pub(super) fn take(view: &'a dyn TreeView, is_needed: bool) -> Option<Turn<'a>> {
        match is_needed {
            false => Some(Turn(None)),
            true => view.take_turn().then_some(Turn(Some(view))),
        }
    }

    /// The tree, when it may be read.
    pub(super) fn view(&self) -> Option<&'a dyn TreeView> {
        self.0
    }

    /// Whether the tree is at `tid` or behind it: a reading made now follows every record up to there.
    pub(super) fn is_at(&self, tid: Tid) -> bool {
        self.0.is_some_and(|view| view.stamp() >= tid)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(view) = self.0 {
            view.end_turn();
        }
    }
}
