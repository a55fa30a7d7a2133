//! The part of protobuf that frames need: varints, tags and length-delimited fields, as ranges into the input.
//!
//! Our own reader because a frame's texts and vectors are used from where they lie, for as long as the row is unsealed; the tests
//! compare it with prost.

pub(crate) use crate::types::codec::put_varint;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field<'a> {
    Varint(u64),
    Fixed32(u32),
    Fixed64,
    /// Start in the input, and the bytes.
    Bytes(usize, &'a [u8]),
}

pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn is_done(&self) -> bool {
        self.at == self.bytes.len()
    }

    pub(super) fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.bytes.get(self.at)?;
            self.at += 1;
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

    pub(super) fn fixed32(&mut self) -> Option<u32> {
        let bytes = self.bytes.get(self.at..self.at.checked_add(4)?)?;
        self.at += 4;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }

    /// The next field's number and content.
    pub(super) fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let tag = self.varint()?;
        let field = match tag & 7 {
            0 => Field::Varint(self.varint()?),
            1 => {
                self.at = self.at.checked_add(8).filter(|a| *a <= self.bytes.len())?;
                Field::Fixed64
            }
            2 => {
                let len = usize::try_from(self.varint()?).ok()?;
                let start = self.at;
                let end = start.checked_add(len)?;
                let bytes = self.bytes.get(start..end)?;
                self.at = end;
                Field::Bytes(start, bytes)
            }
            5 => Field::Fixed32(self.fixed32()?),
            _ => return None,
        };
        (tag >> 3 != 0).then_some((tag >> 3, field))
    }
}

pub(super) fn put_tag(out: &mut Vec<u8>, field: u64, wire: u64) {
    put_varint(out, field << 3 | wire);
}

/// A field that is absent when it is 0.
pub(crate) fn put_number(out: &mut Vec<u8>, field: u64, value: u64) {
    if value != 0 {
        put_present(out, field, value);
    }
}

/// A field of which 0 is a value, too.
pub(crate) fn put_present(out: &mut Vec<u8>, field: u64, value: u64) {
    put_tag(out, field, 0);
    put_varint(out, value);
}

pub(crate) fn put_float(out: &mut Vec<u8>, field: u64, value: f32) {
    put_tag(out, field, 5);
    out.extend_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_tag(out, field, 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(crate) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

pub(super) fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}
