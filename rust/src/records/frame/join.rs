//! Frames of one observation each, joined: what a client gave one by one leaves together.

use std::collections::HashSet;

use super::{Columns, FrameView, TIME_ABSENT, build_frame, malformed};
use crate::error::Error;

/// Frames of one item each as frames of many, in order, with their numbers of items. Those of a frame have a vector all or none, and no
/// key twice (K1).
pub fn join_frames(frames: &[&[u8]]) -> Result<Vec<(usize, Vec<u8>)>, Error> {
    let (mut joined, mut run, mut keys) = (Vec::new(), Vec::new(), HashSet::new());
    for bytes in frames {
        let view = FrameView::parse(bytes)?;
        let key = view.key_bytes(bytes, 0);
        let apart = run.first().is_some_and(|(first, _): &(FrameView, _)| first.has_vectors() != view.has_vectors());
        if apart || key.is_some_and(|k| keys.contains(k)) {
            joined.push(join(&run)?);
            run.clear();
            keys.clear();
        }
        keys.extend(key);
        run.push((view, *bytes));
    }
    if !run.is_empty() {
        joined.push(join(&run)?);
    }
    Ok(joined)
}

fn join(run: &[(FrameView, &[u8])]) -> Result<(usize, Vec<u8>), Error> {
    if let [(_, alone)] = run {
        return Ok((1, alone.to_vec()));
    }
    let text = |bytes| std::str::from_utf8(bytes).map_err(|_| malformed("a text that is not UTF-8"));
    let texts: Vec<_> = run.iter().map(|(v, b)| v.text_bytes(b, 0).map(text).transpose()).collect::<Result<_, _>>()?;
    let keys: Vec<_> = run.iter().map(|(v, b)| v.key(b, 0)).collect();
    let metadata: Vec<_> = run.iter().map(|(v, b)| v.metadata(b, 0).to_vec()).collect();
    let times: Vec<_> = run.iter().map(|(v, _)| v.observed_at(0).unwrap_or(TIME_ABSENT)).collect();
    let confidence: Vec<_> = run.iter().map(|(v, _)| v.confidence(0)).collect();
    let floats = run.iter().flat_map(|(v, b)| v.vector(b, 0).unwrap_or_default().chunks_exact(4));
    let vectors: Vec<_> = floats.map(|f| f32::from_le_bytes([f[0], f[1], f[2], f[3]])).collect();
    let certain = |c: &f32| c.to_bits() == 1f32.to_bits();
    let frame = build_frame(&Columns {
        count: run.len(),
        dim: run.first().map_or(0, |(v, _)| v.dim()),
        vectors: (!vectors.is_empty()).then_some(&vectors[..]),
        texts: texts.iter().any(Option::is_some).then_some(&texts[..]),
        metadata: metadata.iter().any(|m| !m.is_empty()).then_some(&metadata[..]),
        observed_at: times.iter().any(|t| *t != TIME_ABSENT).then_some(&times[..]),
        confidence: (!confidence.iter().all(certain)).then_some(&confidence[..]),
        keys: keys.iter().any(Option::is_some).then_some(&keys[..]),
    });
    Ok((run.len(), frame))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Item = (Option<String>, Option<Vec<f32>>, Vec<u8>, Option<i64>, f32, Option<String>);

    fn alone((text, vector, metadata, observed_at, confidence, key): &Item) -> Vec<u8> {
        build_frame(&Columns {
            count: 1,
            dim: 2,
            vectors: vector.as_deref(),
            texts: text.as_ref().map(|t| [Some(t.as_str())]).as_ref().map(|t| &t[..]),
            metadata: (!metadata.is_empty()).then_some(std::slice::from_ref(metadata)),
            observed_at: observed_at.as_ref().map(std::slice::from_ref),
            confidence: Some(&[*confidence]),
            keys: key.as_ref().map(|k| [Some(k.as_str())]).as_ref().map(|k| &k[..]),
        })
    }

    fn items() -> impl Strategy<Value = Vec<Item>> {
        let both = (prop::option::of("[a-z]{0,3}"), prop::option::of(prop::collection::vec(any::<f32>(), 2)));
        let has = |(text, vector): &(Option<String>, Option<Vec<f32>>)| text.is_some() || vector.is_some();
        let rest = (prop::collection::vec(any::<u8>(), 0..3), prop::option::of(-9i64..9), 0.5f32..=1.0);
        let item = (both.prop_filter("something", has), rest, prop::option::of("[a-c]"));
        prop::collection::vec(item.prop_map(|((t, v), (m, o, c), k)| (t, v, m, o, c, k)), 0..20)
    }

    proptest! {
        /// What is read of the joined frames is what stood in the single ones, in order.
        #[test]
        fn nothing_is_changed(items in items()) {
            let single: Vec<_> = items.iter().map(alone).collect();
            let joined = join_frames(&single.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
            let mut left = single.iter();
            for (count, frame) in &joined {
                let view = FrameView::parse(frame).unwrap();
                prop_assert_eq!(view.count(), *count);
                let mut keys = HashSet::new();
                for i in 0..*count {
                    let bytes = left.next().unwrap();
                    let one = FrameView::parse(bytes).unwrap();
                    prop_assert_eq!(view.text_bytes(frame, i), one.text_bytes(bytes, 0));
                    prop_assert_eq!(view.vector(frame, i), one.vector(bytes, 0));
                    prop_assert_eq!(view.metadata(frame, i), one.metadata(bytes, 0));
                    prop_assert_eq!((view.observed_at(i), view.confidence(i)), (one.observed_at(0), one.confidence(0)));
                    prop_assert_eq!(view.key(frame, i), one.key(bytes, 0));
                    prop_assert!(view.key(frame, i).is_none_or(|key| keys.insert(key.to_owned())));
                }
            }
            prop_assert!(left.next().is_none());
        }
    }
}
