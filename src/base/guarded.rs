//! Who else can change a target's tree.

/// What a target says of that.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Guarded {
    /// Nobody.
    #[default]
    Kept,
    /// Nobody any more, but somebody could since the source was told of that the last time.
    Restored,
    /// Whoever has the rights: its host wants it so.
    Off,
    /// Whoever has the rights: its host does not let it be kept.
    Refused,
}
