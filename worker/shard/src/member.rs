//! One process among the workers of a pipeline: it hears `control` and `status`, knows its duties, and reports.
//!
//! A member *joins* by reading both topics to their ends, so that its incarnation is later than any of its name. From then on it must be called several times per
//! bound of silence: [`Member::listen`], then [`Member::report`] with what its shards do. It reports at once when something changed that others act on (a role, a
//! prepared client, leaving), and otherwise often enough not to be silent. It hears its own reports through the topic like any other; whoever does not is cut off, and
//! acquires nothing ([`millstream_plan::view`]).
//!
//! Nothing here decides who may write (I4): what a member says and hears is advice on when to try.

use crate::control::Listener;
use crate::hearing::Listened;
use crate::log::{Consumer, Log, LogError, Outgoing, Producer};
use crate::mutant::{self, Mutant};
use crate::topics::Topics;
use millstream_plan::ability::{Ability, Sight};
use millstream_plan::incarnation::Incarnation;
use millstream_plan::message;
use millstream_plan::plan::ShardId;
use millstream_plan::status::{Role, ShardStatus, WorkerStatus};
use millstream_plan::unread::Unread;
use millstream_plan::view::{Bounds, Duty, Me, Verdict, View};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A member reports so many times per bound of silence: one report that is lost or late is no silence.
const REPORTS_PER_BOUND: u64 = 6;

/// What a process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Name of the worker.
    pub worker: String,
    /// Failure domain; empty: not known.
    pub zone: String,
    /// Machine; empty: not known.
    pub node: String,
    /// Relative to other workers: one of 2 gets twice the shards of one of 1.
    pub capacity: u32,
    /// Stages whose shards it can own.
    pub stages: BTreeSet<String>,
    /// Of its program.
    pub version: String,
}

/// The present moment, by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since 1970, for people and for incarnations.
    pub wall_ms: u64,
    /// Milliseconds of a clock that never goes back.
    pub monotonic_ms: u64,
}

/// What a worker is to do with one shard, and what it has to know for that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// What to do; nothing is a duty like another.
    pub duty: Duty,
    /// (term, number) of the plan that says so.
    pub plan: (u64, u64),
    /// Highest epoch that anybody has reported of the shard: an owner of a lower one was fenced.
    pub epoch: u64,
    /// Savepoints that are being taken.
    pub savepoints: Arc<[u64]>,
}

/// Shards, and what a member says of them.
pub type Statuses = BTreeMap<ShardId, ShardStatus>;

/// What it said, and when, in milliseconds of the monotonic clock.
struct Said {
    at_ms: u64,
    shards: Statuses,
    unable: BTreeMap<ShardId, u64>,
}

/// A process among the workers of a pipeline.
pub struct Member {
    profile: Profile,
    incarnation: Incarnation,
    generation: u32,
    started_ms: u64,
    listener: Listener,
    producer: Box<dyn Producer>,
    status_topic: Arc<str>,
    leaving: bool,
    sequence: u64,
    every_ms: u64,
    /// What it knows for good of shards, open or not.
    known: BTreeMap<ShardId, Vec<Unread>>,
    /// What it knows of the shards that it could not open.
    ability: Ability,
    /// When it reported last, and what.
    said: Option<Said>,
    /// Why the newest report did not get out.
    unsaid: Arc<Mutex<Option<LogError>>>,
}

