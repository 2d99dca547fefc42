//! Bounded reading and plain writing of little-endian fields. Shared by records and by the wire's messages.

use crate::base::{Name, NameError, Oid, Timespec};

/// Why some bytes are not what they should be. `offset` counts from the start of the record's fields or message body.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant names its fields
pub enum DecodeError {
    /// The bytes end early.
    #[error("{what} at byte {offset}: {needed} bytes needed, {left} left")]
    Short { what: &'static str, offset: usize, needed: usize, left: usize },
    /// A value that the format does not allow.
    #[error("{what} at byte {offset}: {value} is not allowed")]
    Value { what: &'static str, offset: usize, value: u64 },
    /// A name that could lead out of its directory.
    #[error("name at byte {offset}: {cause}")]
    Name { offset: usize, cause: NameError },
    /// Name or xattr that only dtfs itself may use.
    #[error("reserved name at byte {offset}")]
    Reserved { offset: usize },
    /// The bytes were changed after they were written.
    #[error("{what}: checksum is {found:08x}, should be {expected:08x}")]
    Checksum { what: &'static str, expected: u32, found: u32 },
    /// Bytes left over.
    #[error("{left} bytes too many at byte {offset}")]
    TooLong { offset: usize, left: usize },
}

/// Appends fields.
#[derive(Default)]
pub struct FieldWriter(pub Vec<u8>);

impl FieldWriter {
    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }
    /// Two bytes.
    pub fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    /// Four bytes.
    pub fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    /// Eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    /// Eight bytes, two's complement.
    pub fn i64(&mut self, value: i64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    /// Sixteen bytes.
    pub fn oid(&mut self, oid: Oid) {
        self.0.extend_from_slice(&oid.to_bytes());
    }
    /// Twelve bytes: seconds, nanoseconds.
    pub fn time(&mut self, time: Timespec) {
        self.i64(time.sec);
        self.u32(time.nsec);
    }
    /// A length in two bytes and the bytes.
    pub fn short_bytes(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= usize::from(u16::MAX));
        self.u16(bytes.len() as u16);
        self.0.extend_from_slice(bytes);
    }
    /// A length in four bytes and the bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.u32(bytes.len() as u32);
        self.0.extend_from_slice(bytes);
    }
}

/// Takes fields off the front of a slice; never reads past its end and never allocates from an unchecked length.
pub struct FieldReader<'a> {
    all: &'a [u8],
    at: usize,
}

impl<'a> FieldReader<'a> {
    /// Reads `bytes` from the start.
    pub fn new(bytes: &'a [u8]) -> FieldReader<'a> {
        FieldReader { all: bytes, at: 0 }
    }

    /// How far the reader is.
    pub fn offset(&self) -> usize {
        self.at
    }

    /// The next `needed` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Short`].
    pub fn take(&mut self, what: &'static str, needed: usize) -> Result<&'a [u8], DecodeError> {
        let left = self.all.len() - self.at;
        if needed > left {
            return Err(DecodeError::Short { what, offset: self.at, needed, left });
        }
        let taken = &self.all[self.at..self.at + needed];
        self.at += needed;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(what, N)?);
        Ok(out)
    }

    /// One byte.
    ///
    /// # Errors
    /// [`DecodeError::Short`], as for all the following.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        Ok(self.array::<1>(what)?[0])
    }
    /// Two bytes.
    ///
    /// # Errors
    /// [`DecodeError::Short`].
    pub fn u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }
    /// Four bytes.
    ///
    /// # Errors
    /// [`DecodeError::Short`].
    pub fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }
    /// Eight bytes.
    ///
    /// # Errors
    /// [`DecodeError::Short`].
    pub fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }
    /// Eight bytes, two's complement.
    ///
    /// # Errors
    /// [`DecodeError::Short`].
    pub fn i64(&mut self, what: &'static str) -> Result<i64, DecodeError> {
        Ok(i64::from_le_bytes(self.array(what)?))
    }
    /// Sixteen bytes.
    ///
    /// # Errors
    /// [`DecodeError::Short`].
    pub fn oid(&mut self, what: &'static str) -> Result<Oid, DecodeError> {
        Ok(Oid::from_bytes(self.array(what)?))
    }
    /// Any fixed number of bytes.
    ///
    /// # Errors
    /// [`DecodeError::Short`].
    pub fn fixed<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        self.array(what)
    }

    /// Seconds and nanoseconds.
    ///
    /// # Errors
    /// [`DecodeError::Value`] for a billion nanoseconds or more.
    pub fn time(&mut self, what: &'static str) -> Result<Timespec, DecodeError> {
        let sec = self.i64(what)?;
        let nsec = self.bounded_u32(what, 999_999_999)?;
        Ok(Timespec { sec, nsec })
    }

    /// A four-byte number that is at most `max`.
    ///
    /// # Errors
    /// [`DecodeError::Value`] when it is larger.
    pub fn bounded_u32(&mut self, what: &'static str, max: u32) -> Result<u32, DecodeError> {
        let offset = self.at;
        let value = self.u32(what)?;
        if value > max {
            return Err(DecodeError::Value { what, offset, value: u64::from(value) });
        }
        Ok(value)
    }

    /// An offset or length of a file: at most `i64::MAX`, the most that Linux has.
    ///
    /// # Errors
    /// [`DecodeError::Value`] when it is larger.
    pub fn file_u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let offset = self.at;
        let value = self.u64(what)?;
        match i64::try_from(value) {
            Ok(_) => Ok(value),
            Err(_) => Err(DecodeError::Value { what, offset, value }),
        }
    }

    /// 0 or 1.
    ///
    /// # Errors
    /// [`DecodeError::Value`] for anything else.
    pub fn flag(&mut self, what: &'static str) -> Result<bool, DecodeError> {
        let offset = self.at;
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(DecodeError::Value { what, offset, value: u64::from(other) }),
        }
    }

    /// Bytes with a two-byte length.
    ///
    /// # Errors
    /// [`DecodeError::Short`].
    pub fn short_bytes(&mut self, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let len = self.u16(what)?;
        self.take(what, usize::from(len))
    }

    /// Bytes with a four-byte length of at most `max`.
    ///
    /// # Errors
    /// [`DecodeError::Value`] when the length is larger.
    pub fn bytes(&mut self, what: &'static str, max: usize) -> Result<&'a [u8], DecodeError> {
        let len = self.bounded_u32(what, u32::try_from(max).unwrap_or(u32::MAX))?;
        self.take(what, len as usize)
    }

    /// A checked name.
    ///
    /// # Errors
    /// [`DecodeError::Name`] says which rule it breaks.
    pub fn name(&mut self) -> Result<Name, DecodeError> {
        let offset = self.at;
        let bytes = self.short_bytes("name")?;
        Name::new(bytes).map_err(|cause| DecodeError::Name { offset, cause })
    }

    /// Nothing may be left.
    ///
    /// # Errors
    /// [`DecodeError::TooLong`].
    pub fn end(&self) -> Result<(), DecodeError> {
        match self.all.len() - self.at {
            0 => Ok(()),
            left => Err(DecodeError::TooLong { offset: self.at, left }),
        }
    }
}
