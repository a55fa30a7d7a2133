//! Metadata as a canonical binary: sorted, typed, one encoding for each value, so that equal metadata has equal bytes (K2) and
//! nothing is parsed as JSON to answer. The form is in `docs/design/log-and-files.md`.

use crate::error::Error;

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Value>),
    Object(Vec<(String, Value)>),
}

impl Value {
    /// Puts the keys of all objects into the order of the binary form.
    pub(super) fn sort_keys(&mut self) {
        match self {
            Self::List(items) => items.iter_mut().for_each(Self::sort_keys),
            Self::Object(fields) => {
                fields.sort_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
                fields.iter_mut().for_each(|(_, v)| v.sort_keys());
            }
            _ => {}
        }
    }
}

fn bad(message: &str) -> Error {
    Error::invalid("metadata", format!("metadata: {message}"))
}

/// Encodes an object; keys are sorted here. Depth counts objects and lists.
pub fn encode_metadata(value: &Value, depth_max: usize) -> Result<Vec<u8>, Error> {
    if !matches!(value, Value::Object(_)) {
        return Err(bad("must be an object (a dict)"));
    }
    let mut out = Vec::new();
    encode(value, &mut out, depth_max)?;
    Ok(out)
}

fn len(out: &mut Vec<u8>, n: usize) -> Result<(), Error> {
    out.extend_from_slice(&u32::try_from(n).map_err(|_| bad("too large"))?.to_le_bytes());
    Ok(())
}

fn encode(value: &Value, out: &mut Vec<u8>, depth: usize) -> Result<(), Error> {
    let deeper = || depth.checked_sub(1).ok_or_else(|| bad("nested too deeply"));
    match value {
        Value::Null => out.push(0),
        Value::Bool(false) => out.push(1),
        Value::Bool(true) => out.push(2),
        Value::Int(v) => {
            out.push(3);
            out.extend_from_slice(&v.to_le_bytes());
        }
        Value::Float(v) => {
            if !v.is_finite() {
                return Err(bad("numbers must be finite"));
            }
            out.push(4);
            out.extend_from_slice(&v.to_le_bytes());
        }
        Value::Text(text) => {
            out.push(5);
            len(out, text.len())?;
            out.extend_from_slice(text.as_bytes());
        }
        Value::List(items) => {
            let depth = deeper()?;
            out.push(6);
            len(out, items.len())?;
            for item in items {
                encode(item, out, depth)?;
            }
        }
        Value::Object(fields) => {
            let depth = deeper()?;
            let mut sorted: Vec<_> = fields.iter().collect();
            sorted.sort_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
            if sorted.windows(2).any(|w| w[0].0 == w[1].0) {
                return Err(bad("a key stands twice"));
            }
            out.push(7);
            len(out, sorted.len())?;
            for (key, value) in sorted {
                len(out, key.len())?;
                out.extend_from_slice(key.as_bytes());
                encode(value, out, depth)?;
            }
        }
    }
    Ok(())
}

struct Decoder<'a> {
    bytes: &'a [u8],
}

impl<'a> Decoder<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.bytes.split_at_checked(n)?;
        self.bytes = tail;
        Some(head)
    }

    fn len(&mut self) -> Option<usize> {
        let n = u32::from_le_bytes(self.take(4)?.try_into().ok()?) as usize;
        (n <= self.bytes.len()).then_some(n)
    }

    fn text(&mut self) -> Option<String> {
        let n = self.len()?;
        std::str::from_utf8(self.take(n)?).ok().map(str::to_owned)
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        Some(match self.take(1)?[0] {
            0 => Value::Null,
            1 => Value::Bool(false),
            2 => Value::Bool(true),
            3 => Value::Int(i64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            4 => {
                Value::Float(Some(f64::from_le_bytes(self.take(8)?.try_into().ok()?)).filter(|v: &f64| v.is_finite())?)
            }
            5 => Value::Text(self.text()?),
            6 => {
                let depth = depth.checked_sub(1)?;
                let n = self.len()?;
                Value::List((0..n).map(|_| self.value(depth)).collect::<Option<_>>()?)
            }
            7 => {
                let depth = depth.checked_sub(1)?;
                let n = self.len()?;
                let mut fields: Vec<(String, Value)> = Vec::with_capacity(n.min(64));
                for _ in 0..n {
                    let key = self.text()?;
                    if fields.last().is_some_and(|(last, _)| last.as_bytes() >= key.as_bytes()) {
                        return None;
                    }
                    fields.push((key, self.value(depth)?));
                }
                Value::Object(fields)
            }
            _ => return None,
        })
    }
}

/// Decodes canonical metadata; any other bytes are an error. Empty bytes are no metadata.
pub fn decode_metadata(bytes: &[u8], depth_max: usize) -> Result<Option<Value>, Error> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let mut decoder = Decoder { bytes };
    match decoder.value(depth_max) {
        Some(value @ Value::Object(_)) if decoder.bytes.is_empty() => Ok(Some(value)),
        _ => Err(bad("not in its canonical form")),
    }
}

/// Refuses bytes that are not canonical metadata.
pub fn check_metadata(bytes: &[u8], depth_max: usize) -> Result<(), Error> {
    decode_metadata(bytes, depth_max).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            (-1e300..1e300f64).prop_map(Value::Float),
            ".{0,8}".prop_map(Value::Text),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::List),
                prop::collection::btree_map(".{0,4}", inner, 0..4).prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// K2: one canonical form, whatever the order of the keys.
        #[test]
        fn metadata_survives_and_order_does_not_matter(fields in prop::collection::btree_map(".{0,4}", values(), 0..5)) {
            let object = Value::Object(fields.clone().into_iter().collect());
            let reversed = Value::Object(fields.into_iter().rev().collect());
            let bytes = encode_metadata(&object, 16).unwrap();
            prop_assert_eq!(&bytes, &encode_metadata(&reversed, 16).unwrap());
            prop_assert_eq!(decode_metadata(&bytes, 16).unwrap(), Some(object));
        }

        #[test]
        fn any_bytes_are_a_typed_answer(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Some(value)) = decode_metadata(&bytes, 16) {
                prop_assert_eq!(encode_metadata(&value, 16).unwrap(), bytes);
            }
        }
    }

    #[test]
    fn limits_are_errors() {
        let deep = |n: usize| (0..n).fold(Value::Int(1), |v, _| Value::Object(vec![("a".into(), v)]));
        assert!(encode_metadata(&deep(16), 16).is_ok());
        assert!(encode_metadata(&deep(17), 16).is_err());
        assert!(encode_metadata(&Value::Int(1), 16).is_err());
        assert!(encode_metadata(&Value::Object(vec![("a".into(), Value::Float(f64::NAN))]), 16).is_err());
    }
}
