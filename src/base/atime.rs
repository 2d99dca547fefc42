//! Access times: when a source records them, and how a target stores them.

/// Where an access time that moved is recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AtimeMode {
    /// `norepatime`: once, when the file is closed.
    #[default]
    AtClose,
    /// `atime`: after the read that moved it.
    EachRead,
}

/// How a target stores the times that it is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum StoredTimes {
    /// As they are.
    #[default]
    Exact,
    /// Its filesystem keeps fewer digits.
    Coarse,
    /// They are exact, but who reads the tree there moves access times.
    Moving,
}
