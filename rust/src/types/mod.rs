//! Ids, positions and the words of the contract as types, so that two of them cannot be swapped.
//!
//! A `Generation` names a memory inside its space (G1: from 1, never reused); a `SpaceId` is made by the catalogue and never
//! reused either (K4, D11); a `LogPosition` names a group boundary of one partition's log (D3).

pub mod codec;
mod config;

pub use config::{Config, DIM_MAX, FORGET_IDS_MAX, FORMAT_VERSION, NAME_BYTES_MAX};

use crate::error::Error;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A memory's name inside its space, and the place of a change in the space's history.
    Generation,
    u64
);
id!(
    /// A space's server-made id.
    SpaceId,
    u64
);
id!(
    /// A session of a space; 0 stands for none.
    SessionId,
    u64
);
id!(
    /// A partition: one log, one writer at a time.
    PartitionId,
    u32
);
id!(
    /// A sealed file of a partition.
    FileId,
    u64
);

impl PartitionId {
    /// The catalogue's log uses the group format with this partition number.
    pub const CATALOGUE: Self = Self(u32::MAX);
}

impl Generation {
    /// The generation `n` further on.
    #[must_use]
    pub fn plus(self, n: u64) -> Self {
        Self(self.0 + n)
    }
}

/// A group boundary in a partition's log, and what is needed to read on from there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogPosition {
    pub offset: u64,
    pub segment: u64,
    pub epoch: u64,
    /// Checksum of the group that ends here; 0 at the very start.
    pub chain: u64,
}

/// How a score is computed. Greater is closer, always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    Cosine,
    /// Scored as minus the squared distance.
    L2,
    InnerProduct,
}

impl Metric {
    pub const ALL: [(Self, &'static str); 3] = [(Self::Cosine, "cosine"), (Self::L2, "l2"), (Self::InnerProduct, "ip")];

    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(m, _)| *m == self).map_or("cosine", |(_, n)| n)
    }

    pub fn parse(name: &str) -> Result<Self, Error> {
        Self::ALL.iter().find(|(_, n)| *n == name).map(|(m, _)| *m).ok_or_else(|| {
            Error::invalid("metric", format!("unknown metric {name:?}; use \"cosine\", \"l2\" or \"ip\""))
        })
    }

    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Cosine => 1,
            Self::L2 => 2,
            Self::InnerProduct => 3,
        }
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.iter().map(|(m, _)| *m).find(|m| m.code() == code)
    }
}

/// What an acknowledgement promises (D1), from the weakest to the strongest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// Applied; may be lost with the process.
    Memory,
    /// Written to the operating system: survives a killed process.
    Os,
    /// fdatasync returned: survives a power cut.
    Sync,
}

impl Durability {
    pub const ALL: [(Self, &'static str); 3] = [(Self::Sync, "sync"), (Self::Os, "os"), (Self::Memory, "memory")];

    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(d, _)| *d == self).map_or("sync", |(_, n)| n)
    }

    pub fn parse(name: &str) -> Result<Self, Error> {
        Self::ALL.iter().find(|(_, n)| *n == name).map(|(d, _)| *d).ok_or_else(|| {
            Error::invalid("durability", format!("unknown durability {name:?}; use \"sync\", \"os\" or \"memory\""))
        })
    }

    /// As the wire numbers it.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Sync => 1,
            Self::Os => 2,
            Self::Memory => 3,
        }
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.iter().map(|(d, _)| *d).find(|d| d.code() == code)
    }
}

/// What a space may hold; 0: as much as there is room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Living memories.
    pub memories: u64,
    /// Of rows in files and in buffers, the past included.
    pub bytes: u64,
}

/// What a space is, fixed when it is made, but for its quota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpaceOptions {
    pub id: SpaceId,
    pub name: String,
    pub partition: PartitionId,
    pub dim: u32,
    pub metric: Metric,
    /// None: the engine's default of the run.
    pub durability: Option<Durability>,
    pub incarnation: u64,
    /// Generations of this space begin here; a name made again starts after the dropped one's last (D11).
    pub first_generation: Generation,
    pub quota: Quota,
}

/// Whether `name` is `[a-z0-9][a-z0-9_-]{0,63}`.
pub fn check_space_name(name: &str) -> Result<(), Error> {
    let head = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    let ok = bytes.first().is_some_and(|b| head(*b))
        && bytes.len() <= NAME_BYTES_MAX
        && bytes.iter().all(|b| head(*b) || *b == b'_' || *b == b'-');
    if ok {
        return Ok(());
    }
    let shown: String = name.chars().take(80).collect();
    Err(Error::invalid(
        "name",
        format!("bad space name {shown:?}: use 1 to 64 of a-z, 0-9, '_' and '-', beginning with a letter or digit"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_names() {
        for good in ["a", "0", "notes", "a_b-c", &"x".repeat(64)] {
            assert!(check_space_name(good).is_ok(), "{good}");
        }
        for bad in ["", "../x", "A", "-a", "_a", "a b", "ä", "a/b", "a\0", &"x".repeat(65)] {
            assert!(check_space_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_and_codes_are_inverse() {
        for (m, n) in Metric::ALL {
            assert_eq!(Metric::parse(n).ok(), Some(m));
            assert_eq!(Metric::from_code(m.code()), Some(m));
        }
        for (d, n) in Durability::ALL {
            assert_eq!(Durability::parse(n).ok(), Some(d));
            assert_eq!(Durability::from_code(d.code()), Some(d));
        }
        assert!(Metric::parse("x").is_err() && Durability::parse("").is_err());
    }
}
