//! Little-endian writing and checked reading, the seed that binds checksums to their place, and the stamp every file begins with.
//!
//! The stamp never changes between versions: magic, version, kind and a checksum over them, so that a newer version is told from a
//! damaged byte (D5).

use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_64_with_seed};

use super::{FORGET_IDS_MAX, Generation, PartitionId};
use crate::error::Error;

pub fn put_u16(out: &mut Vec<u8>, v: u16) {
    out.extend_from_slice(&v.to_le_bytes());
}

pub fn put_u32(out: &mut Vec<u8>, v: u32) {
    out.extend_from_slice(&v.to_le_bytes());
}

pub fn put_u64(out: &mut Vec<u8>, v: u64) {
    out.extend_from_slice(&v.to_le_bytes());
}

/// Seven bits a byte, lowest first.
pub fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push((v & 0x7f) as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

/// Ascending generations as runs: how many, then from the end of the one before to the begin, and the length, of each.
pub fn put_runs(out: &mut Vec<u8>, ids: &[Generation]) {
    let runs: Vec<&[Generation]> = ids.chunk_by(|a, b| a.0 + 1 == b.0).collect();
    put_varint(out, runs.len() as u64);
    let mut end = 0;
    for run in runs {
        put_varint(out, run[0].0 - end);
        put_varint(out, run.len() as u64);
        end = run[0].0 + run.len() as u64;
    }
}

/// What `put_runs` wrote; None for anything else. Never more ids than a forget may have.
pub fn take_runs(c: &mut Cursor<'_>) -> Option<Vec<Generation>> {
    let mut ids = Vec::new();
    let mut end = 0u64;
    for _ in 0..c.varint()? {
        let first = end.checked_add(c.varint()?)?;
        end = first.checked_add(c.varint()?)?;
        if end - first > FORGET_IDS_MAX - ids.len() as u64 {
            return None;
        }
        ids.extend((first..end).map(Generation));
    }
    Some(ids)
}

/// Reads forward; every read is checked against the end.
#[derive(Clone)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.bytes.split_at_checked(n)?;
        self.bytes = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|b| b[0])
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    /// A length that must still fit what is left, `each` bytes an entry.
    pub fn count(&mut self, each: usize) -> Option<usize> {
        let n = self.u32()? as usize;
        (n.checked_mul(each)? <= self.bytes.len()).then_some(n)
    }

    pub fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            if shift == 63 && byte > 1 {
                return None;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    pub fn remaining(&self) -> usize {
        self.bytes.len()
    }

    pub fn rest(self) -> &'a [u8] {
        self.bytes
    }
}

/// Seeds checksums with the directory's id, so that bytes of another directory are invalid here.
#[derive(Clone, Copy, Debug)]
pub struct Seed(u64);

impl Seed {
    pub fn new(directory_id: &[u8; 16]) -> Self {
        Self(xxh3_64(directory_id))
    }

    fn bound(self, what: &[u8; 4], partition: PartitionId, number: u64) -> u64 {
        let mut place = [0; 16];
        place[..4].copy_from_slice(what);
        place[4..8].copy_from_slice(&partition.0.to_le_bytes());
        place[8..].copy_from_slice(&number.to_le_bytes());
        xxh3_64_with_seed(&place, self.0)
    }

    /// Checksum of `bytes` as the `what` numbered `number` of `partition`.
    pub fn checksum(self, what: &[u8; 4], partition: PartitionId, number: u64, bytes: &[u8]) -> u64 {
        xxh3_64_with_seed(bytes, self.bound(what, partition, number))
    }

    pub(crate) fn hasher(self, what: &[u8; 4], partition: PartitionId, number: u64) -> Xxh3 {
        Xxh3::with_seed(self.bound(what, partition, number))
    }
}

/// The first 16 bytes of every file.
pub struct Stamp;

pub enum StampError {
    Damaged,
    /// Found, and the newest that can be read.
    Version(u16, u16),
}

impl Stamp {
    pub const LEN: usize = 16;

    pub fn put(out: &mut Vec<u8>, magic: &[u8; 4], version: u16) {
        let at = out.len();
        out.extend_from_slice(magic);
        put_u16(out, version);
        put_u16(out, 0);
        let sum = xxh3_64(&out[at..at + 8]);
        put_u64(out, sum);
    }

    /// Which version the file has, up to `newest`.
    pub fn check(bytes: &[u8], magic: &[u8; 4], newest: u16) -> Result<u16, StampError> {
        let mut c = Cursor::new(bytes);
        let head = c.take(8).ok_or(StampError::Damaged)?;
        if &head[..4] != magic || c.u64() != Some(xxh3_64(head)) {
            return Err(StampError::Damaged);
        }
        let version = u16::from_le_bytes([head[4], head[5]]);
        if (1..=newest).contains(&version) { Ok(version) } else { Err(StampError::Version(version, newest)) }
    }
}

impl StampError {
    pub fn into_error(self, path: &str) -> Error {
        match self {
            Self::Damaged => Error::corrupted(path, 0, "not an engram file, or its first bytes are damaged"),
            Self::Version(found, newest) => Error::UnsupportedVersion {
                path: path.to_owned(),
                what: "the file format".to_owned(),
                found: u64::from(found),
                supported: u64::from(newest),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_stamp_is_damage_and_a_newer_one_is_named() {
        let mut bytes = Vec::new();
        Stamp::put(&mut bytes, b"TEST", 2);
        assert!(matches!(Stamp::check(&bytes, b"TEST", 3), Ok(2)));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(Stamp::check(&bad, b"TEST", 9), Err(StampError::Damaged)));
        }
        bytes[4] = 9;
        let sum = xxh3_64(&bytes[..8]);
        bytes[8..].copy_from_slice(&sum.to_le_bytes());
        assert!(matches!(Stamp::check(&bytes, b"TEST", 8), Err(StampError::Version(9, 8))));
    }

    proptest::proptest! {
        #[test]
        fn runs_come_back(gaps in proptest::collection::vec(1u64..4, 0..60), bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40)) {
            let mut at = 0;
            let ids: Vec<Generation> = gaps.iter().map(|gap| { at += gap; Generation(at) }).collect();
            let mut out = Vec::new();
            put_runs(&mut out, &ids);
            let mut c = Cursor::new(&out);
            proptest::prop_assert_eq!(take_runs(&mut c), Some(ids));
            proptest::prop_assert_eq!(c.remaining(), 0);
            // Any bytes are an answer, and a small one.
            let _ = take_runs(&mut Cursor::new(&bytes));
        }
    }

    #[test]
    fn the_cursor_never_reads_past_the_end() {
        let mut c = Cursor::new(&[1, 2, 3]);
        assert_eq!((c.u16(), c.u32(), c.u8(), c.u8()), (Some(0x0201), None, Some(3), None));
        assert_eq!(Cursor::new(&[255, 255, 255, 255]).count(1), None);
    }
}
