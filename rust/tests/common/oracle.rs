//! The oracle: what was submitted and answered, in order, and the judgement of a reopened engine.

use std::collections::{BTreeMap, BTreeSet};

use engram_core::engine::Core;
use engram_core::store::Scope;
use engram_core::types::{Durability, Generation, SessionId, SpaceId};

use super::frames::SESSION_UIDS;
use super::{key_of, uid_of, vector};

#[derive(Clone, Debug)]
pub enum Event {
    Created {
        space: usize,
    },
    Acked {
        batch: usize,
    },
    /// It could not be applied, and that is for ever.
    Quarantined {
        batch: usize,
    },
    Dropped {
        space: usize,
    },
    Forgot {
        forget: usize,
    },
    Opened {
        session: usize,
    },
    Said {
        session: usize,
        sequence: u64,
        generation: u64,
    },
    /// A checkpoint was answered that had been asked for after these were acknowledged.
    Checkpointed {
        batches: Vec<usize>,
    },
}

#[derive(Clone, Debug)]
pub struct Batch {
    pub space: usize,
    pub uids: Vec<u64>,
    pub first: Option<u64>,
    /// Refused before it was numbered: must never appear.
    pub refused: bool,
    /// A checkpoint has it: it outlives everything, whatever the space's mode.
    pub checkpointed: bool,
    /// It may turn out that it cannot be applied.
    pub poisonous: bool,
}

#[derive(Clone, Debug)]
pub enum Target {
    Ids(Vec<u64>),
    Key(String),
    /// Uids from the one to before the other.
    Uids(u64, u64),
}

#[derive(Clone, Debug)]
pub struct Forget {
    pub space: usize,
    pub target: Target,
    /// The generation it was told to have; 0: nothing was there.
    pub at: Option<u64>,
    pub refused: bool,
}

#[derive(Clone, Debug)]
pub struct SessionModel {
    pub space: usize,
    pub id: SessionId,
    pub token: String,
    /// Its speaker was told that it is there.
    pub opened: bool,
    /// Sequences and ids that were acknowledged.
    pub told: Vec<(u64, u64)>,
}

#[derive(Clone, Debug)]
pub struct SpaceModel {
    pub name: String,
    pub id: Option<SpaceId>,
    pub durability: Durability,
    pub batches: Vec<usize>,
    /// Row and death of all that was dead when this run began.
    pub dead: BTreeMap<u64, u64>,
    pub dropping: bool,
    pub dropped: bool,
    /// Greatest generation anyone was told of.
    pub greatest: u64,
    /// The same, before this run.
    pub before: u64,
}

#[derive(Clone, Default)]
pub struct Oracle {
    pub spaces: Vec<SpaceModel>,
    pub batches: Vec<Batch>,
    pub forgets: Vec<Forget>,
    pub sessions: Vec<SessionModel>,
    pub events: Vec<Event>,
}

/// How the last run ended, and so what must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Clean,
    Kill,
    PowerCut,
}

/// What a space holds, dead or alive: uid by generation.
pub fn contents(core: &Core, space: &engram_core::store::Space) -> Result<BTreeMap<u64, u64>, String> {
    let view = space.view();
    let mut rows = BTreeMap::new();
    let mut wrong = None;
    let scope = Scope { upto: view.watermark(), filter: None, pulse: &|| Ok(()) };
    let listed = view.list(Generation(0), scope, |row| {
        let text = row.text.unwrap_or("");
        let uid: u64 = text.split(' ').nth(1).and_then(|u| u.parse().ok()).unwrap_or(0);
        let expected: Vec<u8> = vector(uid).iter().flat_map(|v| v.to_le_bytes()).collect();
        if row.vector.is_some_and(|v| v != expected) || row.observed_at != Some(uid as i64 * 1000) {
            wrong = Some(format!("row {} of {} is not as observed", row.generation, space.options.name));
        }
        if rows.last_key_value().is_some_and(|(last, _)| *last >= row.generation.0) {
            wrong = Some(format!("row {} of {} is listed out of order", row.generation, space.options.name));
        }
        if row.key != key_of(uid).as_deref() && row.key.is_some() {
            wrong = Some(format!("row {} of {} has another key", row.generation, space.options.name));
        }
        rows.insert(row.generation.0, uid);
        true
    });
    let _ = core;
    listed.map_err(|e| e.to_string())?;
    if rows.len() as u64 != view.memories() {
        return Err(format!("{}: {} rows listed, {} counted", space.options.name, rows.len(), view.memories()));
    }
    // The dead among them that cannot be read are not counted below.
    view.first_damage().map_or(Ok(()), |error| Err(error.to_string()))?;
    for (row, _) in view.deaths(view.watermark()) {
        let (dead, _) = view.version(row, view.watermark()).map_err(|e| e.to_string())?.ok_or("a dead row is gone")?;
        let uid = dead.text.and_then(|t| t.split(' ').nth(1)).and_then(|u| u.parse().ok()).unwrap_or(0);
        if rows.insert(row.0, uid).is_some() {
            return Err(format!("{}: row {row} is dead and is listed", space.options.name));
        }
    }
    wrong.map_or(Ok(rows), Err)
}

