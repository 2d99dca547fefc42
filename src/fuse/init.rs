//! What is agreed with the kernel when a connection begins (FUSE_INIT).

use fuser::{InitFlags, KernelConfig};

use crate::stack::MAX_TRANSFER_BYTES;

/// Requested one by one, each only when the kernel offers it.
///
/// Not here on purpose: WRITEBACK_CACHE (order and owners of writes would be lost), SETXATTR_EXT (fuser 0.18 panics on
/// it), SECURITY_CTX, CREATE_SUPP_GROUP and ALLOW_IDMAP (fuser does not decode what they add), OVER_IO_URING (it has no
/// such transport), AUTO_INVAL_DATA (a new mtime would drop caches that are right), POSIX_LOCKS and FLOCK_LOCKS (the
/// kernel keeps locks itself, and a blocked lock could not be interrupted here).
const WANTED: [InitFlags; 12] = [
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    // The umask is applied by the backing filesystem, where a default ACL may take its place.
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_EXPORT_SUPPORT,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    // Without it a file opened past the page cache cannot be mapped shared.
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
];

/// Requests that the kernel may have under way by itself: read-ahead, write-back of mappings.
const MAX_BACKGROUND: u16 = 64;
const CONGESTION: u16 = 48;

pub(super) fn agree(config: &mut KernelConfig) {
    for flag in WANTED {
        if config.add_capabilities(flag).is_err() {
            tracing::info!(?flag, "the kernel does not offer this");
        }
    }
    // Each setter fails by naming the nearest value that it takes.
    if let Err(nearest) = config.set_max_write(MAX_TRANSFER_BYTES as u32) {
        let _ = config.set_max_write(nearest);
    }
    if let Err(nearest) = config.set_max_readahead(MAX_TRANSFER_BYTES as u32) {
        let _ = config.set_max_readahead(nearest);
    }
    let _ = config.set_max_background(MAX_BACKGROUND);
    let _ = config.set_congestion_threshold(CONGESTION);
}