impl Member {
    /// Joins; `random` tells apart two processes of one name that start in one millisecond.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn join(
        log: &dyn Log,
        topics: &Topics,
        profile: Profile,
        random: u32,
        bounds: Bounds,
        now: Now,
    ) -> Result<Member, LogError> {
        let listener = Listener::open(log, topics, bounds, now.monotonic_ms)?;
        let newest = listener.view().newest_incarnation(&profile.worker);
        let incarnation = Incarnation::after(newest, now.wall_ms, random);
        let generation = u32::from(topics.generation);
        let is_former = |report: &WorkerStatus| report.worker == profile.worker && report.generation == generation;
        let former = listener.view().reports().find(|(report, _)| is_former(report));
        let known = former.map(|(report, _)| report.known_for_good()).unwrap_or_default();
        Ok(Member {
            known,
            incarnation,
            generation: u32::from(topics.generation),
            started_ms: now.wall_ms,
            listener,
            producer: log.producer()?,
            status_topic: topics.status.clone(),
            leaving: false,
            sequence: 0,
            every_ms: bounds.silence_ms / REPORTS_PER_BOUND,
            ability: Ability::new(bounds.unable_ms),
            said: None,
            unsaid: Arc::default(),
            profile,
        })
    }

    /// What is known for good of shards, at first what the former process of its name knew.
    pub fn known(&self) -> &BTreeMap<ShardId, Vec<Unread>> {
        &self.known
    }

    /// What is known for good of shards from here on. The first report tells it of those that are not open, and those of a worker that leaves.
    pub fn know(&mut self, known: BTreeMap<ShardId, Vec<Unread>>) {
        self.known = known;
    }

    /// Which process of its name this is.
    pub fn incarnation(&self) -> &Incarnation {
        &self.incarnation
    }

    /// Hears what comes within `wait`.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn listen(&mut self, wait: Duration, monotonic_ms: u64) -> Result<(), LogError> {
        self.listener.listen(wait, monotonic_ms).map(drop)
    }

    /// After [`Member::listen`] has failed, or when its reader does not hear: listens with a new reader. The former one is given back: to drop it may take long.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn listen_anew(&mut self, log: &dyn Log) -> Result<Box<dyn Consumer>, LogError> {
        self.listener.open_again(log)
    }

    /// How far `control` and `status` were heard.
    pub fn listened(&self) -> Listened {
        self.listener.listened()
    }

    /// What was heard.
    pub fn view(&self) -> &View {
        self.listener.view()
    }

    /// `control` was heard up to here, exclusive.
    pub fn control_offset(&self) -> u64 {
        self.listener.control_offset()
    }

    /// The newest thing that went wrong with hearing or reporting, once.
    pub fn problem(&mut self) -> Option<String> {
        let unsaid = self.unsaid.lock().unwrap_or_else(PoisonError::into_inner).take();
        let unsaid = unsaid.map(|error| format!("reporting to {}: {error}", self.status_topic));
        unsaid.or_else(|| self.listener.problem().map(|error| error.to_string()))
    }

    /// Has it heard its own newest report?
    pub fn is_heard(&self) -> bool {
        let mut reports = self.view().reports().map(|(report, _)| report.order());
        reports.any(|order| order == (&self.incarnation, self.sequence))
    }

    /// From here on it gives its shards away, and takes none.
    pub fn leave(&mut self) {
        self.leaving = true;
    }

    /// Is it leaving?
    pub fn is_leaving(&self) -> bool {
        self.leaving
    }

    fn me(&self) -> Me<'_> {
        Me { worker: &self.profile.worker, incarnation: &self.incarnation, leaving: self.leaving }
    }

    /// Whether this process may go on.
    pub fn verdict(&self) -> Verdict {
        if mutant::is(Mutant::TwinNotDetected) {
            return Verdict::GoOn;
        }
        self.view().verdict(&self.me())
    }

    /// What to do with each shard of the plan, those of this process's stages only.
    pub fn orders(&self, monotonic_ms: u64) -> BTreeMap<ShardId, Order> {
        let view = self.view();
        let plan = view.plan().map(|plan| (plan.version.term, plan.version.number)).unwrap_or_default();
        let epochs = view.highest_epochs();
        let savepoints: Arc<[u64]> = view.open_savepoints().collect();
        let duties = view.duties(&self.me(), monotonic_ms).into_iter();
        let mine = duties.filter(|(id, _)| self.profile.stages.contains(&id.stage));
        mine.map(|(id, duty)| {
            let epoch = epochs.get(&id).copied().unwrap_or_default();
            (id, Order { duty, plan, epoch, savepoints: savepoints.clone() })
        })
        .collect()
    }

    /// Reports, when it is time or something changed that others act on. `kept`: those of the shards that others keep it from, as far as it can tell ([`Sight::kept`]).
    pub fn report(&mut self, shards: Statuses, kept: &BTreeSet<ShardId>, monotonic_ms: u64) {
        let (view, me) = (self.listener.view(), self.me());
        if view.hears(&me, monotonic_ms) {
            let elsewhere = view.owned_by_others(&me, monotonic_ms);
            self.ability.note(Sight { shards: &shards, kept, elsewhere: &elsewhere }, monotonic_ms);
        } else {
            self.ability.cut_off(monotonic_ms);
        }
        let mut unable = self.ability.unable();
        if mutant::is(Mutant::UnableUnsaid) {
            unable.clear();
        }
        let is_due = self.said.as_ref().is_none_or(|said| {
            let is_time = monotonic_ms >= said.at_ms.saturating_add(self.every_ms);
            is_time || said.unable != unable || differs(&said.shards, &shards)
        });
        if is_due {
            self.say(&shards, &unable);
            self.said = Some(Said { at_ms: monotonic_ms, shards, unable });
        }
    }

    /// The shards that it has said it cannot open ([`WorkerStatus::unable`]).
    pub fn unable(&self) -> BTreeSet<ShardId> {
        self.said.iter().flat_map(|said| said.unable.keys().cloned()).collect()
    }

    /// Reports that it leaves, or its last word, at once.
    pub fn report_now(&mut self, shards: Statuses, monotonic_ms: u64) {
        self.said = None;
        self.report(shards, &BTreeSet::new(), monotonic_ms);
    }

    fn say(&mut self, shards: &Statuses, unable: &BTreeMap<ShardId, u64>) {
        self.sequence += 1;
        let Profile { worker, zone, node, capacity, stages, version } = self.profile.clone();
        // The first word, and the last ones: meanwhile those who own them say more.
        let is_to_know = self.said.is_none() || self.leaving;
        let known = self.known.iter().filter(|(id, _)| is_to_know && !shards.contains_key(id)).map(known_of).collect();
        let status = WorkerStatus {
            worker,
            incarnation: self.incarnation.clone(),
            sequence: self.sequence,
            generation: self.generation,
            zone,
            node,
            started_ms: self.started_ms,
            capacity,
            leaving: self.leaving,
            stages,
            shards: with_unable(shards.clone(), unable),
            control_offset: self.listener.control_offset(),
            version,
            known,
            unable: unable.keys().cloned().collect(),
            knows_markers: true,
        };
        let (payload, unsaid) = (message::encode_status(&status), self.unsaid.clone());
        let topic = &self.status_topic;
        let outgoing = Outgoing { topic, partition: 0, key: status.worker.as_bytes(), payload: &payload, headers: &[] };
        let note = move |sent: Result<u64, LogError>| {
            *unsaid.lock().unwrap_or_else(PoisonError::into_inner) = sent.err();
        };
        self.producer.send(outgoing, Box::new(note));
    }
}

