//! What a session has committed: the last runs with their generations, and how far it reaches (S3).
//!
//! Inside a run sequence → generation is affine. Runs whose group is on the disk merge where they continue each other, and the oldest
//! go when there are more than `KEPT`; others stay as they are, so that a checkpoint can say what of the session is on the disk.

use std::collections::VecDeque;

use crate::types::Generation;

/// Runs that are kept for telling duplicates their ids.
const KEPT: usize = 256;

/// Consecutive sequences with consecutive generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceRun {
    pub first: u64,
    pub count: u64,
    pub generation: Generation,
    /// Where the log stood before the (last) group of the run.
    pub offset: u64,
}

/// Part of what was asked about; no generation: it is before the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    pub first: u64,
    pub count: u64,
    pub generation: Option<Generation>,
}

#[derive(Clone, Debug, Default)]
pub struct Window {
    committed: u64,
    runs: VecDeque<SequenceRun>,
    /// So many runs at the front are on the disk, and merged.
    settled: usize,
}

impl SequenceRun {
    fn end(&self) -> u64 {
        self.first + self.count
    }

    fn continues(&self, before: &Self) -> bool {
        before.end() == self.first && before.generation.0 + before.count == self.generation.0
    }
}

impl Window {
    /// As a checkpoint has it.
    pub fn restored(committed: u64, runs: Vec<SequenceRun>) -> Self {
        let settled = runs.len();
        Self { committed, runs: runs.into(), settled }
    }

    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// The next run is committed; `synced`: the log is on the disk up to there. False: it does not continue the session.
    #[must_use]
    pub fn commit(&mut self, run: SequenceRun, synced: u64) -> bool {
        if run.first != self.committed + 1 {
            return false;
        }
        self.committed = run.end() - 1;
        self.runs.push_back(run);
        self.settle(synced);
        true
    }

    fn settle(&mut self, synced: u64) {
        while let Some(run) = self.runs.get(self.settled).copied().filter(|r| r.offset < synced) {
            match self.settled.checked_sub(1).and_then(|i| self.runs.get_mut(i)) {
                Some(before) if run.continues(before) => {
                    before.count += run.count;
                    before.offset = run.offset;
                    self.runs.remove(self.settled);
                }
                _ => self.settled += 1,
            }
        }
        while self.settled > KEPT {
            self.runs.pop_front();
            self.settled -= 1;
        }
    }

    /// What of it the log has on the disk up to `synced`: committed, and the runs.
    pub fn durable(&self, synced: u64) -> (u64, Vec<SequenceRun>) {
        let runs: Vec<SequenceRun> = self.runs.iter().copied().take_while(|r| r.offset < synced).collect();
        let next = self.runs.get(runs.len());
        (next.map_or(self.committed, |r| r.first - 1), runs)
    }

    /// The last committed sequence whose generation is not beyond `generation`, as far as the window tells: what is before it counts in.
    pub fn through(&self, generation: Generation) -> u64 {
        let run = self.runs.iter().rev().find(|run| run.generation <= generation);
        let before = self.runs.front().map_or(self.committed, |run| run.first - 1);
        run.map_or(before, |run| run.first + (generation.0 - run.generation.0).min(run.count - 1))
    }

    /// The generations of sequences up to `committed`, in order.
    pub fn find(&self, first: u64, count: u64) -> Vec<Known> {
        let (mut at, end) = (first, (first + count).min(self.committed + 1));
        let mut found = Vec::new();
        let begin = self.runs.front().map_or(self.committed + 1, |r| r.first);
        if at < begin.min(end) {
            found.push(Known { first: at, count: begin.min(end) - at, generation: None });
            at = begin.min(end);
        }
        for run in self.runs.iter().filter(|r| r.end() > first) {
            let to = run.end().min(end);
            if at >= to {
                break;
            }
            let generation = Some(run.generation.plus(at - run.first));
            found.push(Known { first: at, count: to - at, generation });
            at = to;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// S3, against a map of every sequence: what is known is right, the last 256 runs are known, and a checkpoint's part is
        /// what its log has.
        #[test]
        fn windows_answer_as_a_map_does(steps in prop::collection::vec((1u64..5, 0u64..3, 0u64..4), 1..600)) {
            let (mut window, mut map, mut offsets) = (Window::default(), std::collections::BTreeMap::new(), Vec::new());
            let (mut sequence, mut generation, mut offset, mut synced) = (1, 1, 0, 0);
            for (count, gap, behind) in steps {
                generation += gap;
                let run = SequenceRun { first: sequence, count, generation: Generation(generation), offset };
                offsets.push((offset, sequence + count - 1));
                offset += 512;
                synced = synced.max(offset - behind.min(offset / 512) * 512);
                prop_assert!(window.commit(run, synced));
                (0..count).for_each(|i| { map.insert(sequence + i, generation + i); });
                sequence += count;
                generation += count;
                prop_assert_eq!(window.committed(), sequence - 1);
            }
            let ahead = SequenceRun { first: sequence + 1, count: 1, generation: Generation(generation), offset };
            let taken = window.commit(ahead, synced);
            prop_assert!(!taken, "a gap");
            let found = window.find(1, sequence + 9);
            prop_assert_eq!(found.iter().map(|k| k.count).sum::<u64>(), sequence - 1);
            for known in &found {
                for i in 0..known.count {
                    let right = known.generation.is_none_or(|g| map[&(known.first + i)] == g.0 + i);
                    prop_assert!(right);
                }
            }
            prop_assert!(found.iter().filter(|k| k.generation.is_none()).count() <= 1);
            for generation in [0, generation / 2, generation] {
                let right = map.iter().filter(|(_, g)| **g <= generation).map(|(s, _)| *s).max().unwrap_or(0);
                let kept = found.iter().find(|k| k.generation.is_some()).map_or(0, |k| k.first - 1);
                prop_assert_eq!(window.through(Generation(generation)), right.max(kept));
            }
            prop_assert!(window.settled <= KEPT);
            let (durable, runs) = window.durable(synced);
            let expected = offsets.iter().filter(|(o, _)| *o < synced).map(|(_, last)| *last).max().unwrap_or(0);
            prop_assert_eq!(durable, expected);
            let again = Window::restored(durable, runs);
            prop_assert_eq!(again.find(1, durable), window.find(1, durable));
        }
    }
}
