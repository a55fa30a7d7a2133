//! Segment and group headers as bytes (D3, D12). `docs/design/log-and-files.md` is their description.

use crate::types::codec::{Cursor, Seed, Stamp, StampError, put_u16, put_u32, put_u64};
use crate::types::{Durability, FORMAT_VERSION, LogPosition, PartitionId};

pub const SEGMENT_HEADER: usize = 512;
pub const GROUP_HEADER: usize = 128;
/// Groups begin at multiples of this: a torn sector belongs to one group.
pub const GROUP_ALIGN: u64 = 512;
const GROUP_MAGIC: &[u8; 4] = b"EGRP";
const SEGMENT_MAGIC: &[u8; 4] = b"ESEG";
const CHECKSUM_AT: usize = 8;

/// Bytes a group with this body takes in the log.
pub fn group_len(body: u64) -> u64 {
    (GROUP_HEADER as u64 + body).next_multiple_of(GROUP_ALIGN)
}

const SMALL_HEADER: usize = 64;

/// A small file, whole: its kind, whose it is, its number, a checksum over all of it (D5).
pub(super) fn small_file(
    (magic, version): (&[u8; 4], u16),
    seed: Seed,
    partition: PartitionId,
    number: u64,
    body: &[u8],
) -> Vec<u8> {
    let mut head = Vec::with_capacity(SMALL_HEADER + body.len());
    Stamp::put(&mut head, magic, version);
    put_u32(&mut head, partition.0);
    put_u32(&mut head, 0);
    put_u64(&mut head, number);
    put_u64(&mut head, body.len() as u64);
    head.resize(SMALL_HEADER - 8, 0);
    let sum = seed.checksum(magic, partition, number, &[&head, body].concat());
    put_u64(&mut head, sum);
    head.extend_from_slice(body);
    head
}

/// The version, up to `newest`, and the body of a small file, if it is that one and whole.
pub(super) fn small_file_body<'a>(
    bytes: &'a [u8],
    (magic, newest): (&[u8; 4], u16),
    seed: Seed,
    partition: PartitionId,
    number: u64,
) -> Result<(u16, &'a [u8]), StampError> {
    let version = Stamp::check(bytes, magic, newest)?;
    let (head, body) = bytes.split_at_checked(SMALL_HEADER).ok_or(StampError::Damaged)?;
    let (plain, sum) = head.split_at(SMALL_HEADER - 8);
    if sum != seed.checksum(magic, partition, number, &[plain, body].concat()).to_le_bytes() {
        return Err(StampError::Damaged);
    }
    Ok((version, body))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    pub partition: PartitionId,
    pub number: u64,
    pub epoch: u64,
    pub base: u64,
    /// Length of the file.
    pub bytes: u64,
    pub boot_id: u64,
    pub durability: Durability,
    /// Where the log stood before this segment; all zero for the first.
    pub predecessor: LogPosition,
}