fn known_of((id, unread): (&ShardId, &Vec<Unread>)) -> (ShardId, Vec<Unread>) {
    (id.clone(), unread.iter().map(Unread::for_good).collect())
}

/// Whoever looks at one that is passed over is told why others have its shards.
fn with_unable(mut shards: Statuses, unable: &BTreeMap<ShardId, u64>) -> Statuses {
    for (id, patience_ms) in unable {
        // One that owns it all the same, because nobody is able, works.
        let is_passed_over = |shard: &&mut ShardStatus| shard.role != Role::Owner && shard.condition.is_empty();
        if let Some(shard) = shards.get_mut(id).filter(is_passed_over) {
            let seconds = patience_ms / 1_000;
            shard.condition =
                format!("could not be opened here: others go before until it has had no trouble for {seconds} s");
        }
    }
    shards
}

/// Something that others act on.
fn differs(before: &Statuses, now: &Statuses) -> bool {
    let acted_on = |statuses: &Statuses| -> Vec<_> {
        let of_shard = |(id, status): (&ShardId, &ShardStatus)| {
            (id.clone(), status.role, status.epoch, status.prepared.clone(), status.condition.is_empty())
        };
        statuses.iter().map(of_shard).collect()
    };
    acted_on(before) != acted_on(now)
}
