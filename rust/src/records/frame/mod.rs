//! Frames: many observations in parallel fields, as `proto/engram/v1/frame.proto` says; what the wire carries and the log stores.
//!
//! `build_frame` makes one from columns, `FrameView` reads one as ranges into its bytes, without copying texts or vectors.

mod join;

use super::Facts;
use super::protobuf::{Field, Reader, put_bytes, put_tag, put_varint, unzigzag, zigzag};
use crate::error::Error;
use crate::types::Generation;

pub use join::join_frames;

/// `observed_at` of an item that has none.
pub const TIME_ABSENT: i64 = i64::MIN;
const HAS_TEXT: u8 = 1;
const HAS_VECTOR: u8 = 2;

/// Observations as columns; each `Some` has `count` entries.
#[derive(Clone, Copy, Default)]
pub struct Columns<'a> {
    pub count: usize,
    pub dim: usize,
    /// `count` × `dim`, row by row.
    pub vectors: Option<&'a [f32]>,
    pub texts: Option<&'a [Option<&'a str>]>,
    /// Canonical binary; empty = none.
    pub metadata: Option<&'a [Vec<u8>]>,
    pub observed_at: Option<&'a [i64]>,
    pub confidence: Option<&'a [f32]>,
    pub keys: Option<&'a [Option<&'a str>]>,
}

impl<'a> Columns<'a> {
    /// Items [from, to).
    #[must_use]
    pub fn slice(&self, from: usize, to: usize) -> Columns<'a> {
        Columns {
            count: to - from,
            dim: self.dim,
            vectors: self.vectors.map(|v| &v[from * self.dim..to * self.dim]),
            texts: self.texts.map(|t| &t[from..to]),
            metadata: self.metadata.map(|m| &m[from..to]),
            observed_at: self.observed_at.map(|o| &o[from..to]),
            confidence: self.confidence.map(|c| &c[from..to]),
            keys: self.keys.map(|k| &k[from..to]),
        }
    }

    /// Bytes item `i` takes in a frame, near enough for limits.
    pub fn item_bytes(&self, i: usize) -> usize {
        let text = self.texts.and_then(|t| t[i]).map_or(0, str::len);
        let metadata = self.metadata.map_or(0, |m| m[i].len());
        let key = self.keys.and_then(|k| k[i]).map_or(0, str::len);
        text + metadata + key + self.vectors.map_or(0, |_| self.dim * 4) + 40
    }
}

/// Encodes a frame. The vectors come last, appended as they are.
pub fn build_frame(columns: &Columns<'_>) -> Vec<u8> {
    let total: usize = 64 + (0..columns.count).map(|i| columns.item_bytes(i)).sum::<usize>();
    let mut out = Vec::with_capacity(total);
    put_tag(&mut out, 2, 0);
    put_varint(&mut out, columns.count as u64);
    if let Some(times) = columns.observed_at {
        let mut packed = Vec::with_capacity(times.len() * 8);
        times.iter().for_each(|t| put_varint(&mut packed, zigzag(*t)));
        put_bytes(&mut out, 3, &packed);
    }
    if let Some(confidence) = columns.confidence {
        let packed: Vec<u8> = confidence.iter().flat_map(|c| c.to_le_bytes()).collect();
        put_bytes(&mut out, 4, &packed);
    }
    if let Some(texts) = columns.texts {
        texts.iter().for_each(|t| put_bytes(&mut out, 5, t.unwrap_or("").as_bytes()));
        if texts.iter().any(Option::is_none) {
            let vector = if columns.vectors.is_some() { HAS_VECTOR } else { 0 };
            let present: Vec<u8> = texts.iter().map(|t| vector | u8::from(t.is_some())).collect();
            put_bytes(&mut out, 7, &present);
        }
    }
    if let Some(metadata) = columns.metadata {
        metadata.iter().for_each(|m| put_bytes(&mut out, 6, m));
    }
    if let Some(keys) = columns.keys {
        keys.iter().for_each(|k| put_bytes(&mut out, 9, k.unwrap_or("").as_bytes()));
    }
    if let Some(vectors) = columns.vectors {
        put_tag(&mut out, 8, 0);
        put_varint(&mut out, columns.dim as u64);
        put_tag(&mut out, 15, 2);
        put_varint(&mut out, vectors.len() as u64 * 4);
        let at = out.len();
        out.resize(at + vectors.len() * 4, 0);
        for (bytes, v) in out[at..].chunks_exact_mut(4).zip(vectors) {
            bytes.copy_from_slice(&v.to_le_bytes());
        }
    }
    out
}