impl Oracle {
    /// What had been answered when `events` events had happened.
    pub fn as_of(&self, events: usize) -> Self {
        let mut then = self.clone();
        then.events.truncate(events);
        let told: BTreeSet<usize> = then
            .events
            .iter()
            .filter_map(|e| if let Event::Acked { batch } = e { Some(*batch) } else { None })
            .collect();
        let listed = then.events.iter().filter_map(|e| match e {
            Event::Checkpointed { batches } => Some(batches),
            _ => None,
        });
        let checkpointed: BTreeSet<usize> = listed.flatten().copied().collect();
        let gone =
            then.events.iter().filter_map(|e| if let Event::Quarantined { batch } = e { Some(*batch) } else { None });
        let gone: BTreeSet<usize> = gone.collect();
        for (i, batch) in then.batches.iter_mut().enumerate() {
            batch.refused |= gone.contains(&i);
            batch.checkpointed = checkpointed.contains(&i);
            if !told.contains(&i) {
                batch.first = None;
            }
        }
        let forgot: BTreeSet<usize> = then
            .events
            .iter()
            .filter_map(|e| if let Event::Forgot { forget } = e { Some(*forget) } else { None })
            .collect();
        for (i, forget) in then.forgets.iter_mut().enumerate() {
            if !forgot.contains(&i) {
                forget.at = None;
            }
        }
        for (i, session) in then.sessions.iter_mut().enumerate() {
            let said = then.events.iter().filter_map(|e| match e {
                Event::Said { session, sequence, generation } if *session == i => Some((*sequence, *generation)),
                _ => None,
            });
            session.told = said.collect();
            session.opened = then.events.iter().any(|e| matches!(e, Event::Opened { session } if *session == i));
        }
        for (i, space) in then.spaces.iter_mut().enumerate() {
            let created = then.events.iter().any(|e| matches!(e, Event::Created { space } if *space == i));
            if !created {
                space.id = None;
            }
            space.dropped = then.events.iter().any(|e| matches!(e, Event::Dropped { space } if *space == i));
            let told = space.batches.iter().map(|b| &then.batches[*b]);
            let last = told.filter_map(|b| b.first.map(|f| f + b.uids.len() as u64 - 1)).max();
            let forgets = then.forgets.iter().filter(|f| f.space == i).filter_map(|f| f.at).max();
            space.greatest = space.before.max(last.unwrap_or(0)).max(forgets.unwrap_or(0));
            let said = then.sessions.iter().filter(|s| s.space == i).flat_map(|s| &s.told).map(|t| t.1);
            space.greatest = space.greatest.max(said.max().unwrap_or(0));
        }
        then
    }

    /// D2, D8, D9, D11, O4, K4: compares a reopened engine with what was submitted and answered.
    pub fn check(&self, core: &Core, end: End) -> Result<(), String> {
        if !core.report.damage.is_empty() {
            return Err(format!("damage reported after a crash: {:?}", core.report.damage));
        }
        let found: BTreeSet<SpaceId> = core.spaces.all().iter().map(|s| s.options.id).collect();
        for model in &self.spaces {
            match model.id {
                Some(id) if model.dropped && found.contains(&id) => {
                    return Err(format!("space {} was dropped and is back", model.name));
                }
                Some(id) if !model.dropped && !model.dropping && !found.contains(&id) => {
                    return Err(format!("space {} was made and is gone", model.name));
                }
                _ => {}
            }
        }
        for space in core.spaces.all() {
            // An unanswered creation may have happened: it is the model of that name without an id.
            let by_id = self.spaces.iter().position(|m| m.id == Some(space.options.id));
            let unanswered =
                || self.spaces.iter().position(|m| m.id.is_none() && !m.dropped && m.name == space.options.name);
            let Some(at) = by_id.or_else(unanswered) else {
                return Err(format!("space {} was never asked for", space.options.name));
            };
            self.check_space(core, &space, at, end)?;
        }
        Ok(())
    }