impl SegmentHeader {
    pub fn encode(&self, seed: Seed) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEADER);
        Stamp::put(&mut out, SEGMENT_MAGIC, FORMAT_VERSION);
        put_u32(&mut out, self.partition.0);
        out.push(self.durability.code());
        out.extend_from_slice(&[0; 3]);
        for v in [self.number, self.epoch, self.base, self.bytes, self.boot_id] {
            put_u64(&mut out, v);
        }
        let p = &self.predecessor;
        for v in [p.segment, p.offset, p.chain, p.epoch] {
            put_u64(&mut out, v);
        }
        out.resize(SEGMENT_HEADER - 8, 0);
        let sum = seed.checksum(SEGMENT_MAGIC, self.partition, self.number, &out);
        put_u64(&mut out, sum);
        out
    }

    /// `number` is the one in the file's name: a misplaced segment is damage.
    pub fn decode(bytes: &[u8], seed: Seed, partition: PartitionId, number: u64) -> Result<Self, StampError> {
        let bytes = bytes.get(..SEGMENT_HEADER).ok_or(StampError::Damaged)?;
        Stamp::check(bytes, SEGMENT_MAGIC, FORMAT_VERSION)?;
        let (body, sum) = bytes.split_at(SEGMENT_HEADER - 8);
        if sum != seed.checksum(SEGMENT_MAGIC, partition, number, body).to_le_bytes() {
            return Err(StampError::Damaged);
        }
        Self::fields(&body[Stamp::LEN..])
            .filter(|h| h.partition == partition && h.number == number)
            .ok_or(StampError::Damaged)
    }

    fn fields(bytes: &[u8]) -> Option<Self> {
        let mut c = Cursor::new(bytes);
        let partition = PartitionId(c.u32()?);
        let durability = Durability::from_code(c.u8()?)?;
        c.take(3)?;
        let (number, epoch, base, bytes, boot_id) = (c.u64()?, c.u64()?, c.u64()?, c.u64()?, c.u64()?);
        let (segment, offset, chain, pred_epoch) = (c.u64()?, c.u64()?, c.u64()?, c.u64()?);
        let predecessor = LogPosition { offset, segment, epoch: pred_epoch, chain };
        Some(Self { partition, number, epoch, base, bytes, boot_id, durability, predecessor })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupHeader {
    pub partition: PartitionId,
    pub body_len: u32,
    pub segment: u64,
    pub epoch: u64,
    pub offset: u64,
    /// Everything before this offset was durable when the group was written.
    pub synced_through: u64,
    pub chain: u64,
    pub committed_at: i64,
    pub records: u32,
    pub checksum: u64,
}

impl GroupHeader {
    pub fn len(&self) -> u64 {
        group_len(u64::from(self.body_len))
    }

    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Encodes the header of a group with these body chunks, checksum filled in. Returns the bytes and the padding's length.
    pub fn seal(&mut self, seed: Seed, chunks: &[&[u8]]) -> (Vec<u8>, usize) {
        self.checksum = 0;
        let mut out = self.encode();
        let padding = (self.len() - GROUP_HEADER as u64 - u64::from(self.body_len)) as usize;
        let mut hasher = seed.hasher(GROUP_MAGIC, self.partition, self.segment);
        hasher.update(&out);
        for chunk in chunks {
            hasher.update(chunk);
        }
        hasher.update(&[0; GROUP_ALIGN as usize][..padding]);
        self.checksum = hasher.digest();
        out[CHECKSUM_AT..CHECKSUM_AT + 8].copy_from_slice(&self.checksum.to_le_bytes());
        (out, padding)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(GROUP_HEADER);
        out.extend_from_slice(GROUP_MAGIC);
        put_u16(&mut out, FORMAT_VERSION);
        put_u16(&mut out, 0);
        put_u64(&mut out, self.checksum);
        put_u32(&mut out, self.partition.0);
        put_u32(&mut out, self.body_len);
        for v in [self.segment, self.epoch, self.offset, self.synced_through, self.chain] {
            put_u64(&mut out, v);
        }
        put_u64(&mut out, self.committed_at.cast_unsigned());
        put_u32(&mut out, self.records);
        out.resize(GROUP_HEADER, 0);
        out
    }

    /// The valid group at the start of `bytes` that says it is the one at `offset` of `segment`, if there is one.
    pub fn decode(bytes: &[u8], seed: Seed, partition: PartitionId, segment: u64, offset: u64) -> Option<Self> {
        let header = Self::fields(bytes.get(..GROUP_HEADER)?)?;
        if header.partition != partition || header.segment != segment || header.offset != offset {
            return None;
        }
        let all = bytes.get(..usize::try_from(header.len()).ok()?)?;
        let mut hasher = seed.hasher(GROUP_MAGIC, partition, segment);
        hasher.update(&all[..CHECKSUM_AT]);
        hasher.update(&[0; 8]);
        hasher.update(&all[CHECKSUM_AT + 8..]);
        (hasher.digest() == header.checksum).then_some(header)
    }

    fn fields(bytes: &[u8]) -> Option<Self> {
        let mut c = Cursor::new(bytes);
        if c.take(4)? != GROUP_MAGIC || c.u16()? != FORMAT_VERSION || c.u16()? != 0 {
            return None;
        }
        let checksum = c.u64()?;
        let (partition, body_len) = (PartitionId(c.u32()?), c.u32()?);
        let (segment, epoch, offset, synced_through, chain) = (c.u64()?, c.u64()?, c.u64()?, c.u64()?, c.u64()?);
        let (committed_at, records) = (c.i64()?, c.u32()?);
        Some(Self {
            partition,
            body_len,
            segment,
            epoch,
            offset,
            synced_through,
            chain,
            committed_at,
            records,
            checksum,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: [u8; 16] = [7; 16];

    fn group() -> (GroupHeader, Vec<u8>) {
        let mut header = GroupHeader {
            partition: PartitionId(3),
            body_len: 600,
            segment: 9,
            epoch: 2,
            offset: 1024,
            synced_through: 512,
            chain: 77,
            committed_at: -5,
            records: 1,
            checksum: 0,
        };
        let body = vec![0xab; 600];
        let (mut bytes, padding) = header.seal(Seed::new(&SEED), &[&body[..100], &body[100..]]);
        bytes.extend_from_slice(&body);
        bytes.resize(bytes.len() + padding, 0);
        (header, bytes)
    }

    /// D3: one checksum over header, records and padding; a flip anywhere makes the group invalid.
    #[test]
    fn every_bit_of_a_group_counts() {
        let seed = Seed::new(&SEED);
        let (header, mut bytes) = group();
        assert_eq!(bytes.len() as u64, header.len());
        let decode = |bytes: &[u8]| GroupHeader::decode(bytes, seed, PartitionId(3), 9, 1024);
        assert_eq!(decode(&bytes), Some(header));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&bytes), None, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(decode(&bytes[..bytes.len() - 1]), None);
        assert_eq!(GroupHeader::decode(&bytes, seed, PartitionId(2), 9, 1024), None, "another partition");
        assert_eq!(GroupHeader::decode(&bytes, seed, PartitionId(3), 9, 512), None, "misplaced");
        assert_eq!(
            GroupHeader::decode(&bytes, Seed::new(&[8; 16]), PartitionId(3), 9, 1024),
            None,
            "another directory"
        );
    }

    #[test]
    fn every_bit_of_a_segment_header_counts() {
        let seed = Seed::new(&SEED);
        let header = SegmentHeader {
            partition: PartitionId(1),
            number: 4,
            epoch: 2,
            base: 4096,
            bytes: 65_536,
            boot_id: 11,
            durability: Durability::Os,
            predecessor: LogPosition { offset: 4096, segment: 3, epoch: 1, chain: 99 },
        };
        let mut bytes = header.encode(seed);
        assert_eq!(bytes.len(), SEGMENT_HEADER);
        assert!(matches!(SegmentHeader::decode(&bytes, seed, PartitionId(1), 4), Ok(h) if h == header));
        assert!(SegmentHeader::decode(&bytes, seed, PartitionId(1), 5).is_err());
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&bytes, seed, PartitionId(1), 4).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
