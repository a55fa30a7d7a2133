//! Which memories does a condition match? (K2)
//!
//! A condition is an object: a field and a value, or a field and operators; `$and`, `$or`, `$not`. It is read once, checked whole, and
//! then asked row by row. Numbers compare as numbers, booleans are not numbers, missing is not null, a list matches if an element does.
//! `$ne`, `$nin` and `$not` are negations: they match where the field is missing too. The scan is the oracle of what an index will answer.

use std::cmp::Ordering;

use super::Facts;
use super::metadata::Value;
use super::raw::Raw;
use crate::error::Error;
use crate::types::Generation;

/// Conditions in one filter, and how deeply they may be nested.
const TERMS_MAX: usize = 1_000;
const DEPTH_MAX: usize = 16;
type Ids = (Generation, Generation);
const ALL_IDS: Ids = (Generation(0), Generation(u64::MAX));
const OPERATORS: &str = "$eq, $ne, $gt, $gte, $lt, $lte, $in, $nin, $exists";

/// A checked condition.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    All(Vec<Filter>),
    Any(Vec<Filter>),
    Not(Box<Filter>),
    Test(Field, Test),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Field {
    MemoryId,
    Key,
    /// Times are microseconds since 1970.
    ObservedAt,
    CommittedAt,
    Confidence,
    /// A path into the metadata.
    Metadata(Vec<String>),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Test {
    In(OneOf),
    /// Less, equal, greater: which of them match.
    Order(Value, [bool; 3]),
    Exists,
}

/// Values of which one must be equal: numbers and texts in order, the rest one by one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OneOf {
    numbers: Vec<Value>,
    texts: Vec<Value>,
    others: Vec<Value>,
}

impl OneOf {
    fn new(values: Vec<Value>) -> Self {
        let mut all = Self::default();
        for mut value in values {
            value.sort_keys();
            match value {
                Value::Int(_) | Value::Float(_) => all.numbers.push(value),
                Value::Text(_) => all.texts.push(value),
                _ => all.others.push(value),
            }
        }
        for ordered in [&mut all.numbers, &mut all.texts] {
            ordered.sort_by(|a, b| Raw::of(a).and_then(|a| a.compare(b)).unwrap_or(Ordering::Equal));
        }
        all
    }

    fn holds(&self, value: Raw<'_>) -> bool {
        let among = |ordered: &[Value]| {
            ordered.binary_search_by(|v| value.compare(v).map_or(Ordering::Less, Ordering::reverse)).is_ok()
        };
        match value {
            Raw::Int(_) | Raw::Float(_) => among(&self.numbers),
            Raw::Text(_) => among(&self.texts),
            _ => self.others.iter().any(|v| value.equals(v)),
        }
    }
}

fn bad(message: String) -> Error {
    Error::invalid("where", format!("where: {message}"))
}

impl Filter {
    /// Reads a condition.
    pub fn parse(condition: &Value) -> Result<Self, Error> {
        let mut left = TERMS_MAX;
        Self::object(condition, DEPTH_MAX, &mut left)
    }