    fn check_space(&self, core: &Core, space: &engram_core::store::Space, at: usize, end: End) -> Result<(), String> {
        let model = &self.spaces[at];
        let rows = contents(core, space)?;
        let got: Vec<u64> = rows.values().copied().filter(|uid| *uid < SESSION_UIDS).collect();
        let wanted = model.batches.iter().map(|b| &self.batches[*b]).filter(|b| !b.refused);
        // Nobody was told yet what came of it: it may be gone round, or there.
        let wanted: Vec<&Batch> =
            wanted.filter(|b| !b.poisonous || b.first.is_some() || got.contains(&b.uids[0])).collect();
        let order: Vec<u64> = wanted.iter().flat_map(|b| b.uids.iter().copied()).collect();
        if !order.starts_with(&got) {
            return Err(format!("{}: not a prefix of what was sent: {got:?} of {order:?}", model.name));
        }
        let mut seen = 0;
        let must = match end {
            End::Clean => true,
            // After a failed sync written pages may be gone too; the start must say so (D11).
            End::Kill if core.report.renewed.contains(&model.name) => model.durability == Durability::Sync,
            End::Kill => model.durability >= Durability::Os,
            End::PowerCut => model.durability == Durability::Sync,
        };
        for batch in wanted {
            let whole = seen + batch.uids.len() <= got.len();
            if !whole && seen < got.len() {
                return Err(format!("{}: part of an atomic batch is there", model.name));
            }
            if let Some(first) = batch.first {
                if !whole && batch.checkpointed {
                    return Err(format!("{}: checkpointed generation {first} is lost ({end:?})", model.name));
                }
                if !whole && must {
                    return Err(format!("{}: acknowledged generation {first} is lost ({end:?})", model.name));
                }
                if whole && rows.get(&first) != Some(&batch.uids[0]) {
                    return Err(format!("{}: generation {first} is another memory now", model.name));
                }
            }
            seen += batch.uids.len();
        }
        self.check_deaths(space, at, &rows, must)?;
        self.check_sessions(space, at, &rows, must, end)?;
        if space.watermark().0 < model.greatest && must {
            let (w, o) = (space.watermark(), &space.options);
            return Err(format!(
                "{}: ids up to {} were given, the next is {w}: {o:?} {model:?}",
                model.name, model.greatest
            ));
        }
        if space.watermark().0 < model.greatest {
            return Err(format!("{}: history ran backwards unseen to {}", model.name, space.watermark()));
        }
        Ok(())
    }

    /// K1, K3: who is dead has a successor or was forgotten; who was acknowledged to be forgotten is dead.
    fn check_deaths(
        &self,
        space: &engram_core::store::Space,
        at: usize,
        rows: &BTreeMap<u64, u64>,
        must: bool,
    ) -> Result<(), String> {
        let model = &self.spaces[at];
        let view = space.view();
        let dead: BTreeMap<u64, u64> = view.deaths(view.watermark()).into_iter().map(|(r, d)| (r.0, d.0)).collect();
        let keyed = |row: u64| view.version(Generation(row), view.watermark()).ok().flatten()?.0.key.map(str::to_owned);
        let mut successors = BTreeMap::new();
        let mut last: BTreeMap<String, u64> = BTreeMap::new();
        for row in rows.keys() {
            if let Some(key) = keyed(*row) {
                successors.extend(last.insert(key, *row).map(|before| (before, *row)));
            }
        }
        let forgets: Vec<&Forget> = self.forgets.iter().filter(|f| f.space == at && !f.refused).collect();
        let means = |f: &Forget, row: u64, death: u64| match &f.target {
            Target::Ids(ids) => ids.contains(&row),
            Target::Key(key) => keyed(row).as_ref() == Some(key),
            Target::Uids(from, to) => row < death && (*from..*to).contains(&rows[&row]),
        };
        for (row, death) in &dead {
            let superseded = successors.get(row) == Some(death);
            let forgotten = || forgets.iter().any(|f| f.at.is_none_or(|at| at == *death) && means(f, *row, *death));
            if !superseded && model.dead.get(row) != Some(death) && !forgotten() {
                return Err(format!("{}: row {row} died at {death}, and nobody wanted it", model.name));
            }
        }
        for (row, next) in &successors {
            if dead.get(row).is_none_or(|death| death > next) {
                return Err(format!("{}: row {row} has the successor {next} and lives", model.name));
            }
        }
        for (row, death) in model.dead.iter().filter(|(row, _)| rows.contains_key(row)) {
            if dead.get(row) != Some(death) {
                return Err(format!("{}: row {row} was dead and came back", model.name));
            }
        }
        for forget in forgets.iter().filter(|_| must) {
            let Some(f) = forget.at.filter(|f| *f > 0) else { continue };
            let alive = |row: &u64| *row < f && dead.get(row).is_none_or(|death| *death > f);
            let found = match &forget.target {
                Target::Ids(ids) => ids.iter().find(|id| rows.contains_key(id) && alive(id)).copied(),
                Target::Uids(from, to) => {
                    rows.iter().find(|(row, uid)| (*from..*to).contains(uid) && alive(row)).map(|(row, _)| *row)
                }
                Target::Key(key) => {
                    rows.keys().rev().find(|row| **row < f && keyed(**row).as_ref() == Some(key)).copied().filter(alive)
                }
            };
            if let Some(row) = found {
                return Err(format!("{}: row {row} was forgotten at {f} and lives: {:?}", model.name, forget.target));
            }
        }
        Ok(())
    }

