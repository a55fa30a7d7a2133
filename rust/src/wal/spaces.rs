//! The records of the catalogue: which spaces there are, and what they may hold (T1).

use super::record::{Record, RecordKind, head};
use crate::types::codec::{Cursor, put_u32, put_u64};
use crate::types::{Durability, Generation, Metric, NAME_BYTES_MAX, PartitionId, Quota, SpaceId, SpaceOptions};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateSpace(pub SpaceOptions);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetQuota {
    pub id: SpaceId,
    pub quota: Quota,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropSpace {
    pub id: SpaceId,
    pub last_generation: Generation,
}

const SPACE_CREATE: u8 = 1;
const SPACE_DROP: u8 = 2;
const SPACE_QUOTA: u8 = 3;

impl CreateSpace {
    pub fn encode(&self, out: &mut Vec<u8>) {
        let o = &self.0;
        head(out, RecordKind::Space, o.id, 1 + 4 + 4 + 4 + 8 + 8 + o.name.len());
        out.push(SPACE_CREATE);
        put_u32(out, o.partition.0);
        put_u32(out, o.dim);
        out.extend_from_slice(&[o.metric.code(), 1, o.durability.map_or(0, Durability::code), 0]);
        put_u64(out, o.incarnation);
        put_u64(out, o.first_generation.0);
        out.extend_from_slice(o.name.as_bytes());
    }

    pub(super) fn decode(id: SpaceId, mut c: Cursor<'_>) -> Option<Self> {
        let (partition, dim) = (PartitionId(c.u32()?), c.u32()?);
        let (metric, stored, durability, zero) = (c.u8()?, c.u8()?, c.u8()?, c.u8()?);
        let (incarnation, first_generation) = (c.u64()?, Generation(c.u64()?));
        let name = std::str::from_utf8(c.rest()).ok()?.to_owned();
        if stored != 1 || zero != 0 || name.len() > NAME_BYTES_MAX {
            return None;
        }
        let durability = if durability == 0 { None } else { Some(Durability::from_code(durability)?) };
        let metric = Metric::from_code(metric)?;
        let quota = Quota::default();
        Some(Self(SpaceOptions { id, name, partition, dim, metric, durability, incarnation, first_generation, quota }))
    }
}

impl SetQuota {
    pub fn encode(&self, out: &mut Vec<u8>) {
        head(out, RecordKind::Space, self.id, 17);
        out.push(SPACE_QUOTA);
        put_u64(out, self.quota.memories);
        put_u64(out, self.quota.bytes);
    }
}

impl DropSpace {
    pub fn encode(&self, out: &mut Vec<u8>) {
        head(out, RecordKind::Space, self.id, 9);
        out.push(SPACE_DROP);
        put_u64(out, self.last_generation.0);
    }
}

/// A record of the catalogue.
pub(super) fn space_record<'a>(id: SpaceId, mut c: Cursor<'_>) -> Option<Record<'a>> {
    match c.u8()? {
        SPACE_CREATE => CreateSpace::decode(id, c).map(Record::Create),
        SPACE_QUOTA => {
            let quota = Quota { memories: c.u64()?, bytes: c.u64()? };
            Some(Record::Quota(SetQuota { id, quota }))
        }
        SPACE_DROP => Some(Record::Drop(DropSpace { id, last_generation: Generation(c.u64()?) })),
        _ => None,
    }
}