    fn object(condition: &Value, depth: usize, left: &mut usize) -> Result<Self, Error> {
        let Value::Object(parts) = condition else {
            return Err(bad("a condition must be an object (a dict)".to_owned()));
        };
        // An empty condition counts too.
        *left = left.checked_sub(1).ok_or_else(|| bad(format!("more than {TERMS_MAX} conditions")))?;
        let depth = depth.checked_sub(1).ok_or_else(|| bad(format!("nested more than {DEPTH_MAX} deep")))?;
        let mut all = Vec::with_capacity(parts.len());
        for (name, value) in parts {
            *left = left.checked_sub(1).ok_or_else(|| bad(format!("more than {TERMS_MAX} conditions")))?;
            all.push(match name.as_str() {
                "$and" => Self::All(Self::list(name, value, depth, left)?),
                "$or" => Self::Any(Self::list(name, value, depth, left)?),
                "$not" => Self::Not(Box::new(Self::object(value, depth, left)?)),
                other if other.starts_with('$') => {
                    return Err(bad(format!("{other} is not one of $and, $or, $not; or it belongs behind a field")));
                }
                _ => Self::field(name, value, left)?,
            });
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Self::All(all) })
    }

    fn list(name: &str, value: &Value, depth: usize, left: &mut usize) -> Result<Vec<Self>, Error> {
        match value {
            Value::List(parts) if !parts.is_empty() => parts.iter().map(|p| Self::object(p, depth, left)).collect(),
            _ => Err(bad(format!("{name} needs a list of conditions"))),
        }
    }

    fn field(name: &str, value: &Value, left: &mut usize) -> Result<Self, Error> {
        let field = Field::named(name)?;
        let Value::Object(operators) = value else {
            return Self::operator(&field, name, "$eq", value);
        };
        if operators.is_empty() {
            return Err(bad(format!("{name:?} has an empty condition; to find an empty object use {{\"$eq\": {{}}}}")));
        }
        if operators.iter().all(|(o, _)| !o.starts_with('$')) {
            return Self::operator(&field, name, "$eq", value);
        }
        *left = left.checked_sub(operators.len()).ok_or_else(|| bad(format!("more than {TERMS_MAX} conditions")))?;
        let all: Result<Vec<_>, _> = operators.iter().map(|(o, v)| Self::operator(&field, name, o, v)).collect();
        all.map(|mut all| if all.len() == 1 { all.remove(0) } else { Self::All(all) })
    }

    fn operator(field: &Field, name: &str, operator: &str, value: &Value) -> Result<Self, Error> {
        let one = || field.operand(name, operator, value);
        let many = || match value {
            Value::List(values) => values.iter().map(|v| field.operand(name, operator, v)).collect(),
            _ => Err(bad(format!("{operator} on {name:?} needs a list of values"))),
        };
        let order = |[less, equal, greater]: [bool; 3]| match one()? {
            operand @ (Value::Int(_) | Value::Float(_) | Value::Text(_)) => {
                Ok(Test::Order(operand, [less, equal, greater]))
            }
            _ => Err(bad(format!("{operator} on {name:?} needs a number or a text"))),
        };
        let is = |test: Test| Self::Test(field.clone(), test);
        let negated = |test: Test| Self::Not(Box::new(Self::Test(field.clone(), test)));
        Ok(match operator {
            "$eq" => is(Test::In(OneOf::new(vec![one()?]))),
            "$ne" => negated(Test::In(OneOf::new(vec![one()?]))),
            "$in" => is(Test::In(OneOf::new(many()?))),
            "$nin" => negated(Test::In(OneOf::new(many()?))),
            "$lt" => is(order([true, false, false])?),
            "$lte" => is(order([true, true, false])?),
            "$gt" => is(order([false, false, true])?),
            "$gte" => is(order([false, true, true])?),
            "$exists" => match value {
                Value::Bool(true) => is(Test::Exists),
                Value::Bool(false) => negated(Test::Exists),
                _ => return Err(bad(format!("$exists on {name:?} needs true or false"))),
            },
            other => return Err(bad(format!("{other} on {name:?} is not one of {OPERATORS}"))),
        })
    }

    /// Whether the memory is one of those meant.
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        match self {
            Self::All(parts) => parts.iter().all(|p| p.matches(facts)),
            Self::Any(parts) => parts.iter().any(|p| p.matches(facts)),
            Self::Not(part) => !part.matches(facts),
            Self::Test(field, test) => field.any_value(facts, &|value| test.holds(value)),
        }
    }

    /// The first and the last id that may match, as far as conditions on ids tell: others need not be looked at.
    pub fn ids(&self) -> (Generation, Generation) {
        match self {
            Self::All(parts) => parts.iter().fold(ALL_IDS, |(first, last), part| {
                let (from, to) = part.ids();
                (first.max(from), last.min(to))
            }),
            Self::Any(parts) => {
                let hull = |(first, last): Ids, (from, to): Ids| (first.min(from), last.max(to));
                parts.iter().map(Self::ids).reduce(hull).unwrap_or(ALL_IDS)
            }
            Self::Test(Field::MemoryId, test) => test.ids(),
            Self::Not(_) | Self::Test(..) => ALL_IDS,
        }
    }
}

impl Field {
    fn named(name: &str) -> Result<Self, Error> {
        Ok(match name {
            "memory_id" => Self::MemoryId,
            "observed_at" => Self::ObservedAt,
            "committed_at" => Self::CommittedAt,
            "confidence" => Self::Confidence,
            "key" => Self::Key,
            _ => Self::Metadata(name.split('.').map(str::to_owned).collect()),
        })
    }

