//! What a session is told, as the wire carries it: `Told` of `proto/engram/v1/frame.proto`.

use super::protobuf::{put_bytes, put_number};
use crate::error::Error;
use crate::types::{Durability, Generation};

/// An acknowledgement of consecutive sequences with consecutive generations; generation 0: not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckRun {
    pub first: u64,
    pub count: u64,
    pub generation: u64,
    pub durability: Durability,
    pub duplicate: bool,
}

impl AckRun {
    /// Takes in the run that follows, if it continues this one.
    pub fn takes(&mut self, next: &Self) -> bool {
        let generation = if self.generation == 0 { 0 } else { self.generation + self.count };
        let same = self.durability == next.durability && self.duplicate == next.duplicate;
        let continues = self.first + self.count == next.first && generation == next.generation && same;
        self.count += if continues { next.count } else { 0 };
        continues
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut ack = Vec::new();
        put_number(&mut ack, 1, self.first);
        put_number(&mut ack, 2, self.count);
        put_number(&mut ack, 3, self.generation);
        put_number(&mut ack, 4, u64::from(self.durability.code()));
        put_number(&mut ack, 5, u64::from(self.duplicate));
        let mut out = Vec::new();
        put_bytes(&mut out, 1, &ack);
        out
    }
}

/// When to come back to a full disk; how long it stays so nobody knows.
const DISK_FULL_RETRY_MS: u64 = 250;

/// Why the frame, or the item, at `first` was not taken; `expected` 0: nothing has to be sent again.
pub fn encode_fault(error: &Error, first: u64, expected: u64) -> Vec<u8> {
    let mut fault = Vec::new();
    put_bytes(&mut fault, 1, error.code().as_bytes());
    put_bytes(&mut fault, 2, error.to_string().as_bytes());
    put_number(&mut fault, 3, first);
    put_number(&mut fault, 4, expected);
    match error {
        Error::Overloaded { retry_after_ms, .. } => put_number(&mut fault, 5, *retry_after_ms),
        Error::DiskFull { .. } => put_number(&mut fault, 5, DISK_FULL_RETRY_MS),
        _ => {}
    }
    let mut out = Vec::new();
    put_bytes(&mut out, 2, &fault);
    out
}

/// How hard the space is pressed, and how many observations to send at once.
pub fn encode_pressure(level: &str, advised_batch: u64) -> Vec<u8> {
    let mut pressure = Vec::new();
    put_bytes(&mut pressure, 1, level.as_bytes());
    put_number(&mut pressure, 2, advised_batch);
    let mut out = Vec::new();
    put_bytes(&mut out, 3, &pressure);
    out
}

/// Up to which sequence, and generation, all is absorbed.
pub fn encode_absorbed(through: u64, generation: Generation) -> Vec<u8> {
    let mut absorbed = Vec::new();
    put_number(&mut absorbed, 1, through);
    put_number(&mut absorbed, 2, generation.0);
    let mut out = Vec::new();
    put_bytes(&mut out, 4, &absorbed);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[derive(Clone, PartialEq, Message)]
    struct Ack {
        #[prost(uint64, tag = "1")]
        first_sequence: u64,
        #[prost(uint32, tag = "2")]
        count: u32,
        #[prost(uint64, tag = "3")]
        first_generation: u64,
        #[prost(int32, tag = "4")]
        durability: i32,
        #[prost(bool, tag = "5")]
        duplicate: bool,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Fault {
        #[prost(string, tag = "1")]
        code: String,
        #[prost(string, tag = "2")]
        message: String,
        #[prost(uint64, tag = "3")]
        first_sequence: u64,
        #[prost(uint64, tag = "4")]
        expected: u64,
        #[prost(uint64, tag = "5")]
        retry_after_ms: u64,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Told {
        #[prost(message, tag = "1")]
        ack: Option<Ack>,
        #[prost(message, tag = "2")]
        fault: Option<Fault>,
        #[prost(message, tag = "3")]
        pressure: Option<Pressure>,
        #[prost(message, tag = "4")]
        absorbed: Option<Absorbed>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Absorbed {
        #[prost(uint64, tag = "1")]
        through_sequence: u64,
        #[prost(uint64, tag = "2")]
        generation: u64,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Pressure {
        #[prost(string, tag = "1")]
        level: String,
        #[prost(uint64, tag = "2")]
        advised_batch: u64,
    }

    #[test]
    fn prost_reads_what_is_told() {
        let mut run = AckRun { first: 7, count: 2, generation: 300, durability: Durability::Os, duplicate: true };
        let next = AckRun { first: 9, count: 1, generation: 302, ..run };
        assert!(run.takes(&next) && !run.takes(&next), "only what continues it");
        assert!(!run.takes(&AckRun { first: 10, generation: 303, duplicate: false, ..run }));
        let told = Told::decode(&run.encode()[..]).unwrap();
        let ack = Ack { first_sequence: 7, count: 3, first_generation: 300, durability: 2, duplicate: true };
        assert_eq!(told, Told { ack: Some(ack), ..Told::default() });
        let error = Error::Overloaded { retry_after_ms: 250, level: "OVERLOADED", reason: "full".to_owned() };
        let fault = Told::decode(&encode_fault(&error, 7, 5)[..]).unwrap().fault.unwrap();
        assert_eq!((fault.code.as_str(), fault.first_sequence, fault.expected), ("OVERLOADED", 7, 5));
        assert_eq!((fault.retry_after_ms, fault.message), (250, error.to_string()));
        let pressure = Told::decode(&encode_pressure("CRITICAL", 1024)[..]).unwrap().pressure.unwrap();
        let absorbed = Told::decode(&encode_absorbed(70, Generation(900))[..]).unwrap().absorbed.unwrap();
        assert_eq!(absorbed, Absorbed { through_sequence: 70, generation: 900 });
        assert_eq!(pressure, Pressure { level: "CRITICAL".to_owned(), advised_batch: 1024 });
    }
}
