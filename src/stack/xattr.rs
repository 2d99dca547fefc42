//! Extended attributes of all namespaces; access control lists are two of them.

use std::ffi::CString;
use std::os::fd::AsFd;

use super::mutation::{SMALL_RECORD, Touch};
use super::types::{Caller, NodeId, Object};
use super::{Stack, creds};
use crate::record::{Attrs, HISTORY_XATTR, Op, RESERVED_XATTR_PREFIX, Xattr};
use crate::sys::{self, Errno, Result};

const TRUSTED_PREFIX: &[u8] = b"trusted.";
const ACCESS_ACL: &[u8] = b"system.posix_acl_access";

impl Stack {
    /// getxattr(2).
    ///
    /// # Errors
    /// ENODATA when it is not set, or is dtfs's own; else as getxattr(2).
    pub fn getxattr(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        if is_reserved(name) {
            return self.history(node, name);
        }
        let name = xattr_name(name)?;
        sys::getxattr(self.object(node)?.fd.as_fd(), &name)
    }

    /// The one name of dtfs's own that is answered, on the root (the kernel asks for CAP_SYS_ADMIN first): it tells a source
    /// that knew this tree as its target where the history went on.
    fn history(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        match node == NodeId::ROOT && name == HISTORY_XATTR {
            true => Ok(self.journal.history().map_err(|error| error.errno())?.to_bytes()),
            false => Err(Errno::ENODATA),
        }
    }

    /// listxattr(2): the names, each with a NUL behind it; without dtfs's own.
    ///
    /// # Errors
    /// As listxattr(2).
    pub fn listxattr(&self, caller: &Caller, node: NodeId) -> Result<Vec<u8>> {
        let object = self.object(node)?;
        let mut names = sys::listxattr(object.fd.as_fd())?;
        if caller.uid != 0 && names.iter().any(|name| name.starts_with(TRUSTED_PREFIX)) {
            // Whether `trusted.*` is shown to everyone is up to the backing filesystem (xfs and ext4 hide it).
            names = creds::without_admin(|| sys::listxattr(object.fd.as_fd()))?;
        }
        let mut list = Vec::new();
        for name in names {
            if !is_reserved(&name) {
                list.extend_from_slice(&name);
                list.push(0);
            }
        }
        Ok(list)
    }

    /// setxattr(2) with its raw flags.
    ///
    /// # Errors
    /// EPERM for dtfs's own names; else as setxattr(2).
    pub fn setxattr(&self, caller: &Caller, node: NodeId, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        if is_reserved(name) {
            return Err(Errno::EPERM);
        }
        let text = xattr_name(name)?;
        let object = self.object(node)?;
        let room = SMALL_RECORD + name.len() + value.len();
        let change = self.begin(caller, &[Touch::Attributes(object.key)], room)?;
        credentials_for(caller, name, &object)?;
        change.tree().set_xattr(object.fd.as_fd(), &text, value, flags)?;
        let stat = change.read_back(sys::fstat(object.fd.as_fd()))?;
        let op = Op::SetXattr { xattr: Xattr { name: name.to_vec(), value: value.to_vec() }, attrs: Attrs::of(&stat) };
        change.commit(object.key, &op, &[]);
        Ok(())
    }

    /// removexattr(2).
    ///
    /// # Errors
    /// EPERM for dtfs's own names; ENODATA when it is not set; else as removexattr(2).
    pub fn removexattr(&self, caller: &Caller, node: NodeId, name: &[u8]) -> Result<()> {
        if is_reserved(name) {
            return Err(Errno::EPERM);
        }
        let text = xattr_name(name)?;
        let object = self.object(node)?;
        let change = self.begin(caller, &[Touch::Attributes(object.key)], SMALL_RECORD)?;
        creds::changing_attrs()?;
        change.tree().remove_xattr(object.fd.as_fd(), &text)?;
        let stat = change.read_back(sys::fstat(object.fd.as_fd()))?;
        let op = Op::RemoveXattr { name: name.to_vec(), attrs: Attrs::of(&stat) };
        change.commit(object.key, &op, &[]);
        Ok(())
    }
}

/// An access ACL set by someone outside the file's group takes the set-group-id bit away (posix_acl_update_mode in
/// fs/posix_acl.c), and so it must when the daemon sets it for him.
fn credentials_for(caller: &Caller, name: &[u8], object: &Object) -> Result<()> {
    match name == ACCESS_ACL {
        true => creds::changing_group_bit(caller, &sys::fstat(object.fd.as_fd())?),
        false => creds::changing_attrs(),
    }
}

fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(RESERVED_XATTR_PREFIX)
}

fn xattr_name(name: &[u8]) -> Result<CString> {
    CString::new(name).map_err(|_| Errno::EINVAL)
}
