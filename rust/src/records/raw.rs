//! Values of canonical metadata, read where they lie (K2): a filter looks at a field without decoding the rest.
//!
//! The bytes were checked when they came in and are under a checksum since; what is malformed all the same reads as absent.

use std::cmp::Ordering;

use super::metadata::Value;

/// One value; lists and objects are walked on demand.
#[derive(Clone, Copy, Debug)]
pub(super) enum Raw<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a [u8]),
    List(Walk<'a>),
    Object(Walk<'a>),
}

/// What is left of a list or an object: so many entries, at the beginning of these bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk<'a> {
    count: usize,
    bytes: &'a [u8],
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (head, tail) = bytes.split_at_checked(n)?;
    *bytes = tail;
    Some(head)
}

fn length(bytes: &mut &[u8]) -> Option<usize> {
    Some(u32::from_le_bytes(take(bytes, 4)?.try_into().ok()?) as usize)
}

fn text<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let n = length(bytes)?;
    take(bytes, n)
}

impl<'a> Raw<'a> {
    /// The value at the beginning of `bytes`.
    pub(super) fn at(mut bytes: &'a [u8]) -> Option<Self> {
        Some(match take(&mut bytes, 1)?[0] {
            0 => Self::Null,
            1 => Self::Bool(false),
            2 => Self::Bool(true),
            3 => Self::Int(i64::from_le_bytes(take(&mut bytes, 8)?.try_into().ok()?)),
            4 => Self::Float(f64::from_le_bytes(take(&mut bytes, 8)?.try_into().ok()?)),
            5 => Self::Text(text(&mut bytes)?),
            6 => Self::List(Walk { count: length(&mut bytes)?, bytes }),
            7 => Self::Object(Walk { count: length(&mut bytes)?, bytes }),
            _ => return None,
        })
    }

    /// A number or a text.
    pub(super) fn of(value: &'a Value) -> Option<Self> {
        match value {
            Value::Int(v) => Some(Self::Int(*v)),
            Value::Float(v) => Some(Self::Float(*v)),
            Value::Text(v) => Some(Self::Text(v.as_bytes())),
            _ => None,
        }
    }

    /// Equal as JSON values are: 1 is 1.0, and true is not 1.
    pub(super) fn equals(self, value: &Value) -> bool {
        match (self, value) {
            (Self::Null, Value::Null) => true,
            (Self::Bool(a), Value::Bool(b)) => a == *b,
            (Self::List(items), Value::List(values)) => {
                items.count == values.len() && items.items().zip(values).all(|(item, value)| item.equals(value))
            }
            (Self::Object(fields), Value::Object(values)) => {
                // Both have their keys in order.
                fields.count == values.len()
                    && fields.fields().zip(values).all(|((name, item), (n, v))| name == n.as_bytes() && item.equals(v))
            }
            _ => self.compare(value) == Some(Ordering::Equal),
        }
    }

    /// Two numbers, or two texts by their bytes; nothing else has an order.
    pub(super) fn compare(self, value: &Value) -> Option<Ordering> {
        match (self, value) {
            (Self::Int(a), Value::Int(b)) => Some(a.cmp(b)),
            (Self::Float(a), Value::Float(b)) => a.partial_cmp(b),
            (Self::Int(a), Value::Float(b)) => Some(compare_mixed(a, *b)),
            (Self::Float(a), Value::Int(b)) => Some(compare_mixed(*b, a).reverse()),
            (Self::Text(a), Value::Text(b)) => Some(a.cmp(b.as_bytes())),
            _ => None,
        }
    }
}

/// Exact: a float beyond 2^53 is not rounded to meet an integer.
fn compare_mixed(int: i64, float: f64) -> Ordering {
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    if float >= LIMIT {
        return Ordering::Less;
    }
    if float < -LIMIT {
        return Ordering::Greater;
    }
    int.cmp(&(float.trunc() as i64)).then_with(|| 0.0f64.partial_cmp(&float.fract()).unwrap_or(Ordering::Equal))
}

/// What follows the value at the beginning of `bytes`.
fn skip(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes;
    match take(&mut rest, 1)?[0] {
        0..=2 => {}
        3 | 4 => drop(take(&mut rest, 8)?),
        5 => drop(text(&mut rest)?),
        6 => {
            for _ in 0..length(&mut rest)? {
                rest = skip(rest)?;
            }
        }
        7 => {
            for _ in 0..length(&mut rest)? {
                text(&mut rest)?;
                rest = skip(rest)?;
            }
        }
        _ => return None,
    }
    Some(rest)
}

impl<'a> Walk<'a> {
    pub(super) fn items(self) -> impl Iterator<Item = Raw<'a>> {
        let mut left = Some(self.bytes);
        (0..self.count).map_while(move |_| {
            let here = left?;
            left = skip(here);
            Raw::at(here)
        })
    }

    fn fields(self) -> impl Iterator<Item = (&'a [u8], Raw<'a>)> {
        let mut left = Some(self.bytes);
        (0..self.count).map_while(move |_| {
            let mut here = left?;
            let name = text(&mut here)?;
            left = skip(here);
            Some((name, Raw::at(here)?))
        })
    }

    /// The value of a key; keys are sorted, so a greater one ends the search.
    pub(super) fn field(self, name: &str) -> Option<Raw<'a>> {
        let mut rest = self.bytes;
        for _ in 0..self.count {
            match text(&mut rest)?.cmp(name.as_bytes()) {
                Ordering::Less => rest = skip(rest)?,
                Ordering::Equal => return Raw::at(rest),
                Ordering::Greater => return None,
            }
        }
        None
    }
}
