//! How each filesystem packs inode number and generation into a file handle.

use crate::base::ObjectKey;
use crate::sys::{Errno, RawHandle, Result};

/// The handle layout of one filesystem; from it the handle of any (inode, generation) can be made without a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum HandleFormat {
    /// FILEID_INO32_GEN: inode u32, generation u32 (fs/libfs.c, generic_encode_ino32_fh).
    Ext4,
    /// FILEID_INO64_GEN of XFS: inode u64, generation u32 (fs/xfs/xfs_export.h, struct xfs_fid64).
    Xfs,
    /// Inode u64, subvolume u64, generation u32 (fs/btrfs/export.h, struct btrfs_fid without parent).
    Btrfs { subvolume: u64 },
    /// Generation u32, inode u64 in two words (mm/shmem.c, shmem_encode_fh).
    Tmpfs,
}

const EXT4_MAGIC: i64 = 0xef53;
const XFS_MAGIC: i64 = 0x5846_5342;
const BTRFS_MAGIC: i64 = 0x9123_683e;
const TMPFS_MAGIC: i64 = 0x0102_1994;

const FILEID_INO32_GEN: i32 = 1;
const FILEID_XFS_INO64_GEN: i32 = 0x81;
const FILEID_BTRFS_WITHOUT_PARENT: i32 = 0x4d;

impl HandleFormat {
    /// The format of the filesystem with this magic, learned from the handle of one of its inodes.
    ///
    /// # Errors
    /// EOPNOTSUPP for a filesystem whose handles dtfs does not know.
    pub(super) fn learn(magic: i64, sample: &RawHandle) -> Result<HandleFormat> {
        let format = match magic {
            EXT4_MAGIC => HandleFormat::Ext4,
            XFS_MAGIC => HandleFormat::Xfs,
            BTRFS_MAGIC => HandleFormat::Btrfs { subvolume: word64(sample.bytes(), 8)? },
            TMPFS_MAGIC => HandleFormat::Tmpfs,
            _ => return Err(Errno::EOPNOTSUPP),
        };
        // The sample must read back as itself, else this kernel packs handles another way.
        match format.pack(format.unpack(sample)?)? == *sample {
            true => Ok(format),
            false => Err(Errno::EOPNOTSUPP),
        }
    }

    pub(super) fn unpack(self, handle: &RawHandle) -> Result<ObjectKey> {
        let bytes = handle.bytes();
        Ok(match self {
            HandleFormat::Ext4 => ObjectKey { ino: u64::from(word32(bytes, 0)?), generation: word32(bytes, 4)? },
            HandleFormat::Xfs => ObjectKey { ino: word64(bytes, 0)?, generation: word32(bytes, 8)? },
            HandleFormat::Btrfs { .. } => ObjectKey { ino: word64(bytes, 0)?, generation: word32(bytes, 16)? },
            HandleFormat::Tmpfs => ObjectKey { generation: word32(bytes, 0)?, ino: word64(bytes, 4)? },
        })
    }

    pub(super) fn pack(self, key: ObjectKey) -> Result<RawHandle> {
        let mut bytes = Vec::with_capacity(20);
        let handle_type = match self {
            HandleFormat::Ext4 => {
                bytes.extend_from_slice(&u32::try_from(key.ino).map_err(|_| Errno::ESTALE)?.to_ne_bytes());
                bytes.extend_from_slice(&key.generation.to_ne_bytes());
                FILEID_INO32_GEN
            }
            HandleFormat::Xfs => {
                bytes.extend_from_slice(&key.ino.to_ne_bytes());
                bytes.extend_from_slice(&key.generation.to_ne_bytes());
                FILEID_XFS_INO64_GEN
            }
            HandleFormat::Btrfs { subvolume } => {
                bytes.extend_from_slice(&key.ino.to_ne_bytes());
                bytes.extend_from_slice(&subvolume.to_ne_bytes());
                bytes.extend_from_slice(&key.generation.to_ne_bytes());
                FILEID_BTRFS_WITHOUT_PARENT
            }
            HandleFormat::Tmpfs => {
                bytes.extend_from_slice(&key.generation.to_ne_bytes());
                bytes.extend_from_slice(&key.ino.to_ne_bytes());
                FILEID_INO32_GEN
            }
        };
        RawHandle::new(handle_type, &bytes)
    }

    /// Whether generation 0 opens an inode of any generation (fs/ext4/super.c and fs/btrfs/export.c take 0 as "any").
    pub(super) fn accepts_any_generation(self) -> bool {
        matches!(self, HandleFormat::Ext4 | HandleFormat::Btrfs { .. })
    }
}

fn word32(bytes: &[u8], at: usize) -> Result<u32> {
    let word = bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).ok_or(Errno::EOPNOTSUPP)?;
    Ok(u32::from_ne_bytes(word))
}

fn word64(bytes: &[u8], at: usize) -> Result<u64> {
    let word = bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).ok_or(Errno::EOPNOTSUPP)?;
    Ok(u64::from_ne_bytes(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_reads_back_what_it_packs() {
        let key = ObjectKey { ino: 0x1234_5678, generation: 0x9abc_def0 };
        let formats =
            [HandleFormat::Ext4, HandleFormat::Xfs, HandleFormat::Btrfs { subvolume: 5 }, HandleFormat::Tmpfs];
        for format in formats {
            let handle = format.pack(key).unwrap();
            assert_eq!(format.unpack(&handle), Ok(key), "{format:?}");
        }
    }

    #[test]
    fn an_unknown_filesystem_is_refused() {
        let sample = RawHandle::new(1, &[0; 8]).unwrap();
        assert_eq!(HandleFormat::learn(0x1234, &sample), Err(Errno::EOPNOTSUPP));
    }
}
