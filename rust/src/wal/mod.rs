//! What survives a crash?
//!
//! A partition's log: records in checksummed groups, groups in segments (D3), written through a port and read back by callback.
//! This folder knows bytes, kinds and checksums, not what a record does to a space (`store::apply` does). Layout:
//! `docs/design/log-and-files.md`. `writer` appends, `scan` reads, `supply` keeps zero-filled segments ready, `checkpoint` says
//! where replay starts. Nothing here starts a thread or waits.

mod checkpoint;
mod format;
mod manifest;
mod quarantine;
mod record;
mod restamp;
mod scan;
mod spaces;
mod supply;
mod writer;

pub use checkpoint::{
    Checkpoint, CheckpointFile, CheckpointSession, CheckpointSpace, FilePart, checkpoint_path, list_checkpoints,
};
pub use format::{GROUP_ALIGN, GROUP_HEADER, GroupHeader, SEGMENT_HEADER, SegmentHeader, group_len};
pub use manifest::{MANIFEST_PATH, Manifest, partition_dir};
pub use quarantine::{
    QuarantineRecord, Quarantined, keep_aside, keep_records, kept_records, quarantine_path, quarantined_with, stand_in,
};
pub use record::{
    CloseRecord, ExpiryRecord, ForgetRecord, ObserveRecord, PurgedRecord, Record, RecordKind, Said, SessionEvent,
    SessionRecord, VoidRecord, observe_prefix,
};
pub use restamp::{NewSegment, restamp};
pub use scan::{GroupAt, LogDamage, Recovered, recover, segment_path};
pub use spaces::{CreateSpace, DropSpace, SetQuota};
pub use supply::{KEPT as SPARES_KEPT, Spare, Supply, SupplyWork};
pub use writer::{GroupBuilder, LogEvent, LogWriter, Room};
