//! What is agreed with the kernel when a connection begins (FUSE_INIT).

use fuser::{InitFlags, KernelConfig};

use crate::stack::{MAX_TRANSFER_BYTES, Writes};

/// Requested one by one, each only when the kernel offers it.
///
/// WRITEBACK_CACHE is the operator's choice: the order of writes is lost with it.
///
/// Not here on purpose: SETXATTR_EXT (fuser 0.18 panics on
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

/// What the kernel offered when the connection began, and what was answered. It is said once in the life of a connection:
/// a process that takes the connection over has to know it from here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Agreed {
    /// Version of the kernel's protocol.
    pub version: (u32, u32),
    /// Capabilities that it offered (FUSE_INIT flags, both words).
    pub offered: u64,
    /// Longest read-ahead that it offered, in bytes.
    pub offered_read_ahead: u32,
    /// Those that were asked for here.
    pub wanted: u64,
    /// Longest write, in bytes.
    pub max_write: u32,
    /// Longest read-ahead, in bytes.
    pub read_ahead: u32,
    /// Requests that the kernel may have under way by itself.
    pub max_background: u16,
}

impl std::fmt::Display for Agreed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Agreed { version: (major, minor), offered, offered_read_ahead, .. } = self;
        writeln!(f, "version {major}.{minor}\noffered {offered:#x}\noffered_read_ahead {offered_read_ahead}")?;
        let Agreed { wanted, max_write, read_ahead, max_background, .. } = self;
        write!(f, "wanted {wanted:#x}\nmax_write {max_write}\nread_ahead {read_ahead}\n")?;
        writeln!(f, "max_background {max_background}")
    }
}

impl std::str::FromStr for Agreed {
    type Err = ();

    /// Reads what `Display` writes; further lines are skipped.
    fn from_str(text: &str) -> Result<Agreed, ()> {
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')).ok_or(());
        let number = |key: &str| value(key)?.parse::<u32>().map_err(drop);
        let bits = |key: &str| u64::from_str_radix(value(key)?.strip_prefix("0x").ok_or(())?, 16).map_err(drop);
        let (major, minor) = value("version")?.split_once('.').ok_or(())?;
        Ok(Agreed {
            version: (major.parse().map_err(drop)?, minor.parse().map_err(drop)?),
            offered: bits("offered")?,
            offered_read_ahead: number("offered_read_ahead")?,
            wanted: bits("wanted")?,
            max_write: number("max_write")?,
            read_ahead: number("read_ahead")?,
            max_background: u16::try_from(number("max_background")?).map_err(drop)?,
        })
    }
}

pub(super) fn agree(config: &mut KernelConfig, writes: Writes) -> Agreed {
    let mut wanted = 0;
    let chosen = (writes == Writes::Back).then_some(InitFlags::FUSE_WRITEBACK_CACHE);
    for flag in WANTED.into_iter().chain(chosen) {
        match config.add_capabilities(flag) {
            Ok(()) => wanted |= flag.bits(),
            Err(_) => tracing::info!(?flag, "the kernel does not offer this"),
        }
    }
    // Each setter fails by naming the nearest value that it takes.
    let max_write = nearest(MAX_TRANSFER_BYTES as u32, |bytes| config.set_max_write(bytes));
    let offered_read_ahead = nearest(u32::MAX, |bytes| config.set_max_readahead(bytes));
    let read_ahead = nearest(MAX_TRANSFER_BYTES as u32, |bytes| config.set_max_readahead(bytes));
    let _ = config.set_max_background(MAX_BACKGROUND);
    let _ = config.set_congestion_threshold(CONGESTION);
    let kernel = config.kernel_abi();
    Agreed {
        version: (kernel.0, kernel.1),
        offered: config.capabilities().bits(),
        offered_read_ahead,
        wanted,
        max_write,
        read_ahead,
        max_background: MAX_BACKGROUND,
    }
}

/// Sets `value`, or the nearest that is taken; returns which.
fn nearest(value: u32, mut set: impl FnMut(u32) -> Result<u32, u32>) -> u32 {
    match set(value) {
        Ok(_) => value,
        Err(nearest) => {
            let _ = set(nearest);
            nearest
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_agreed_can_be_read_again() {
        let agreed = Agreed {
            version: (7, 45),
            offered: u64::MAX - 1,
            offered_read_ahead: 131_072,
            wanted: 1 << 33,
            max_write: 1 << 20,
            read_ahead: 131_072,
            max_background: 64,
        };
        assert_eq!(agreed.to_string().parse(), Ok(agreed));
        assert_eq!("version 7".parse::<Agreed>(), Err(()));
    }
}
