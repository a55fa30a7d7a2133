//! Observations whose every field follows from a uid.

use engram_core::records::{Columns, build_frame};

pub fn vector(uid: u64) -> [f32; 3] {
    [1.0 + (uid % 97) as f32, (uid % 13) as f32, (uid % 7) as f32 - 3.0]
}

/// One uid of ten has a key, never twice among 60 in a row.
pub fn key_of(uid: u64) -> Option<String> {
    uid.is_multiple_of(10).then(|| format!("k{}", uid / 10 % 7))
}

pub fn frame_of(uids: &[u64], text_only: bool) -> Vec<u8> {
    frame(uids, text_only, false)
}

pub fn frame(uids: &[u64], text_only: bool, keyed: bool) -> Vec<u8> {
    let texts: Vec<String> = uids.iter().map(|u| format!("uid {u} {}", "x".repeat((u % 50) as usize))).collect();
    let texts: Vec<Option<&str>> = texts.iter().map(|t| Some(t.as_str())).collect();
    let vectors: Vec<f32> = uids.iter().flat_map(|u| vector(*u)).collect();
    let keys: Vec<Option<String>> = uids.iter().map(|u| key_of(*u)).collect();
    let keys: Vec<Option<&str>> = keys.iter().map(Option::as_deref).collect();
    let times: Vec<i64> = uids.iter().map(|u| *u as i64 * 1000).collect();
    build_frame(&Columns {
        count: uids.len(),
        dim: 3,
        vectors: (!text_only).then_some(&vectors[..]),
        texts: Some(&texts),
        observed_at: Some(&times),
        keys: keyed.then_some(&keys[..]),
        ..Columns::default()
    })
}

/// The observation with this sequence in a session's stream.
pub fn uid_of(session: usize, sequence: u64) -> u64 {
    SESSION_UIDS * (session as u64 + 1) + sequence
}

/// Uids of sessions begin here, and come in blocks of so many.
pub const SESSION_UIDS: u64 = 1_000_000;
