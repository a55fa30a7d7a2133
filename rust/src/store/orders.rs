//! What is on its way to the writer: batches in the lanes, orders in the control lane.

use std::sync::Arc;

use crate::queue::{Committed, Forgotten, Reply};
use crate::records::{Checked, Filter};
use crate::session::{Claim, Session, Stamp};
use crate::types::Generation;

/// A session of a space; who waits for something of it under way holds a reply.
pub type Speaker = Session<Reply<Committed>>;

/// Part of a batch: a frame's rows, or items that are not valid.
pub enum Piece {
    Rows { frame: Arc<Vec<u8>>, checked: Arc<Checked> },
    Voids(u64),
}

/// A checked frame on its way.
pub struct Batch {
    /// Monotonic nanoseconds.
    pub admitted_at: u64,
    pub pieces: Vec<Piece>,
    pub speaker: Option<(Arc<Speaker>, Stamp)>,
    pub reply: Reply<Committed>,
}

impl Piece {
    pub fn count(&self) -> u64 {
        match self {
            Self::Rows { checked, .. } => checked.hashes.len() as u64,
            Self::Voids(count) => *count,
        }
    }

    pub fn bytes(&self) -> u64 {
        match self {
            Self::Rows { frame, .. } => frame.len() as u64,
            Self::Voids(_) => 0,
        }
    }
}

impl Batch {
    /// The permits it holds: observations and bytes.
    pub fn permits(&self) -> (u64, u64) {
        permits(&self.pieces)
    }
}

/// Whether rows of the same batch follow the piece numbered `i`: its last row is not the batch's.
pub fn continues(pieces: &[Piece], i: usize) -> bool {
    pieces[i + 1..].iter().any(|p| matches!(p, Piece::Rows { .. }))
}

/// Observations and bytes of all pieces.
pub fn permits(pieces: &[Piece]) -> (u64, u64) {
    (pieces.iter().map(Piece::count).sum(), pieces.iter().map(Piece::bytes).sum())
}

/// Which memories are meant by a forget.
pub enum Wanted {
    /// Names, ascending; those that are no living memory when it is numbered are passed over, but for a purge's dead ones.
    Ids(Vec<Generation>),
    Key(String),
    /// `found` at generation `since`, and what matches of all that was numbered after it.
    Matching {
        found: Vec<Generation>,
        since: Generation,
        filter: Filter,
    },
}

/// What an attached speaker is told (S4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    pub epoch: u64,
    pub committed: u64,
}

/// A change that is not an observation: it goes before all that waits (O3).
pub enum Order {
    Forget {
        wanted: Wanted,
        purge: bool,
        reply: Reply<Forgotten>,
    },
    /// What died at or before is no longer kept.
    Expire {
        through: Generation,
        reply: Reply<Committed>,
    },
    /// The bytes of these are gone.
    Purged {
        ids: Vec<Generation>,
        reply: Reply<Committed>,
    },
    /// A session that nobody knows yet.
    Open {
        session: Arc<Speaker>,
        claim: Claim,
        reply: Reply<Attached>,
    },
    /// The last sequence its speaker was acknowledged, if it says so.
    Attach {
        session: Arc<Speaker>,
        claim: Claim,
        acknowledged: Option<u64>,
        reply: Reply<Attached>,
    },
    /// By its speaker, when all is committed; None: it has expired.
    End {
        session: Arc<Speaker>,
        epoch: Option<u64>,
        reply: Reply<Committed>,
    },
}

pub struct Control {
    pub bytes: u64,
    pub order: Order,
}
