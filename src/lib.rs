//! dtfs: a live directory tree, replicated.
//!
//! A FUSE filesystem over an existing directory passes every operation through, writes every change into a sequenced
//! journal, and senders replay that journal to targets. `ARCHITECTURE.md` beside this file shows the rooms and the nine
//! stops of one write.

pub mod backing;
pub mod base;
pub mod fuse;
pub mod journal;
pub mod record;
pub mod stack;
pub mod sys;
