//! The right to attach to a session (S4): which one it is, under the directory's key, so that nobody can make one up.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::error::Error;
use crate::types::codec::{Cursor, put_u64};
use crate::types::{SessionId, SpaceId};

const PREFIX: &str = "es1_";
const FIELDS: usize = 8 * 3;
const MAC: usize = 16;
const SESSION: &[u8] = b"engram session";
const SPACE: &[u8] = b"engram space";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub space: SpaceId,
    pub session: SessionId,
    /// Of the space, when the token was given (D11).
    pub incarnation: u64,
}

impl Token {
    fn fields(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FIELDS + MAC);
        for v in [self.space.0, self.session.0, self.incarnation] {
            put_u64(&mut out, v);
        }
        out
    }

    pub fn sign(self, key: &[u8; 32]) -> String {
        let mut bytes = self.fields();
        let mac = keyed(key, SESSION, &bytes).finalize().into_bytes();
        bytes.extend_from_slice(&mac[..MAC]);
        bytes.iter().fold(PREFIX.to_owned(), |text, b| text + &format!("{b:02x}"))
    }

    /// A token of this directory, or an error that does not say why it is none.
    pub fn verify(text: &str, key: &[u8; 32]) -> Result<Self, Error> {
        let bad = || Error::invalid("resume", "not a session token of this directory".to_owned());
        let digits = text
            .strip_prefix(PREFIX)
            .filter(|d| d.len() == (FIELDS + MAC) * 2 && d.bytes().all(|b| b.is_ascii_hexdigit()))
            .ok_or_else(bad)?;
        let byte = |i: usize| u8::from_str_radix(&digits[i..i + 2], 16).ok();
        let bytes: Vec<u8> = (0..digits.len()).step_by(2).map(byte).collect::<Option<_>>().ok_or_else(bad)?;
        let (fields, mac) = bytes.split_at(FIELDS);
        // In constant time.
        keyed(key, SESSION, fields).verify_truncated_left(mac).map_err(|_| bad())?;
        let mut c = Cursor::new(fields);
        let mut next = || c.u64().ok_or_else(bad);
        Ok(Self { space: SpaceId(next()?), session: SessionId(next()?), incarnation: next()? })
    }
}

/// What a space is called outside: another directory's of the same name and number has another tag.
pub fn space_tag(space: SpaceId, key: &[u8; 32]) -> u64 {
    let mac = keyed(key, SPACE, &space.0.to_le_bytes()).finalize().into_bytes();
    let mut first = [0; 8];
    first.copy_from_slice(&mac[..8]);
    u64::from_le_bytes(first).max(1)
}

fn keyed(key: &[u8; 32], purpose: &[u8], fields: &[u8]) -> Hmac<Sha256> {
    // A shorter key is one of a whole block, filled with zeros.
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let mut mac = Hmac::<Sha256>::new(&block.into());
    mac.update(purpose);
    mac.update(fields);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_the_directorys_own() {
        let tags = [(3, 7), (4, 7), (3, 8)].map(|(space, key)| space_tag(SpaceId(space), &[key; 32]));
        assert_eq!(space_tag(SpaceId(3), &[7; 32]), tags[0]);
        assert!(tags[0] != tags[1] && tags[0] != tags[2] && tags[1] != tags[2]);
    }

    /// S4: only the directory's own tokens are taken; a flipped digit, another key or other text is none.
    #[test]
    fn tokens_cannot_be_made_up() {
        let key = [7; 32];
        let token = Token { space: SpaceId(3), session: SessionId(u64::MAX - 4), incarnation: 9 };
        let text = token.sign(&key);
        assert_eq!(Token::verify(&text, &key).unwrap(), token);
        assert!(Token::verify(&text, &[8; 32]).is_err());
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            assert!(Token::verify(&String::from_utf8(bytes).unwrap(), &key).is_err(), "digit {at}");
            assert!(Token::verify(&text[..at], &key).is_err());
        }
        for text in ["", "es1_", "es1_zz", "ä", &format!("{text}00"), &"es1_é".repeat(40)] {
            assert!(Token::verify(text, &key).is_err(), "{text}");
        }
    }
}
