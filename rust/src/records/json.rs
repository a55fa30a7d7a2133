//! Metadata as the JSON of the wire.

use super::metadata::{Value, decode_metadata};
use crate::error::Error;

/// Deeper than any metadata that was taken.
const DEPTH_STOP: usize = 64;

/// Canonical metadata as compact JSON; none is an empty text.
pub fn metadata_json(bytes: &[u8]) -> Result<String, Error> {
    let mut out = String::new();
    if let Some(value) = decode_metadata(bytes, DEPTH_STOP)? {
        put(&value, &mut out);
    }
    // An empty object is as good as none.
    Ok(if out == "{}" { String::new() } else { out })
}

fn put(value: &Value, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(v) => out.push_str(if *v { "true" } else { "false" }),
        Value::Int(v) => out.push_str(&v.to_string()),
        // With a point or an exponent, so that it is read as a float again; finite by `decode_metadata`.
        Value::Float(v) => out.push_str(&format!("{v:?}")),
        Value::Text(v) => put_text(v, out),
        Value::List(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                put(item, out);
            }
            out.push(']');
        }
        Value::Object(fields) => {
            out.push('{');
            for (i, (key, item)) in fields.iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                put_text(key, out);
                out.push(':');
                put(item, out);
            }
            out.push('}');
        }
    }
}

fn put_text(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::super::encode_metadata;
    use super::*;

    #[test]
    fn every_kind_of_value_has_its_json() {
        let fields = [
            ("a", Value::Null),
            ("b", Value::List(vec![Value::Bool(true), Value::Int(i64::MIN), Value::Float(-0.0), Value::Float(1e300)])),
            ("c\n\"\\", Value::Text("ä\u{1}\t\u{7f}😀".to_owned())),
            ("d", Value::Object(vec![])),
        ];
        let object = Value::Object(fields.map(|(key, value)| (key.to_owned(), value)).into());
        let json = metadata_json(&encode_metadata(&object, 16).unwrap()).unwrap();
        let wanted = concat!(
            r#"{"a":null,"b":[true,-9223372036854775808,-0.0,1e300],"#,
            r#""c\u000a\"\\":"ä\u0001\u0009"#,
            "\u{7f}",
            r#"😀","d":{}}"#
        );
        assert_eq!(json, wanted);
        let empty = encode_metadata(&Value::Object(vec![]), 16).unwrap();
        assert_eq!((metadata_json(&empty).unwrap(), metadata_json(&[]).unwrap()), (String::new(), String::new()));
        assert!(metadata_json(&[9]).is_err());
    }
}