    /// S2, S4, S5: a session's rows are its stream without a gap, up to what it says is committed, once each and in order.
    fn check_sessions(
        &self,
        space: &engram_core::store::Space,
        at: usize,
        rows: &BTreeMap<u64, u64>,
        must: bool,
        end: End,
    ) -> Result<(), String> {
        let name = &self.spaces[at].name;
        for (i, model) in self.sessions.iter().enumerate().filter(|(_, s)| s.space == at) {
            let block = uid_of(i, 0)..uid_of(i + 1, 0);
            let said: Vec<(u64, u64)> =
                rows.iter().filter(|(_, uid)| block.contains(uid)).map(|(g, uid)| (*uid - block.start, *g)).collect();
            let Some(session) = space.sessions.get(model.id) else {
                if (model.opened && must) || !said.is_empty() {
                    return Err(format!("{name}: session {i} was opened and is gone ({end:?})"));
                }
                continue;
            };
            let committed = session.section().window.committed();
            let sequences: Vec<u64> = said.iter().map(|(s, _)| *s).collect();
            if sequences != (1..=committed).collect::<Vec<_>>() {
                return Err(format!("{name}: session {i} is committed up to {committed}, its rows are {sequences:?}"));
            }
            for (sequence, generation) in &model.told {
                if *sequence > committed && must {
                    return Err(format!("{name}: session {i} was told of {sequence}, it has {committed} ({end:?})"));
                }
                if *sequence <= committed && said[*sequence as usize - 1].1 != *generation {
                    return Err(format!("{name}: sequence {sequence} of session {i} has another id"));
                }
            }
            let known = session.section().window.find(1, committed);
            for run in known.iter().filter_map(|k| k.generation.map(|g| (k.first, k.count, g.0))) {
                let right = (0..run.1).all(|i| said[(run.0 + i) as usize - 1].1 == run.2 + i);
                if !right {
                    return Err(format!("{name}: the window of session {i} names other ids"));
                }
            }
        }
        Ok(())
    }

    /// After a crash: what is there is the truth from now on.
    pub fn adopt(&mut self, core: &Core) {
        // Of several unanswered creations of one name only the first can have happened.
        let mut taken: BTreeSet<SpaceId> = self.spaces.iter().filter_map(|m| m.id).collect();
        for (at, model) in self.spaces.iter_mut().enumerate() {
            let here = core.spaces.all().into_iter().find(|s| {
                let unanswered = model.id.is_none() && !model.dropped && !taken.contains(&s.options.id);
                model.id == Some(s.options.id) || (unanswered && s.options.name == model.name)
            });
            taken.extend(here.as_ref().map(|s| s.options.id));
            let Some(space) = here else {
                model.dropped = true;
                self.events.push(Event::Dropped { space: at });
                continue;
            };
            self.events.push(Event::Created { space: at });
            model.id = Some(space.options.id);
            model.dropping = false;
            model.dropped = false;
            let mut rows = contents(core, &space).unwrap_or_default();
            rows.retain(|_, uid| *uid < SESSION_UIDS);
            let mut left = rows.len();
            let mut keep = Vec::new();
            for b in &model.batches {
                let batch = &mut self.batches[*b];
                // Gone round, and nobody was told.
                let round = batch.poisonous && !rows.values().any(|uid| *uid == batch.uids[0]);
                if batch.refused || round || left == 0 {
                    continue;
                }
                left -= batch.uids.len().min(left);
                batch.first = rows.iter().find(|(_, uid)| **uid == batch.uids[0]).map(|(g, _)| *g);
                self.events.push(Event::Acked { batch: *b });
                keep.push(*b);
            }
            model.batches = keep;
            let view = space.view();
            model.dead = view.deaths(view.watermark()).into_iter().map(|(r, d)| (r.0, d.0)).collect();
            model.before = model.greatest;
        }
        self.forgets.iter_mut().for_each(|f| f.refused = true);
        // What was told and is lost may be told anew.
        self.events.retain(|e| !matches!(e, Event::Said { .. } | Event::Opened { .. }));
        for (i, model) in self.sessions.iter_mut().enumerate() {
            let space = self.spaces[model.space].id.and_then(|id| core.spaces.get(id));
            let session = space.and_then(|s| s.sessions.get(model.id));
            let committed = session.as_ref().map_or(0, |s| s.section().window.committed());
            model.opened = session.is_some();
            model.told.retain(|(sequence, _)| *sequence <= committed);
            if model.opened {
                self.events.push(Event::Opened { session: i });
            }
            for (sequence, generation) in &model.told {
                self.events.push(Event::Said { session: i, sequence: *sequence, generation: *generation });
            }
        }
    }
}
