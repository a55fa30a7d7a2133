//! Python values to the engine's and back.

use engram_core::records::{Filter, Value, decode_metadata, encode_metadata};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

use crate::errors::{OrRaise, invalid};

/// Deeper than any allowed metadata: where conversion itself stops.
const DEPTH_STOP: usize = 64;

fn text(value: &Bound<'_, PyString>, field: &'static str, index: Option<usize>) -> PyResult<String> {
    value
        .to_str()
        .map(str::to_owned)
        .map_err(|_| invalid(field, index, format!("{field} holds a lone surrogate: it has no UTF-8 form")))
}

/// Where a value stands: the argument, and the item's index in it.
type Place = (&'static str, Option<usize>);

fn value(any: &Bound<'_, PyAny>, depth: usize, place: Place) -> PyResult<Value> {
    let (field, index) = place;
    let bad = |message: String| invalid(field, index, format!("{field}: {message}"));
    if depth == 0 {
        return Err(bad("nested too deeply".to_owned()));
    }
    if any.is_none() {
        return Ok(Value::Null);
    }
    if let Ok(flag) = any.cast::<PyBool>() {
        return Ok(Value::Bool(flag.is_true()));
    }
    if let Ok(number) = any.cast::<PyInt>() {
        let number = number.extract().map_err(|_| bad("integers must fit 64 bits".to_owned()))?;
        return Ok(Value::Int(number));
    }
    if let Ok(number) = any.cast::<PyFloat>() {
        return Ok(Value::Float(number.value()));
    }
    if let Ok(string) = any.cast::<PyString>() {
        return text(string, field, index).map(Value::Text);
    }
    if let Ok(dict) = any.cast::<PyDict>() {
        let mut fields = Vec::with_capacity(dict.len());
        for (key, item) in dict {
            let key = key.cast::<PyString>().map_err(|_| bad("keys must be strings".to_owned()))?;
            fields.push((text(key, field, index)?, value(&item, depth - 1, place)?));
        }
        return Ok(Value::Object(fields));
    }
    if any.is_instance_of::<PyList>() || any.is_instance_of::<PyTuple>() {
        let items = any.try_iter()?.map(|item| value(&item?, depth - 1, place));
        return Ok(Value::List(items.collect::<PyResult<_>>()?));
    }
    let kind = any.get_type().name().map_or_else(|_| "value".to_owned(), |n| n.to_string());
    Err(bad(format!("a {kind} has no JSON form")))
}

/// Dicts (or None) to canonical bytes.
pub(crate) fn metadata_in(list: &Bound<'_, PyList>, depth_max: usize) -> PyResult<Vec<Vec<u8>>> {
    let mut out = Vec::with_capacity(list.len());
    for (i, item) in list.iter().enumerate() {
        if item.is_none() {
            out.push(Vec::new());
            continue;
        }
        let value = value(&item, DEPTH_STOP, ("metadata", Some(i)))?;
        out.push(encode_metadata(&value, depth_max).map_err(|e| invalid("metadata", Some(i), e.to_string()))?);
    }
    Ok(out)
}

/// A condition as a dict.
pub(crate) fn filter_in(condition: Option<&Bound<'_, PyDict>>) -> PyResult<Option<Filter>> {
    let Some(condition) = condition else { return Ok(None) };
    Filter::parse(&value(condition.as_any(), DEPTH_STOP, ("where", None))?).or_raise().map(Some)
}

fn value_out<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::Null => py.None().into_bound(py),
        Value::Bool(v) => v.into_pyobject(py)?.to_owned().into_any(),
        Value::Int(v) => v.into_pyobject(py)?.into_any(),
        Value::Float(v) => v.into_pyobject(py)?.into_any(),
        Value::Text(v) => v.into_pyobject(py)?.into_any(),
        Value::List(items) => {
            let list = PyList::empty(py);
            for item in items {
                list.append(value_out(py, item)?)?;
            }
            list.into_any()
        }
        Value::Object(fields) => {
            let dict = PyDict::new(py);
            for (key, item) in fields {
                dict.set_item(key, value_out(py, item)?)?;
            }
            dict.into_any()
        }
    })
}

/// Canonical bytes to a dict; no metadata is an empty one.
pub(crate) fn metadata_out<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    match decode_metadata(bytes, DEPTH_STOP).or_raise()? {
        Some(value) => value_out(py, &value),
        None => Ok(PyDict::new(py).into_any()),
    }
}

/// Strings (or None), as owned text.
pub(crate) fn texts_in(list: &Bound<'_, PyList>, field: &'static str) -> PyResult<Vec<Option<String>>> {
    let mut out = Vec::with_capacity(list.len());
    for (i, item) in list.iter().enumerate() {
        if item.is_none() {
            out.push(None);
            continue;
        }
        let string =
            item.cast::<PyString>().map_err(|_| invalid(field, Some(i), format!("a {field} must be a str or None")))?;
        out.push(Some(text(string, field, Some(i))?));
    }
    Ok(out)
}
