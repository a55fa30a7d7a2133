//! Hits as the wire carries them: `RecallResponse` of `proto/engram/v1/service.proto`.

use super::{Found, Looked};
use crate::error::Error;
use crate::records::{metadata_json, put_bytes, put_float, put_number, put_present, zigzag};

/// The hits of one batch.
#[derive(Default)]
pub(super) struct Batch(Vec<u8>);

impl Batch {
    /// Adds a hit, unless there are some and it would make them too large; whether it did.
    pub(super) fn takes(&mut self, found: &Found, bytes_max: usize) -> Result<bool, Error> {
        let (memory, mut hit) = (&found.memory, Vec::new());
        put_number(&mut hit, 1, memory.generation.0);
        memory.text.iter().for_each(|text| put_bytes(&mut hit, 2, text.as_bytes()));
        let metadata = metadata_json(&memory.metadata)?;
        if !metadata.is_empty() {
            put_bytes(&mut hit, 3, metadata.as_bytes());
        }
        memory.key.iter().for_each(|key| put_bytes(&mut hit, 4, key.as_bytes()));
        put_float(&mut hit, 5, memory.confidence);
        memory.observed_at.iter().for_each(|at| put_present(&mut hit, 6, zigzag(*at)));
        put_number(&mut hit, 7, zigzag(memory.committed_at));
        memory.ended.iter().for_each(|ended| put_present(&mut hit, 8, ended.0));
        put_float(&mut hit, 10, found.score);
        put_number(&mut hit, 11, u64::from(found.provisional));
        let fits = self.0.is_empty() || self.0.len() + hit.len() <= bytes_max;
        if fits {
            put_bytes(&mut self.0, 1, &hit);
        }
        Ok(fits)
    }

    /// The whole message.
    pub(super) fn finish(self, looked: &Looked, index: u64, last: bool) -> Vec<u8> {
        let mut out = self.0;
        put_number(&mut out, 2, looked.generation.0);
        put_number(&mut out, 3, index);
        put_number(&mut out, 4, u64::from(last));
        put_number(&mut out, 5, looked.absorbed.0);
        put_number(&mut out, 6, zigzag(looked.lag_micros));
        out
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::super::Memory;
    use super::*;
    use crate::records::{Value, encode_metadata};
    use crate::types::Generation;

    #[derive(Clone, PartialEq, Message)]
    struct Hit {
        #[prost(uint64, tag = "1")]
        memory_id: u64,
        #[prost(string, optional, tag = "2")]
        text: Option<String>,
        #[prost(string, tag = "3")]
        metadata: String,
        #[prost(string, optional, tag = "4")]
        key: Option<String>,
        #[prost(float, tag = "5")]
        confidence: f32,
        #[prost(sint64, optional, tag = "6")]
        observed_at: Option<i64>,
        #[prost(sint64, tag = "7")]
        committed_at: i64,
        #[prost(uint64, optional, tag = "8")]
        ended: Option<u64>,
        #[prost(float, optional, tag = "10")]
        score: Option<f32>,
        #[prost(bool, tag = "11")]
        provisional: bool,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Response {
        #[prost(message, repeated, tag = "1")]
        hits: Vec<Hit>,
        #[prost(uint64, tag = "2")]
        generation: u64,
        #[prost(uint32, tag = "3")]
        index: u32,
        #[prost(bool, tag = "4")]
        last: bool,
        #[prost(uint64, tag = "5")]
        absorbed: u64,
        #[prost(sint64, tag = "6")]
        lag_micros: i64,
    }

    #[test]
    fn prost_reads_a_batch() {
        let metadata = encode_metadata(&Value::Object(vec![("a".to_owned(), Value::Int(1))]), 16).unwrap();
        let full = Memory {
            generation: Generation(300),
            committed_at: -5,
            observed_at: Some(0),
            confidence: 0.5,
            text: Some(String::new()),
            metadata,
            vector: None,
            key: Some("k".to_owned()),
            ended: Some(Generation(301)),
        };
        let bare =
            Memory { text: None, key: None, observed_at: None, ended: None, metadata: Vec::new(), ..full.clone() };
        let found = |memory, provisional| Found { score: -1.5, provisional, memory };
        let looked = Looked { generation: Generation(400), absorbed: Generation(299), lag_micros: -1, at: 0 };
        let (full, bare) = (found(full, true), found(bare, false));
        let mut batch = Batch::default();
        assert!(batch.takes(&full, 1).unwrap(), "one, however large it is");
        assert!(!batch.takes(&bare, 40).unwrap() && batch.takes(&bare, 60).unwrap());
        let bytes = batch.finish(&looked, 2, true);
        let hit = Hit {
            memory_id: 300,
            text: Some(String::new()),
            metadata: r#"{"a":1}"#.to_owned(),
            key: Some("k".to_owned()),
            confidence: 0.5,
            observed_at: Some(0),
            committed_at: -5,
            ended: Some(301),
            score: Some(-1.5),
            provisional: true,
        };
        let plain = Hit { memory_id: 300, confidence: 0.5, committed_at: -5, score: Some(-1.5), ..Hit::default() };
        let response =
            Response { hits: vec![hit, plain], generation: 400, index: 2, last: true, absorbed: 299, lag_micros: -1 };
        assert_eq!(Response::decode(&bytes[..]).unwrap(), response);
    }
}
