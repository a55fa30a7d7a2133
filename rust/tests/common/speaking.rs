//! Sessions in a simulation: each has an endless stream of observations, one a sequence, said in order, again, too early, and by others.

use std::sync::Arc;

use engram_core::engine::Speech;
use engram_core::error::Error;
use engram_core::queue::{Committed, Ticket};
use engram_core::session::{Claim, Priority};
use engram_core::store::{Attached, Space, Speaker};

use super::{Event, SessionModel, Sim, below, frame, uid_of};

/// A frame on its way: session, first sequence, content hashes.
pub struct Saying {
    session: usize,
    first: u64,
    hashes: Vec<Option<u64>>,
    ticket: Arc<Ticket<Committed>>,
}

#[derive(Default)]
pub struct Speaking {
    pub said: Vec<Saying>,
    pub attaching: Vec<(usize, Arc<Speaker>, Arc<Ticket<Attached>>)>,
    /// By session: who speaks, and in which epoch.
    pub speakers: Vec<Option<(Arc<Speaker>, u64)>>,
}

impl Sim {
    fn space_of(&self, session: usize) -> Option<Arc<Space>> {
        let model = &self.oracle.spaces[self.oracle.sessions[session].space];
        if model.dropping || model.dropped {
            return None;
        }
        model.id.and_then(|id| self.core().spaces.get(id))
    }

    /// Something a speaker does.
    pub fn speak(&mut self) {
        self.speaking.speakers.resize(self.oracle.sessions.len(), None);
        if self.oracle.sessions.len() < 3 || below(&mut self.rng, 40) == 0 {
            self.open_session();
            return;
        }
        let session = below(&mut self.rng, self.oracle.sessions.len() as u64) as usize;
        let Some(space) = self.space_of(session) else { return };
        let Some((speaker, epoch)) = self.speaking.speakers[session].clone() else {
            self.attach(session, &space);
            return;
        };
        match below(&mut self.rng, 20) {
            0 => self.attach(session, &space),
            1 => {
                self.core().detach(&speaker, epoch);
                self.speaking.speakers[session] = None;
            }
            // An older speaker does not know that it is one.
            2 => self.say(session, &space, &speaker, epoch.saturating_sub(1)),
            _ => self.say(session, &space, &speaker, epoch),
        }
    }

    fn open_session(&mut self) {
        let Some(space) = self.live() else { return };
        let core = self.core();
        let at = core.spaces.get(self.oracle.spaces[space].id.unwrap()).unwrap();
        if let Ok(Some((speaker, ticket))) = core.submit_open(&at, Priority::Normal, "p", Claim::default()) {
            let token = core.token(&at, speaker.id);
            let session = self.oracle.sessions.len();
            self.oracle.sessions.push(SessionModel { space, id: speaker.id, token, opened: false, told: Vec::new() });
            self.speaking.speakers.push(None);
            self.speaking.attaching.push((session, speaker, ticket));
        }
    }

    fn attach(&mut self, session: usize, space: &Arc<Space>) {
        let model = &self.oracle.sessions[session];
        if model.opened
            && let Ok(Some((speaker, ticket))) =
                self.core().submit_attach(space, &model.token, "p", Some(0), Claim::default())
        {
            self.speaking.attaching.push((session, speaker, ticket));
        }
    }

    fn say(&mut self, session: usize, space: &Arc<Space>, speaker: &Arc<Speaker>, epoch: u64) {
        let core = self.core();
        let admitted = speaker.section().admitted();
        let first = match below(&mut self.rng, 10) {
            0 => admitted + 2,
            1..=3 => 1 + below(&mut self.rng, admitted + 1),
            _ => admitted + 1,
        };
        let count = 1 + below(&mut self.rng, 6);
        let uids: Vec<u64> = (first..first + count).map(|s| uid_of(session, s)).collect();
        let mut spoken = core.prepare_spoken(space, frame(&uids, false, true), false).unwrap();
        let current = speaker.section().epoch;
        match core.say(space, speaker, epoch, Some(first), &mut spoken) {
            Ok(Speech::Said(saying)) => {
                assert!(first <= admitted + 1 && epoch == current, "a gap or an old epoch was taken");
                assert_eq!(saying.first, first);
                let mut at = first + saying.known;
                self.told(session, space, speaker, first, &spoken.hashes[..saying.known as usize]);
                for (count, ticket) in [saying.coming, saying.fresh].into_iter().flatten() {
                    let from = (at - first) as usize;
                    let hashes = spoken.hashes[from..from + count as usize].to_vec();
                    self.speaking.said.push(Saying { session, first: at, hashes, ticket });
                    at += count;
                }
                assert_eq!(at, first + count);
                assert_eq!(
                    speaker.section().admitted(),
                    admitted.max(first + count - 1),
                    "admitted moves with the push"
                );
            }
            Ok(Speech::Full(_)) => {}
            Err(Error::SequenceGap { expected }) => assert!(first > admitted + 1 && expected == admitted + 1),
            Err(Error::Fenced) => {}
            Err(Error::Poisoned { .. }) => self.poisoned = true,
            Err(_) => {}
        }
    }

    /// S3: what is acknowledged is told with its ids, the same ones every time.
    fn told(&mut self, session: usize, space: &Space, speaker: &Speaker, first: u64, hashes: &[Option<u64>]) {
        let known = self.core().acknowledged(space, speaker, first, hashes).unwrap();
        assert_eq!(
            known.iter().map(|k| k.count).sum::<u64>(),
            hashes.len() as u64,
            "acknowledged and not committed: session {session} from {first}, committed {}, {:?}",
            speaker.section().window.committed(),
            space.durability
        );
        for run in known {
            let Some(generation) = run.generation else { continue };
            for i in 0..run.count {
                let (sequence, generation) = (run.first + i, generation.0 + i);
                let model = &mut self.oracle.sessions[session];
                match model.told.iter().find(|(s, _)| *s == sequence) {
                    Some((_, before)) => assert_eq!(*before, generation, "sequence {sequence} has another id now"),
                    None => model.told.push((sequence, generation)),
                }
                let space = &mut self.oracle.spaces[model.space];
                space.greatest = space.greatest.max(generation);
                self.event(Event::Said { session, sequence, generation });
            }
        }
    }

    pub fn poll_speaking(&mut self) {
        let ready = |ticket: &Arc<Ticket<Committed>>| ticket.outcome().is_some();
        let done: Vec<Saying> = self.speaking.said.extract_if(.., |s| ready(&s.ticket)).collect();
        for saying in done {
            match saying.ticket.outcome().unwrap() {
                Ok(_) => {
                    let Some(space) = self.space_of(saying.session) else { continue };
                    let speaker = space.sessions.get(self.oracle.sessions[saying.session].id).unwrap();
                    self.told(saying.session, &space, &speaker, saying.first, &saying.hashes);
                }
                Err(Error::Poisoned { .. }) => self.poisoned = true,
                Err(_) => {}
            }
        }
        let attached: Vec<_> = self.speaking.attaching.extract_if(.., |(_, _, t)| t.outcome().is_some()).collect();
        for (session, speaker, ticket) in attached {
            match ticket.outcome().unwrap() {
                Ok(attached) => {
                    let model = &mut self.oracle.sessions[session];
                    if !std::mem::replace(&mut model.opened, true) {
                        self.event(Event::Opened { session });
                    }
                    self.speaking.speakers.resize(self.oracle.sessions.len(), None);
                    self.speaking.speakers[session] = Some((speaker, attached.epoch));
                }
                Err(Error::Poisoned { .. }) => self.poisoned = true,
                Err(_) => {}
            }
        }
    }
}
