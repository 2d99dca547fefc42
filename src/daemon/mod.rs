//! The composition root: opens volumes, mounts them, runs their senders, answers the control socket, and stops cleanly.
//!
//! Invariants:
//! - A volume is open (journal, tree, senders) from its first mount until it is forgotten or the daemon ends; unmounting
//!   ends captures and nothing else.
//! - One bad entry never keeps the others from being mounted.
//! - The end is in this order: mounts gone, targets given a while for what they lack, senders told to finish, journal
//!   committed and marked clean.

mod bypass;
mod confine;
mod connect;
mod demo;
mod demote;
mod drain;
mod events;
mod guard;
mod handler;
mod identity;
mod listener;
mod log;
mod logs;
mod memory;
mod meter;
mod metrics;
mod mirror;
mod mirror_run;
mod openmetrics;
mod orphans;
mod pfs;
mod promote;
mod rejoin;
mod relay;
mod run;
mod scan;
mod sends;
mod serve;
mod service;
mod status;
mod unwatched;
mod verify;
mod volume;
mod volumes;
mod wait;
mod watched;

pub use demo::{Keep, demo};
pub use identity::show_identity;
pub use logs::log_to_stderr;
pub use pfs::pfs;
pub use promote::promote;
pub use run::run;
pub use serve::serve;
