//! With which credentials a worker thread acts.
//!
//! The kernel has checked permission already (`default_permissions`), so a worker keeps all of root's rights and takes
//! over only what decides about owners, quotas, reserved blocks and privilege bits. Every switch is sticky: what the
//! thread already is costs no system call.

use std::cell::RefCell;

use super::types::{Caller, Privileges};
use crate::sys::{self, Dropped, Errno, Result, Stat, ThreadCreds};

struct Worker {
    ids: ThreadCreds,
    umask: Option<u32>,
    fsetid: Dropped,
    resource: Dropped,
}

thread_local! {
    static WORKER: RefCell<Option<Worker>> = const { RefCell::new(None) };
}

/// For an op that makes an object: it belongs to the caller, with the caller's umask (the backing filesystem applies it,
/// because only there a default ACL can take its place). CAP_FSETID stays: without it the set-group-id bit that a
/// directory hands down would be lost for a caller outside the group.
pub(super) fn creating(caller: &Caller) -> Result<()> {
    with_worker(|worker| {
        worker.act_as(caller)?;
        worker.set_umask(caller.umask);
        worker.set_fsetid(Dropped::No)
    })
}

/// For an op that changes data: space is taken in the caller's name.
pub(super) fn changing_data(caller: &Caller, privileges: Privileges) -> Result<()> {
    with_worker(|worker| {
        worker.act_as(caller)?;
        worker.set_fsetid(match privileges {
            Privileges::Keep => Dropped::No,
            Privileges::Kill => Dropped::Yes,
        })
    })
}

/// For an op that changes attributes. The thread's ids do not matter there, but without CAP_FSETID a chmod g+s by root
/// would be lost in silence.
pub(super) fn changing_attrs() -> Result<()> {
    with_worker(|worker| worker.set_fsetid(Dropped::No))
}

/// For a change of owner or access ACL, which takes set-group-id away from an object of a group that the caller is not
/// in (setattr_should_drop_sgid in fs/attr.c). The caller's further groups do not come with a request: the rare case
/// that depends on them asks /proc.
pub(super) fn changing_group_bit(caller: &Caller, before: &Stat) -> Result<()> {
    let stays = caller.uid == 0 || before.mode & libc::S_ISGID == 0 || is_member(caller, before.gid);
    match stays {
        true => changing_attrs(),
        false => changing_data(caller, Privileges::Kill),
    }
}

/// A caller who cannot be looked up (another pid namespace, already gone) is in no further group.
fn is_member(caller: &Caller, gid: u32) -> bool {
    if caller.gid == gid {
        return true;
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", caller.pid)).unwrap_or_default();
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    groups.split_whitespace().any(|group| group.parse() == Ok(gid))
}

/// Does `act` as one who may not administrate, as far as the backing filesystem asks (CAP_SYS_ADMIN).
pub(super) fn without_admin<T>(act: impl FnOnce() -> Result<T>) -> Result<T> {
    sys::drop_admin_thread(Dropped::Yes)?;
    let outcome = act();
    sys::drop_admin_thread(Dropped::No)?;
    outcome
}

fn with_worker(act: impl FnOnce(&mut Worker) -> Result<()>) -> Result<()> {
    WORKER.with(|cell| {
        let mut slot = cell.try_borrow_mut().map_err(|_| Errno::EDEADLK)?;
        match &mut *slot {
            Some(worker) => act(worker),
            none => act(none.insert(Worker::prepare()?)),
        }
    })
}

impl Worker {
    fn prepare() -> Result<Worker> {
        Ok(Worker { ids: ThreadCreds::prepare_thread()?, umask: None, fsetid: Dropped::No, resource: Dropped::No })
    }

    fn act_as(&mut self, caller: &Caller) -> Result<()> {
        // Root may use reserved blocks and pass quotas; others must not through us.
        let resource = match caller.uid {
            0 => Dropped::No,
            _ => Dropped::Yes,
        };
        if self.resource != resource {
            sys::drop_resource_thread(resource)?;
            self.resource = resource;
        }
        self.ids.act_as(caller.uid, caller.gid);
        Ok(())
    }

    fn set_umask(&mut self, umask: u32) {
        if self.umask != Some(umask) {
            sys::set_umask(umask);
            self.umask = Some(umask);
        }
    }

    fn set_fsetid(&mut self, dropped: Dropped) -> Result<()> {
        if self.fsetid != dropped {
            sys::drop_fsetid_thread(dropped)?;
            self.fsetid = dropped;
        }
        Ok(())
    }
}
