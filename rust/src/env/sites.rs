//! The places where durability is bought: each sync, rename and directory sync of the engine has a name, so that a test can
//! switch off one at a time and see the crash images go red (D9).

/// One call site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Site {
    ManifestSync,
    ManifestRename,
    ManifestDir,
    TreeDir,
    SegmentZeroSync,
    SegmentRename,
    SegmentDir,
    GroupSync,
    RotateSync,
    RestampSync,
    RestampRename,
    RestampDir,
    RowsSync,
    RowsRename,
    RowsDir,
    CheckpointSync,
    CheckpointRename,
    CheckpointDir,
    PoisonSync,
    PoisonDir,
    QuarantineSync,
    /// Of files that can be made again: without it they are.
    Derived,
}

impl Site {
    /// All that something is lost without.
    pub const ALL: [Self; 21] = [
        Self::ManifestSync,
        Self::ManifestRename,
        Self::ManifestDir,
        Self::TreeDir,
        Self::SegmentZeroSync,
        Self::SegmentRename,
        Self::SegmentDir,
        Self::GroupSync,
        Self::RotateSync,
        Self::RestampSync,
        Self::RestampRename,
        Self::RestampDir,
        Self::RowsSync,
        Self::RowsRename,
        Self::RowsDir,
        Self::CheckpointSync,
        Self::CheckpointRename,
        Self::CheckpointDir,
        Self::PoisonSync,
        Self::PoisonDir,
        Self::QuarantineSync,
    ];

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().chain([Self::Derived]).find(|s| format!("{s:?}") == name)
    }
}