    /// The value a row's is compared with. Fields of the memory itself are numbers, and its confidence has 32 bits.
    fn operand(&self, name: &str, operator: &str, value: &Value) -> Result<Value, Error> {
        match (self, value) {
            (_, Value::Float(v)) if !v.is_finite() => Err(bad(format!("{operator} on {name:?}: {v} is not finite"))),
            (Self::Metadata(_), _) => Ok(value.clone()),
            (Self::Key, Value::Text(_)) => Ok(value.clone()),
            (Self::Key, _) => Err(bad(format!("{operator} on {name:?} needs a text"))),
            (Self::Confidence, Value::Float(v)) => Ok(Value::Float(f64::from(*v as f32))),
            (_, Value::Int(_) | Value::Float(_)) => Ok(value.clone()),
            _ => Err(bad(format!("{operator} on {name:?} needs numbers"))),
        }
    }

    fn any_value(&self, facts: &Facts<'_>, test: &dyn Fn(Raw<'_>) -> bool) -> bool {
        match self {
            Self::MemoryId => i64::try_from(facts.generation.0).is_ok_and(|id| test(Raw::Int(id))),
            Self::Key => facts.key.is_some_and(|key| test(Raw::Text(key.as_bytes()))),
            Self::ObservedAt => facts.observed_at.is_some_and(|at| test(Raw::Int(at))),
            Self::CommittedAt => test(Raw::Int(facts.committed_at)),
            Self::Confidence => test(Raw::Float(f64::from(facts.confidence))),
            Self::Metadata(path) => Raw::at(facts.metadata).is_some_and(|root| any_at(root, path, test)),
        }
    }
}

/// Whether a value at the end of `path` passes; lists on the way stand for each of their elements.
fn any_at(value: Raw<'_>, path: &[String], test: &dyn Fn(Raw<'_>) -> bool) -> bool {
    match (path.split_first(), value) {
        (None, Raw::List(items)) => test(value) || items.items().any(test),
        (None, _) => test(value),
        (Some((name, rest)), Raw::Object(fields)) => fields.field(name).is_some_and(|v| any_at(v, rest, test)),
        (Some(_), Raw::List(items)) => {
            items.items().any(|item| matches!(item, Raw::Object(_)) && any_at(item, path, test))
        }
        _ => false,
    }
}

impl Test {
    /// As for `Filter`, of a condition on ids. Rounded to the outside.
    fn ids(&self) -> Ids {
        let down = |value: &Value| match value {
            Value::Int(v) => u64::try_from(*v).unwrap_or(0),
            Value::Float(v) => v.floor() as u64,
            _ => 0,
        };
        let up = |value: &Value| match value {
            Value::Int(v) => u64::try_from(*v).unwrap_or(0),
            Value::Float(v) => v.ceil() as u64,
            _ => u64::MAX,
        };
        let (first, last) = match self {
            Self::Exists => return ALL_IDS,
            Self::In(values) => match (values.numbers.first(), values.numbers.last()) {
                (Some(first), Some(last)) => (down(first), up(last)),
                _ => (u64::MAX, 0),
            },
            Self::Order(value, [less, _, greater]) => {
                (if *less { 0 } else { down(value) }, if *greater { u64::MAX } else { up(value) })
            }
        };
        (Generation(first), Generation(last))
    }

