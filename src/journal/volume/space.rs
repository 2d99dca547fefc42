//! Which filesystem the volume's objects are numbered by.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Journal;
use super::found::forget_spaces;
use crate::base::{Space, Tid};
use crate::journal::error::JournalError;
use crate::journal::store::{Level, all_targets, lose_place, put_event, put_meta, renew_mark};

impl Journal {
    /// The space of the objects of the tree that `backing` identifies. When that is another tree than the last time, inode
    /// numbers say nothing about who was called so before: its objects get a new space, and every target is compared.
    ///
    /// # Errors
    /// `Sqlite`.
    pub fn bind_backing(&self, backing: &[u8]) -> Result<Space, JournalError> {
        let store = &self.core.store;
        match store.meta_get("backing")? {
            Some(known) if known == backing => {}
            None => store.meta_set("backing", backing)?,
            Some(_) => {
                let space = Space::random();
                store.write("new space", |tx| {
                    put_meta(tx, &[("backing", backing), ("space", &space.0.to_le_bytes())])?;
                    forget_spaces(tx)?;
                    renew_mark(tx)?;
                    for target in all_targets(tx)? {
                        lose_place(tx, &target, Tid::ZERO)?;
                    }
                    let text = "the volume lies on another filesystem, or in another directory, than before: its objects \
                                get new ids, and all targets are compared";
                    put_event(tx, Level::Warning, None, text)
                })?;
                self.core.object_space.store(space.0, Ordering::SeqCst);
                *self.core.oids.lock() = Arc::default();
            }
        }
        Ok(self.identity().space)
    }
}
