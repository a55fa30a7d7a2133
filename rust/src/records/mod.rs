//! What does a memory carry?
//!
//! Text, metadata, times, confidence and the vector's bytes: as the frame that came in (`frame`), as canonical metadata
//! (`metadata`), and as rows of sealed files (`sealed`, written by `seal`). A `RowSource` is where rows are read from: a frame's
//! buffer or a mapped file. A `Filter` says which of them are meant, from their `Facts` alone. Nothing here knows spaces' state or durability.

mod filter;
mod frame;
mod json;
mod layout;
mod metadata;
mod protobuf;
mod raw;
mod seal;
mod sealed;
mod told;
mod validate;

use crate::error::Error;
use crate::types::Generation;

pub use filter::Filter;
pub use frame::{Columns, FrameView, TIME_ABSENT, build_frame, join_frames};
pub use json::metadata_json;
pub use layout::{BLOCK, Run};
pub use metadata::{Value, check_metadata, decode_metadata, encode_metadata};
pub(crate) use protobuf::{put_bytes, put_float, put_number, put_present, zigzag};
pub use seal::{SealEncoder, SealSpace, SealedSummary};
pub use sealed::{SealedFile, SealedRows};
pub use told::{AckRun, encode_absorbed, encode_fault, encode_pressure};
pub use validate::{
    Checked, NORM_MAX, NORM_MIN, Rejected, check_frame, check_items, check_query, content_hashes, inverse_norm,
    inverse_norms,
};

/// One memory, borrowed from where it lies.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    pub generation: Generation,
    pub committed_at: i64,
    pub observed_at: Option<i64>,
    pub confidence: f32,
    pub inverse_norm: f32,
    pub hash: u64,
    pub text: Option<&'a str>,
    /// Canonical binary; empty if there is none.
    pub metadata: &'a [u8],
    pub key: Option<&'a str>,
    pub vector: Option<&'a [u8]>,
    /// The last row of an atomic batch: a generation before it lies inside the batch (G5).
    pub ends_batch: bool,
}

/// What a filter looks at.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub generation: Generation,
    pub committed_at: i64,
    pub observed_at: Option<i64>,
    pub confidence: f32,
    pub metadata: &'a [u8],
    pub key: Option<&'a str>,
}

/// Rows with ascending generations.
pub trait RowSource: Send + Sync {
    fn rows(&self) -> usize;
    fn first(&self) -> Generation;
    fn last(&self) -> Generation;
    fn generation_at(&self, row: usize) -> Generation;
    fn row_of(&self, generation: Generation) -> Option<usize>;
    fn row(&self, row: usize) -> Result<Row<'_>, Error>;
    fn facts(&self, row: usize) -> Result<Facts<'_>, Error>;
    /// Never less than that of the row before.
    fn committed_at(&self, row: usize) -> i64;
    fn ends_batch(&self, row: usize) -> Result<bool, Error>;
    fn has_keys(&self) -> bool;
    fn key(&self, row: usize) -> Result<Option<&str>, Error>;
    /// Why none of these rows can be read, if so: whoever would walk over them must say it.
    fn damage(&self) -> Option<&Error> {
        None
    }
    /// Rows whose vectors lie one after the other from `row` on, at most `limit`: their bytes and inverse norms. An empty answer for
    /// a row without a vector.
    fn vectors_from(&self, row: usize, limit: usize) -> Result<VectorRun<'_>, Error>;
}

/// Consecutive rows with vectors.
pub struct VectorRun<'a> {
    /// Rows covered, also those without a vector at the front (then `bytes` is empty).
    pub rows: usize,
    pub bytes: &'a [u8],
    pub inverse_norms: Vec<f32>,
}