    fn holds(&self, value: Raw<'_>) -> bool {
        match self {
            Self::Exists => true,
            Self::In(values) => values.holds(value),
            Self::Order(operand, which) => value.compare(operand).is_some_and(|order| match order {
                Ordering::Less => which[0],
                Ordering::Equal => which[1],
                Ordering::Greater => which[2],
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::encode_metadata;
    use proptest::prelude::*;

    fn object(fields: &[(&str, Value)]) -> Value {
        Value::Object(fields.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect())
    }

    fn facts(metadata: &[u8]) -> Facts<'_> {
        let (generation, key) = (Generation(7), Some("a/7"));
        Facts { generation, committed_at: 50, observed_at: None, confidence: 0.9, metadata, key }
    }

    fn matches(condition: &Value, metadata: &Value) -> bool {
        let bytes = encode_metadata(metadata, 16).unwrap();
        let facts = facts(&bytes);
        Filter::parse(condition).unwrap().matches(&facts)
    }

    fn is(operator: &str, operand: Value, value: Value) -> bool {
        matches(&object(&[("f", object(&[(operator, operand)]))]), &object(&[("e", Value::Null), ("f", value)]))
    }

    /// K2: numbers are numbers, booleans are not, missing is not null, a list matches if an element does.
    #[test]
    fn values_compare_as_promised() {
        use Value::{Bool, Float, Int, List, Null, Text};
        let text = |t: &str| Text(t.to_owned());
        assert!(is("$eq", Int(1), Float(1.0)) && is("$eq", Float(1.0), Int(1)) && !is("$eq", Int(1), Bool(true)));
        assert!(!is("$eq", Float(9_007_199_254_740_992.0), Int(9_007_199_254_740_993)), "not rounded");
        assert!(is("$gt", Float(0.5), Int(1)) && !is("$gt", Int(0), Bool(true)) && !is("$gt", Int(0), text("1")));
        assert!(is("$lt", Float(1e300), Int(i64::MAX)) && is("$gt", Float(-1e300), Int(i64::MIN)));
        assert!(is("$gte", text("b"), text("b")) && is("$lt", text("b"), text("a")));
        assert!(
            is("$eq", text("x"), List(vec![text("y"), text("x")])) && is("$gt", Int(3), List(vec![Int(1), Int(4)]))
        );
        assert!(is("$eq", List(vec![Int(1)]), List(vec![Float(1.0)])) && !is("$eq", List(vec![Int(1)]), Int(1)));
        let many = List([Int(9), text("b"), Float(2.5), Null, text("a"), Int(-3)].to_vec());
        for (value, found) in [(Float(9.0), true), (Float(2.5), true), (text("a"), true), (Null, true), (Int(2), false)]
        {
            assert_eq!((is("$in", many.clone(), value.clone()), is("$nin", many.clone(), value)), (found, !found));
        }
        let swapped = object(&[("b", Int(2)), ("a", Int(1))]);
        assert!(is("$eq", swapped, object(&[("a", Int(1)), ("b", Int(2))])), "keys have no order");
        assert!(is("$in", List(vec![Int(1), text("x")]), text("x")) && is("$nin", List(vec![Int(1)]), Int(2)));
        assert!(is("$exists", Bool(true), Null) && is("$eq", Null, Null) && !is("$exists", Bool(false), Null));
        let missing = |test: Value| matches(&object(&[("g", test)]), &object(&[("f", Int(1))]));
        assert!(!missing(Null) && missing(object(&[("$ne", Int(1))])) && missing(object(&[("$exists", Bool(false))])));
        assert!(missing(object(&[("$nin", List(vec![Int(1)]))])) && !missing(object(&[("$lt", Int(9))])));
    }

    #[test]
    fn paths_and_fields_of_the_memory() {
        use Value::{Bool, Float, Int, List, Text};
        let text = |t: &str| Text(t.to_owned());
        let item = |n: &str| object(&[("name", text(n))]);
        let metadata = object(&[("a", object(&[("b", Int(3))])), ("items", List(vec![item("x"), item("y")]))]);
        let holds = |field: &str, test: Value| matches(&object(&[(field, test)]), &metadata);
        assert!(
            holds("a.b", Int(3)) && !holds("a.c", Int(3)) && !holds("a.b.c", Int(3)) && holds("items.name", text("y"))
        );
        assert!(holds("a", object(&[("b", Float(3.0))])), "an object without operators is a value");
        assert!(
            holds("memory_id", Int(7))
                && holds("confidence", Float(0.9))
                && holds("confidence", object(&[("$lt", Int(1))]))
        );
        assert!(
            holds("committed_at", object(&[("$gte", Int(50))]))
                && holds("observed_at", object(&[("$exists", Bool(false))]))
        );
        assert!(
            holds("key", text("a/7"))
                && holds("key", object(&[("$gte", text("a/")), ("$lt", text("a0"))]))
                && !holds("key", object(&[("$exists", Bool(false))]))
        );
        let both = List(vec![object(&[("a.b", Int(3))]), object(&[("memory_id", Int(8))])]);
        assert!(holds("$or", both.clone()) && !holds("$and", both.clone()) && holds("$not", object(&[("$and", both)])));
        assert!(matches(&object(&[]), &metadata), "no condition: all");
    }

    /// K2: unknown operators and wrong types are errors that say what is meant.
    #[test]
    fn mistakes_are_named() {
        use Value::{Bool, Float, Int, List, Null, Text};
        let text = |t: &str| Text(t.to_owned());
        let field = |test: Value| object(&[("f", test)]);
        let cases = [
            (Int(1), "must be an object"),
            (field(object(&[("$like", Int(1))])), "$like on \"f\" is not one of $eq"),
            (field(object(&[("$gt", Bool(true))])), "needs a number or a text"),
            (field(object(&[("$in", Int(1))])), "needs a list"),
            (field(object(&[("$exists", Int(1))])), "true or false"),
            (field(object(&[("$eq", Int(1)), ("x", Int(1))])), "x on \"f\" is not one of"),
            (field(object(&[])), "empty condition"),
            (field(Float(f64::NAN)), "not finite"),
            (object(&[("$and", List(vec![]))]), "list of conditions"),
            (object(&[("$gt", Int(1))]), "behind a field"),
            (object(&[("$not", Null)]), "must be an object"),
            (object(&[("memory_id", text("1"))]), "needs numbers"),
            (object(&[("key", Int(1))]), "needs a text"),
        ];
        for (condition, message) in cases {
            let error = Filter::parse(&condition).unwrap_err();
            assert!(error.to_string().contains(message), "{condition:?}: {error}");
        }
        let deep = (0..40).fold(object(&[("f", Int(1))]), |inner, _| object(&[("$not", inner)]));
        assert!(Filter::parse(&deep).unwrap_err().to_string().contains("deep"));
        let wide = List((0..2_000).map(|i| field(Int(i))).collect());
        assert!(Filter::parse(&object(&[("$or", wide)])).unwrap_err().to_string().contains("conditions"));
        let empty = List(vec![object(&[]); 2_000]);
        assert!(Filter::parse(&object(&[("$and", empty)])).unwrap_err().to_string().contains("conditions"));
    }

    fn on_ids() -> impl Strategy<Value = Value> {
        let number = prop_oneof![(-3i64..12).prop_map(Value::Int), (-3.0f64..12.0).prop_map(Value::Float)];
        let many = prop::collection::vec(number.clone(), 0..3).prop_map(Value::List);
        let one = (prop::sample::select(vec!["$eq", "$ne", "$lt", "$lte", "$gt", "$gte"]), number);
        let listed = (prop::sample::select(vec!["$in", "$nin"]), many);
        let test = prop_oneof![one, listed].prop_map(|(operator, operand)| object(&[(operator, operand)]));
        let field = prop::sample::select(vec!["memory_id", "memory_id", "confidence"]);
        let leaf = (field, test).prop_map(|(field, test)| object(&[(field, test)]));
        leaf.prop_recursive(3, 12, 3, |inner| {
            let joined = (prop::sample::select(vec!["$and", "$or"]), prop::collection::vec(inner.clone(), 1..3));
            prop_oneof![
                joined.prop_map(|(how, parts)| object(&[(how, Value::List(parts))])),
                inner.prop_map(|part| object(&[("$not", part)])),
            ]
        })
    }

    #[test]
    fn ids_are_read_off() {
        use Value::{Float, Int, List};
        let ids = |operator: &str, operand: Value| {
            let (first, last) = Filter::parse(&object(&[("memory_id", object(&[(operator, operand)]))])).unwrap().ids();
            (first.0, last.0)
        };
        assert_eq!((ids("$eq", Int(7)), ids("$in", List(vec![Int(9), Float(2.5)]))), ((7, 7), (2, 9)));
        assert_eq!((ids("$gte", Int(7)), ids("$lt", Float(2.5))), ((7, u64::MAX), (0, 3)));
        assert_eq!((ids("$ne", Int(7)), ids("$lt", Int(-1))), ((0, u64::MAX), (0, 0)));
    }

    proptest! {
        /// No id outside of what is told matches.
        #[test]
        fn ids_leave_nothing_out(condition in on_ids()) {
            let filter = Filter::parse(&condition).unwrap();
            let (first, last) = filter.ids();
            for id in 1..14 {
                let facts = Facts { generation: Generation(id), ..facts(&[]) };
                prop_assert!(!filter.matches(&facts) || (first.0 <= id && id <= last.0), "{id}");
            }
        }

        /// Any bytes at all are a yes or a no.
        #[test]
        fn broken_metadata_is_no_panic(bytes in prop::collection::vec(0u8..9, 0..80)) {
            let facts = facts(&bytes);
            let filter = Filter::parse(&object(&[("\u{1}.\u{2}", Value::Int(1)), ("a", object(&[("$exists", Value::Bool(false))]))]));
            filter.unwrap().matches(&facts);
        }
    }
}
