//! dtfs: a live directory tree, replicated.
//!
//! A FUSE filesystem over an existing directory passes every operation through, writes every change into a sequenced
//! journal, and senders replay that journal to targets. `ARCHITECTURE.md` beside this file shows the rooms and the nine
//! stops of one write.

pub mod applier;
pub mod backing;
pub mod base;
pub mod catchup;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod fuse;
pub mod journal;
pub mod menu;
pub mod receiver;
pub mod record;
pub mod sender;
pub mod stack;
pub mod sys;
pub mod wire;