type Range = (u32, u32);

/// Where everything is in a frame's bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FrameView {
    first_sequence: u64,
    count: usize,
    dim: usize,
    observed_at: Vec<i64>,
    confidence: Vec<f32>,
    texts: Vec<Range>,
    metadata: Vec<Range>,
    keys: Vec<Range>,
    present: Option<Range>,
    vectors: Range,
    /// Vector slot an item, if not every item has a vector.
    slots: Vec<u32>,
}

fn malformed(why: &str) -> Error {
    Error::invalid("frame", format!("malformed frame: {why}"))
}

impl FrameView {
    /// Reads a frame of any bytes: a typed error, never a panic, and no allocation beyond a small multiple of the input.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        if u32::try_from(bytes.len()).is_err() {
            return Err(malformed("larger than 4 GiB"));
        }
        let mut view = Self::default();
        let mut reader = Reader::new(bytes);
        while !reader.is_done() {
            let (number, field) = reader.field().ok_or_else(|| malformed("not protobuf"))?;
            view.field(number, field).ok_or_else(|| malformed("a field of the wrong type"))?;
        }
        view.finish(bytes)
    }

    fn field(&mut self, number: u64, field: Field<'_>) -> Option<()> {
        let range = |start: usize, b: &[u8]| Some((u32::try_from(start).ok()?, u32::try_from(b.len()).ok()?));
        match (number, field) {
            (2, Field::Varint(n)) => self.count = usize::try_from(n).ok()?,
            (3, Field::Bytes(_, b)) => {
                let mut r = Reader::new(b);
                while !r.is_done() {
                    self.observed_at.push(unzigzag(r.varint()?));
                }
            }
            (3, Field::Varint(v)) => self.observed_at.push(unzigzag(v)),
            (4, Field::Bytes(_, b)) => {
                let mut r = Reader::new(b);
                while !r.is_done() {
                    self.confidence.push(f32::from_bits(r.fixed32()?));
                }
            }
            (4, Field::Fixed32(v)) => self.confidence.push(f32::from_bits(v)),
            (5, Field::Bytes(start, b)) => self.texts.push(range(start, b)?),
            (6, Field::Bytes(start, b)) => self.metadata.push(range(start, b)?),
            (7, Field::Bytes(start, b)) => self.present = Some(range(start, b)?),
            (9, Field::Bytes(start, b)) => self.keys.push(range(start, b)?),
            (8, Field::Varint(n)) => self.dim = usize::try_from(n).ok()?,
            (15, Field::Bytes(start, b)) => self.vectors = range(start, b)?,
            (1, Field::Varint(n)) => self.first_sequence = n,
            (1..=9 | 15, _) => return None,
            // Unknown fields of a newer client are kept in the bytes and not looked at.
            _ => {}
        }
        Some(())
    }

    fn finish(mut self, bytes: &[u8]) -> Result<Self, Error> {
        let n = self.count;
        let wrong = |len: usize| len != 0 && len != n;
        if n == 0 {
            return Err(malformed("it holds no observation"));
        }
        if wrong(self.observed_at.len()) || wrong(self.confidence.len()) || wrong(self.texts.len()) {
            return Err(malformed("fields of different lengths"));
        }
        if wrong(self.metadata.len())
            || wrong(self.keys.len())
            || self.present.is_some_and(|(_, len)| len as usize != n)
        {
            return Err(malformed("fields of different lengths"));
        }
        // Without these a count could promise more items than the bytes can hold.
        if self.texts.is_empty() && self.vectors.1 == 0 {
            return Err(malformed("neither texts nor vectors"));
        }
        let mut vectors = if self.vectors.1 == 0 { 0 } else { n };
        if let Some((at, len)) = self.present {
            let present = &bytes[at as usize..][..len as usize];
            if present.iter().any(|p| *p & !(HAS_TEXT | HAS_VECTOR) != 0) {
                return Err(malformed("unknown presence bits"));
            }
            if self.texts.is_empty() && present.iter().any(|p| p & HAS_TEXT != 0) {
                return Err(malformed("a text is promised and absent"));
            }
            vectors = present.iter().filter(|p| **p & HAS_VECTOR != 0).count();
            if vectors != n {
                let mut next = 0;
                self.slots.reserve(n);
                for p in present {
                    let has = p & HAS_VECTOR != 0;
                    self.slots.push(if has { next } else { u32::MAX });
                    next += u32::from(has);
                }
            }
        } else if vectors == 0 {
            self.slots = vec![u32::MAX; n];
        }
        // Of no dimensions any number of vectors would fit into no bytes.
        let size = vectors.checked_mul(self.dim * 4).filter(|_| vectors == 0 || self.dim > 0);
        if size != Some(self.vectors.1 as usize) {
            return Err(malformed("vectors and dim do not fit together"));
        }
        Ok(self)
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// Of the first item, in its session; 0: none.
    pub fn first_sequence(&self) -> u64 {
        self.first_sequence
    }

    /// A frame of items [from, to).
    pub fn slice(&self, bytes: &[u8], from: usize, to: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let range = |r: &Range| &bytes[r.0 as usize..][..r.1 as usize];
        put_tag(&mut out, 2, 0);
        put_varint(&mut out, (to - from) as u64);
        if !self.observed_at.is_empty() {
            let mut packed = Vec::new();
            self.observed_at[from..to].iter().for_each(|t| put_varint(&mut packed, zigzag(*t)));
            put_bytes(&mut out, 3, &packed);
        }
        if !self.confidence.is_empty() {
            let packed: Vec<u8> = self.confidence[from..to].iter().flat_map(|c| c.to_le_bytes()).collect();
            put_bytes(&mut out, 4, &packed);
        }
        for (number, fields) in [(5, &self.texts), (6, &self.metadata), (9, &self.keys)] {
            if !fields.is_empty() {
                fields[from..to].iter().for_each(|r| put_bytes(&mut out, number, range(r)));
            }
        }
        if let Some(present) = &self.present {
            put_bytes(&mut out, 7, &range(present)[from..to]);
        }
        if self.has_vectors() {
            let size = self.dim * 4;
            let slots: Vec<usize> = (from..to).filter_map(|i| self.slot(i)).collect();
            let first = slots.first().copied().unwrap_or(0);
            put_tag(&mut out, 8, 0);
            put_varint(&mut out, self.dim as u64);
            put_bytes(&mut out, 15, &self.vectors(bytes)[first * size..][..slots.len() * size]);
        }
        out
    }

    pub fn dim(&self) -> usize {
        self.dim
    }

    pub fn has_vectors(&self) -> bool {
        self.vectors.1 > 0
    }

    pub fn observed_at(&self, i: usize) -> Option<i64> {
        self.observed_at.get(i).copied().filter(|t| *t != TIME_ABSENT)
    }

    pub fn confidence(&self, i: usize) -> f32 {
        self.confidence.get(i).copied().unwrap_or(1.0)
    }

    pub fn text_bytes<'a>(&self, bytes: &'a [u8], i: usize) -> Option<&'a [u8]> {
        let (at, len) = *self.texts.get(i)?;
        let has = self.present.is_none_or(|(p, _)| bytes[p as usize + i] & HAS_TEXT != 0);
        has.then(|| &bytes[at as usize..][..len as usize])
    }

    pub fn metadata<'a>(&self, bytes: &'a [u8], i: usize) -> &'a [u8] {
        self.metadata.get(i).map_or(&[], |(at, len)| &bytes[*at as usize..][..*len as usize])
    }

    pub fn has_keys(&self) -> bool {
        !self.keys.is_empty()
    }

    pub fn key_bytes<'a>(&self, bytes: &'a [u8], i: usize) -> Option<&'a [u8]> {
        let (at, len) = *self.keys.get(i)?;
        (len > 0).then(|| &bytes[at as usize..][..len as usize])
    }

    /// Item `i`'s key, where keys were checked to be UTF-8.
    pub fn key<'a>(&self, bytes: &'a [u8], i: usize) -> Option<&'a str> {
        self.key_bytes(bytes, i).and_then(|k| std::str::from_utf8(k).ok())
    }

    /// What a filter looks at, of item `i` with this generation and time.
    pub fn facts<'a>(&self, bytes: &'a [u8], i: usize, generation: Generation, committed_at: i64) -> Facts<'a> {
        Facts {
            generation,
            committed_at,
            observed_at: self.observed_at(i),
            confidence: self.confidence(i),
            metadata: self.metadata(bytes, i),
            key: self.key(bytes, i),
        }
    }

    /// The vectors' bytes, all items that have one.
    pub fn vectors<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.vectors.0 as usize..][..self.vectors.1 as usize]
    }

    /// Which of the frame's vectors is item `i`'s.
    pub fn slot(&self, i: usize) -> Option<usize> {
        match self.slots.get(i) {
            None => Some(i),
            Some(&u32::MAX) => None,
            Some(slot) => Some(*slot as usize),
        }
    }

    pub fn every_item_has_a_vector(&self) -> bool {
        self.slots.is_empty()
    }

    pub fn vector<'a>(&self, bytes: &'a [u8], i: usize) -> Option<&'a [u8]> {
        let size = self.dim * 4;
        self.slot(i).map(|slot| &self.vectors(bytes)[slot * size..][..size])
    }

    /// Bytes this view takes beside the frame's own.
    pub fn heap_bytes(&self) -> usize {
        self.observed_at.len() * 8
            + self.confidence.len() * 4
            + (self.texts.len() + self.metadata.len() + self.keys.len()) * 8
            + self.slots.len() * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::check_frame;
    use crate::types::{Config, Metric};
    use proptest::prelude::*;
    use prost::Message;

    /// The frame as prost sees it: the oracle.
    #[derive(Clone, PartialEq, Message)]
    struct Frame {
        #[prost(uint64, tag = "1")]
        first_sequence: u64,
        #[prost(uint32, tag = "2")]
        count: u32,
        #[prost(sint64, repeated, tag = "3")]
        observed_at: Vec<i64>,
        #[prost(float, repeated, tag = "4")]
        confidence: Vec<f32>,
        #[prost(string, repeated, tag = "5")]
        texts: Vec<String>,
        #[prost(bytes = "vec", repeated, tag = "6")]
        metadata: Vec<Vec<u8>>,
        #[prost(bytes = "vec", tag = "7")]
        present: Vec<u8>,
        #[prost(uint32, tag = "8")]
        dim: u32,
        #[prost(string, repeated, tag = "9")]
        keys: Vec<String>,
        #[prost(bytes = "vec", tag = "15")]
        vectors: Vec<u8>,
    }

    proptest! {
        #[test]
        fn frames_agree_with_prost(
            items in prop::collection::vec((prop::option::of(".{0,20}"), prop::collection::vec(any::<u8>(), 0..8), any::<i64>(), 0f32..1.0, prop::option::of(".{1,9}")), 1..20),
            dim in 1usize..5,
            with_vectors in any::<bool>(),
        ) {
            let texts: Vec<Option<&str>> = items.iter().map(|i| i.0.as_deref()).collect();
            let metadata: Vec<Vec<u8>> = items.iter().map(|i| i.1.clone()).collect();
            let keys: Vec<Option<&str>> = items.iter().map(|i| i.4.as_deref()).collect();
            let times: Vec<i64> = items.iter().map(|i| i.2).collect();
            let confidence: Vec<f32> = items.iter().map(|i| i.3).collect();
            let vectors: Vec<f32> = (0..items.len() * dim).map(|i| i as f32).collect();
            let columns = Columns {
                count: items.len(), dim, vectors: with_vectors.then_some(&vectors[..]), texts: Some(&texts),
                metadata: Some(&metadata), observed_at: Some(&times), confidence: Some(&confidence), keys: Some(&keys),
            };
            let bytes = build_frame(&columns);
            let oracle = Frame::decode(&bytes[..]).unwrap();
            let view = FrameView::parse(&bytes).unwrap();
            prop_assert_eq!(oracle.count as usize, view.count());
            prop_assert_eq!(&oracle.observed_at, &times);
            prop_assert_eq!(&oracle.confidence, &confidence);
            prop_assert_eq!(&oracle.metadata, &metadata);
            prop_assert_eq!(&oracle.vectors[..], view.vectors(&bytes));
            for (i, text) in texts.iter().enumerate() {
                prop_assert_eq!(&oracle.texts[i], text.unwrap_or(""));
                prop_assert_eq!(view.text_bytes(&bytes, i), text.map(str::as_bytes));
                prop_assert_eq!(&oracle.keys[i], keys[i].unwrap_or(""));
                prop_assert_eq!(view.key(&bytes, i), keys[i]);
                prop_assert_eq!(view.metadata(&bytes, i), &metadata[i][..]);
                prop_assert_eq!(view.vector(&bytes, i).is_some(), with_vectors);
            }
            let (from, to) = (items.len() / 3, items.len() / 3 + items.len().div_ceil(2));
            let cut = view.slice(&bytes, from, to);
            let part = FrameView::parse(&cut).unwrap();
            prop_assert_eq!(part.count(), to - from);
            for i in from..to {
                prop_assert_eq!(part.text_bytes(&cut, i - from), view.text_bytes(&bytes, i));
                prop_assert_eq!(part.metadata(&cut, i - from), view.metadata(&bytes, i));
                prop_assert_eq!(part.key(&cut, i - from), view.key(&bytes, i));
                prop_assert_eq!(part.vector(&cut, i - from), view.vector(&bytes, i));
                prop_assert_eq!((part.observed_at(i - from), part.confidence(i - from)), (view.observed_at(i), view.confidence(i)));
            }
            // What prost writes, we read: packed and in its own field order.
            prop_assert_eq!(FrameView::parse(&oracle.encode_to_vec()).unwrap().count(), items.len());
        }

        /// Whatever fields say, and do not say of each other.
        #[test]
        fn any_fields_are_a_typed_answer(
            (n, dim, lengths) in (0usize..4, 0u32..3, prop::array::uniform7(0usize..4)),
            present in prop::collection::vec(0u8..4, 4),
            texts in prop::collection::vec("[a-z]{0,2}", 4),
            metadata in prop::collection::vec(prop::collection::vec(0u8..9, 0..2), 4),
            keys in prop::collection::vec("[a-b]{0,1}", 4),
            (observed_at, confidence) in (prop::collection::vec(any::<i64>(), 4), prop::collection::vec(-0.1f32..1.1, 4)),
            vectors in prop::collection::vec(any::<f32>(), 8),
        ) {
            fn cut<T: Clone>(all: &[T], to: usize) -> Vec<T> {
                all[..to.min(all.len())].to_vec()
            }
            // Mostly of the right length, or absent.
            let to = |i: usize| [0, n, n, (n + 1) % 4][lengths[i]];
            let frame = Frame {
                first_sequence: 1,
                count: n as u32,
                dim,
                present: cut(&present, to(0)),
                texts: cut(&texts, to(1)),
                metadata: cut(&metadata, to(2)),
                keys: cut(&keys, to(3)),
                observed_at: cut(&observed_at, to(4)),
                confidence: cut(&confidence, to(5)),
                vectors: cut(&vectors, to(6) * dim as usize).iter().flat_map(|v| v.to_le_bytes()).collect(),
            };
            let bytes = frame.encode_to_vec();
            for metric in [Metric::Cosine, Metric::L2, Metric::InnerProduct] {
                if let Ok(checked) = check_frame(&bytes, 2, metric, &Config::default()) {
                    prop_assert_eq!(checked.view.count(), n);
                    prop_assert!(!checked.view.has_vectors() || dim == 2);
                }
            }
        }

        #[test]
        fn any_bytes_are_a_typed_answer(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(view) = FrameView::parse(&bytes) {
                for i in 0..view.count() {
                    let _ = (view.text_bytes(&bytes, i), view.metadata(&bytes, i), view.vector(&bytes, i));
                }
            }
        }
    }

    #[test]
    fn items_without_a_vector_keep_their_place() {
        let frame = Frame {
            count: 3,
            texts: vec!["a".into(), String::new(), "c".into()],
            present: vec![3, 2, 1],
            dim: 1,
            vectors: [1f32.to_le_bytes(), 2f32.to_le_bytes()].concat(),
            ..Frame::default()
        };
        let bytes = frame.encode_to_vec();
        let view = FrameView::parse(&bytes).unwrap();
        assert_eq!((view.slot(0), view.slot(1), view.slot(2)), (Some(0), Some(1), None));
        assert_eq!(view.text_bytes(&bytes, 1), None);
        let cut = view.slice(&bytes, 1, 3);
        let part = FrameView::parse(&cut).unwrap();
        assert_eq!((part.vector(&cut, 0), part.vector(&cut, 1)), (view.vector(&bytes, 1), None));
        assert_eq!(part.text_bytes(&cut, 1), Some(&b"c"[..]));
        assert!(FrameView::parse(&Frame { count: 1 << 30, ..frame }.encode_to_vec()).is_err());
    }
}
