//! Identifiers: what a change, an object, a volume and an epoch are called.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Transaction id: the place of one change in a volume's history. Starts at 1; 0 is "before everything".
///
/// Only changes take a TID. Numbers may jump (never back) when a journal starts again after an unclean stop.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Tid(pub u64);

impl Tid {
    /// Before the first change.
    pub const ZERO: Tid = Tid(0);

    /// The next number.
    pub fn next(self) -> Tid {
        Tid(self.0 + 1)
    }
}

impl fmt::Display for Tid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:016x}", self.0)
    }
}

impl fmt::Debug for Tid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tid({:#x})", self.0)
    }
}

impl FromStr for Tid {
    type Err = std::num::ParseIntError;

    /// Reads `0x...` as hexadecimal and anything else as decimal.
    fn from_str(text: &str) -> Result<Tid, Self::Err> {
        match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).map(Tid),
            None => text.parse().map(Tid),
        }
    }
}

/// The volume instance that created an object; new for every instance, so that inode numbers never clash between hosts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Space(pub u32);

impl Space {
    /// A fresh id. Never 0, which belongs to [`Oid::ROOT`].
    pub fn random() -> Space {
        Space(u32::from_le_bytes(random_bytes::<4>()) | 1)
    }
}

/// An inode of one backing filesystem: its number and the generation that tells a recycled number apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectKey {
    /// Inode number.
    pub ino: u64,
    /// Generation, as the filesystem's file handle carries it.
    pub generation: u32,
}

/// Object id: (space, inode, generation), the name of an object on every host for life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Oid {
    /// Who created it.
    pub space: Space,
    /// Its generation where it was created.
    pub generation: u32,
    /// Its inode number where it was created.
    pub ino: u64,
}

impl Oid {
    /// The root directory of a volume, on every host.
    pub const ROOT: Oid = Oid { space: Space(0), generation: 0, ino: 1 };
    /// Size of the encoded form.
    pub const LEN: usize = 16;

    /// The oid of an object born in `space`.
    pub fn new(space: Space, key: ObjectKey) -> Oid {
        Oid { space, generation: key.generation, ino: key.ino }
    }

    /// Inode and generation where the object was created.
    pub fn key(self) -> ObjectKey {
        ObjectKey { ino: self.ino, generation: self.generation }
    }

    /// Little endian: space, generation, inode.
    pub fn to_bytes(self) -> [u8; Oid::LEN] {
        let mut out = [0; Oid::LEN];
        out[0..4].copy_from_slice(&self.space.0.to_le_bytes());
        out[4..8].copy_from_slice(&self.generation.to_le_bytes());
        out[8..16].copy_from_slice(&self.ino.to_le_bytes());
        out
    }

    /// The inverse of [`Oid::to_bytes`].
    pub fn from_bytes(bytes: [u8; Oid::LEN]) -> Oid {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let ino = u64::from(word(8)) | u64::from(word(12)) << 32;
        Oid { space: Space(word(0)), generation: word(4), ino }
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:x}-{:x}", self.space.0, self.ino, self.generation)
    }
}

impl fmt::Debug for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Oid({self})")
    }
}

impl FromStr for Oid {
    type Err = ();

    /// The inverse of `Display`.
    fn from_str(text: &str) -> Result<Oid, ()> {
        let mut parts = text.split('-');
        let (Some(space), Some(ino), Some(generation), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(());
        };
        let word = |t: &str| u32::from_str_radix(t, 16).map_err(|_| ());
        Ok(Oid {
            space: Space(word(space)?),
            ino: u64::from_str_radix(ino, 16).map_err(|_| ())?,
            generation: word(generation)?,
        })
    }
}

macro_rules! uuid {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// A fresh random id (RFC 9562 version 4).
            pub fn random() -> $name {
                let mut bytes = random_bytes::<16>();
                bytes[6] = bytes[6] & 0x0f | 0x40;
                bytes[8] = bytes[8] & 0x3f | 0x80;
                $name(bytes)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for (i, byte) in self.0.iter().enumerate() {
                    if matches!(i, 4 | 6 | 8 | 10) {
                        f.write_str("-")?;
                    }
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = ();

            fn from_str(text: &str) -> Result<$name, ()> {
                let hex: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
                if hex.len() != 32 {
                    return Err(());
                }
                let mut out = [0; 16];
                for (slot, pair) in out.iter_mut().zip(hex.chunks(2)) {
                    let pair = std::str::from_utf8(pair).map_err(|_| ())?;
                    *slot = u8::from_str_radix(pair, 16).map_err(|_| ())?;
                }
                Ok($name(out))
            }
        }
    };
}

uuid!(
    /// Names a volume and all its copies.
    VolumeUuid
);
uuid!(
    /// Names one unbroken run of a volume's history.
    EpochId
);

/// Bytes from the kernel's generator (random(4)).
///
/// # Panics
/// When the kernel has no random bytes to give, which no Linux that runs this does after boot.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    use std::io::Read;
    let mut out = [0; N];
    let filled = std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut out));
    assert!(filled.is_ok(), "/dev/urandom cannot be read: {filled:?}");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oid_round_trips_as_bytes_and_text() {
        let oid = Oid { space: Space(0xdead_beef), generation: 7, ino: 0x1234_5678_9abc };
        assert_eq!(Oid::from_bytes(oid.to_bytes()), oid);
        assert_eq!(oid.to_string().parse(), Ok(oid));
        assert_eq!("1-2".parse::<Oid>(), Err(()));
    }

    #[test]
    fn uuid_round_trips_as_text() {
        let uuid = VolumeUuid::random();
        assert_eq!(uuid.to_string().parse(), Ok(uuid));
        assert_eq!(uuid.to_string().len(), 36);
        assert_eq!("xyz".parse::<VolumeUuid>(), Err(()));
    }

    #[test]
    fn tid_reads_both_bases() {
        assert_eq!("0x10".parse(), Ok(Tid(16)));
        assert_eq!("10".parse(), Ok(Tid(10)));
        assert_eq!(Tid(16).to_string(), "0x0000000000000010");
    }
}
