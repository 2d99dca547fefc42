//! Space and limits.

use super::Stack;
use crate::sys::{FileSystemStat, Result};

impl Stack {
    /// statfs(2): that of the backing filesystem.
    ///
    /// # Errors
    /// As statfs(2).
    pub fn statfs(&self) -> Result<FileSystemStat> {
        self.tree.statfs()
    }
}
