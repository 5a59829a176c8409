//! The reaction role: a thread per partition that reads mutations, and a few that write documents.
//!
//! The logic is `stages::reaction`; this only moves values: frames in, bulks out, outcomes back, requests for whole documents to
//! `exchange.action`, and the position into the stage's changelog once a second and at the end. After a crash some mutations are written
//! again, which their guard makes harmless (I8).
//!
//! Of a tenant that is erased, the action stage has sent tombstones before this stage hears of it: so its documents are gone when everything has been written that was in the topic then, and that is reported.
//!
//! Who has a partition is the plan's word alone: this stage needs no lock, and two processes on one partition do no harm (I8). So there is nothing to follow, and a standby has nothing open
//! until a partition is about to be handed off to it: then it opens all that it needs, reads ahead from the position that is recorded by then, and reports itself as prepared. What it has read when
//! the partition is its own, and is before the position recorded last, it passes over.

mod ahead;
mod turn;

use self::ahead::Ready;
use self::turn::Turn;
use super::backoff::Backoff;
use super::desk::{Condition, Desk, EndOfThread};
use super::observe::Observer;
use super::pace::Pace;
use super::rules::{Edition, Rulebook};
use super::stores::Creation;
use super::system::Stop;
use super::writers::{Outcomes, Writers};
use millstream_model::frame::{self, Content, FrameWriter};
use millstream_model::key::{GROUPS, shard_of};
use millstream_model::proto::{Batch, Changelog, Mutation, Position, changelog::Record};
use millstream_model::reject::{About, Reason, Refusal, Reject};
use millstream_model::{id::hex, trace};
use millstream_plan::status::{Role, ShardStatus};
use millstream_plan::view::{Bounds, Duty};
use millstream_shard::ShardError;
use millstream_shard::changelog;
use millstream_shard::documents::DocumentStore;
use millstream_shard::hearing::Listened;
use millstream_shard::log::{Consumer, LogError, Outgoing, Producer, TopicPartition};
use millstream_shard::runtime::Environment;
use millstream_stages::reaction::{Decided, Reaction};
use millstream_stages::{StageSpan, reject};
use prost::Message as _;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bounds of the reaction stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReactionLimits {
    /// Documents per bulk write.
    pub bulk: usize,
    /// Bulk writes in flight per partition.
    pub in_flight: usize,
    /// Undecided mutations per partition; reading pauses above.
    pub backlog: usize,
    /// The same in encoded bytes: a mutation may be anything from a hundred bytes to a whole document. In memory it is held about twice, as it
    /// came and in the fold that waits.
    pub backlog_bytes: usize,
    /// How long the document store may take next to nothing before it is looked at from the beginning: as long as one that cannot open a partition is waited for.
    pub struggles: Duration,
}

impl Default for ReactionLimits {
    fn default() -> ReactionLimits {
        let struggles = Duration::from_millis(Bounds::default().unable_ms);
        ReactionLimits { bulk: 500, in_flight: 2, backlog: 50_000, backlog_bytes: 64 << 20, struggles }
    }
}

/// Collections of documents, one for each kind of entity.
pub const COLLECTIONS: [&str; 2] = ["users", "devices"];
/// How long a poll waits when nothing is in flight, when it is about to be handed off, and when something is in flight.
const IDLE: Duration = Duration::from_millis(100);
const LEAVING: Duration = Duration::from_millis(10);
const BUSY: Duration = Duration::from_millis(2);
/// Frames per poll: the backlog outgrows its bound by so many at most.
const MESSAGES: usize = 8;
/// How often the position is recorded: what is repeated after a crash.
const RECORD_EVERY: Duration = Duration::from_secs(1);

/// Everything a partition's thread needs.
pub struct ReactionThread {
    /// Which partition, and who is to work on it.
    pub desk: Arc<Desk>,
    /// The pipeline's topics.
    pub creation: Arc<Creation>,
    /// Where documents go.
    pub documents: Arc<dyn DocumentStore>,
    /// Which tenants' documents are to go.
    pub rules: Arc<Rulebook>,
    /// Bounds.
    pub limits: ReactionLimits,
    /// Whom to tell.
    pub observer: Arc<dyn Observer>,
    /// When to end.
    pub stop: Arc<Stop>,
}

/// What a standby of this stage that has everything open reports as prepared.
const AT_ONCE: &str = "at-once";
/// How long a partition without a duty waits for one; it is woken when there is one.
const NO_DUTY: Duration = Duration::from_secs(5);
/// How often one that is about to be this process's follows the position that its owner records, or tries again to open what it needs.
const KEEP_UP: Duration = Duration::from_secs(1);

impl ReactionThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn start(self, environment: &Environment) -> std::io::Result<JoinHandle<()>> {
        let (environment, shard) = (environment.clone(), self.desk.shard);
        let ReactionThread { desk, creation, documents, rules, limits, observer, stop } = self;
        let failed = Cell::new(false);
        let work = Work { desk, shard, environment, creation, documents, rules, limits, observer, stop, failed };
        std::thread::Builder::new().name(format!("reaction-{shard}")).spawn(move || work.run())
    }
}

/// A partition's thread at work.
struct Work {
    desk: Arc<Desk>,
    shard: u32,
    environment: Environment,
    creation: Arc<Creation>,
    documents: Arc<dyn DocumentStore>,
    rules: Arc<Rulebook>,
    limits: ReactionLimits,
    observer: Arc<dyn Observer>,
    stop: Arc<Stop>,
    /// The partition was this process's, documents could not be written then, and have not been found to be since.
    failed: Cell<bool>,
}

impl Work {
    fn run(&self) {
        let (mut backoff, mut ready) = (Backoff::default(), None);
        let ended = EndOfThread(&self.desk);
        while !self.stop.is_stopped() {
            self.desk.steps();
            let order = self.desk.order();
            if !is_at_work(&order.duty) {
                let pause;
                (ready, pause) = match self.stand_by(&order.duty, ready) {
                    Ok(None) => (None, NO_DUTY),
                    Ok(ready) => {
                        backoff.reset();
                        (ready, KEEP_UP)
                    }
                    Err(error) => {
                        tracing::warn!(stage = "reaction", shard = self.shard, %error, "cannot get ready for a partition");
                        let pause = backoff.after(&error);
                        // Another one may be able to.
                        self.report(ShardStatus::default());
                        self.desk.fail(error);
                        (None, pause)
                    }
                };
                self.desk.wait_for_other(&order, pause);
                continue;
            }
            let Err(error) = self.run_once(ready.take(), &mut backoff) else { continue };
            match &error {
                ShardError::Reopen(message) | ShardError::InDoubt(message) | ShardError::Away(message) => {
                    tracing::warn!(stage = "reaction", shard = self.shard, message, "partition is opened again");
                }
                ShardError::Stopped(message) => {
                    tracing::error!(stage = "reaction", shard = self.shard, message, "partition stopped");
                }
            }
            let pause = backoff.after(&error);
            self.report(ShardStatus::default());
            self.desk.fail(error);
            self.desk.wait_for_other_duty(&order.duty, pause);
        }
        drop(ended);
    }

    /// What this process says of a shard ends when another has it.
    fn report(&self, status: ShardStatus) {
        if self.desk.report(status) {
            self.observer.lost("reaction", self.shard);
        }
    }

    /// That it has the partition, and how far it is.
    fn report_owner(&self, turn: &Turn) {
        let (control_offset, changelog_offset) = (turn.goes_by, turn.recorded.unwrap_or_default());
        self.report(ShardStatus { role: Role::Owner, control_offset, changelog_offset, ..ShardStatus::default() });
    }

    /// What is ready stays so for as long as it is wanted.
    fn stand_by(&self, duty: &Duty, ready: Option<Ready>) -> Result<Option<Ready>, ShardError> {
        if *duty == Duty::Nothing {
            self.report(ShardStatus::default());
            self.desk.set(Condition::Closed);
            return Ok(None);
        }
        if !is_about_to_come(duty) {
            self.report(standby(None));
            self.desk.set(Condition::Following);
            return Ok(None);
        }
        let ready = match ready {
            Some(mut ready) => {
                ready.keep_up(self)?;
                ready
            }
            None => {
                if self.desk.is_owner() {
                    self.report(standby(None));
                }
                match self.prepare() {
                    Ok(()) => Ready::open(self)?,
                    Err(error) if self.failed.get() => return Err(error),
                    Err(error) => return Ok(self.takes_it_all_the_same(error)),
                }
            }
        };
        self.report(standby(Some(AT_ONCE)));
        self.desk.followed();
        Ok(Some(ready))
    }

    /// Where documents cannot be written, the owner can hardly write them either: the store may want a new password, which a process gets when its Pod is replaced, and that waits for the handoff.
    /// Should it be this process alone, it is passed over once it owns the partition and fails, and does not take it again before it can: once for each partition, because a process with the old
    /// password may have to take several, each from another one that is replaced.
    fn takes_it_all_the_same(&self, error: ShardError) -> Option<Ready> {
        tracing::warn!(stage = "reaction", shard = self.shard, %error, "documents cannot be written; the partition is taken all the same");
        self.report(standby(Some(AT_ONCE)));
        self.desk.fail(error);
        None
    }

    fn prepare(&self) -> Result<(), ShardError> {
        self.documents.prepare(&COLLECTIONS)?;
        self.failed.set(false);
        Ok(())
    }

    /// One that fails does not take the partition again before it can.
    fn prepare_as_owner(&self) -> Result<(), ShardError> {
        self.prepare().inspect_err(|_| self.failed.set(true))
    }

    fn mutations(&self) -> TopicPartition {
        TopicPartition::new(self.environment.topics.mutations.clone(), self.shard)
    }

    /// The process goes on, and this partition is its business.
    fn goes_on(&self) -> bool {
        !self.stop.is_stopped() && is_at_work(&self.desk.order().duty)
    }

    fn run_once(&self, ready: Option<Ready>, backoff: &mut Backoff) -> Result<(), ShardError> {
        let ready = match ready {
            Some(ready) => ready.up_to_date(self)?,
            None => {
                self.prepare_as_owner()?;
                Ready::open(self)?
            }
        };
        let Ready { positions, recorded, held, end, consumer, producer, writers, .. } = ready;
        let mut turn = Turn::new(positions.topic_id.clone(), recorded, end, producer, Pace::new(self.limits.bulk));
        let start = turn.start;
        self.desk.note_passed(recorded.iter().map(|offset| self.position(&turn.topic_id, *offset)).collect());
        // A client of its own, which would go on reading what is recorded; its end may take a moment.
        drop(self.environment.executor.run(Box::new(move || drop(positions))));
        if let Some(held) = held.filter(|held| held.offset >= start) {
            turn.take(held.offset, held.timestamp_ms, &held.payload)?;
        }
        self.report_owner(&turn);
        self.work(consumer, &writers, &mut turn, &mut || {
            backoff.reset();
            tracing::info!(stage = "reaction", shard = self.shard, start, "partition is open");
            self.desk.set(Condition::Running);
        })?;
        // Not after a failure: what failed may have left the reaction without being decided, and must be read again.
        self.record(&mut turn);
        Ok(())
    }

    /// Calls `runs` once, when it really does.
    fn work(
        &self,
        mut consumer: Box<dyn Consumer>,
        writers: &Writers,
        turn: &mut Turn,
        runs: &mut dyn FnMut(),
    ) -> Result<(), ShardError> {
        loop {
            self.desk.steps();
            if self.desk.take_deaf() {
                consumer.retire();
                return Err(ShardError::Reopen("its mutations are to be read with another client".to_owned()));
            }
            let stopping = !self.goes_on();
            if stopping && turn.in_flight == 0 {
                return Ok(());
            }
            if !stopping && self.has_room(&turn.reaction) {
                if self.poll(&mut *consumer, turn)? && !std::mem::replace(&mut turn.runs, true) {
                    runs();
                }
            } else if turn.in_flight == 0 {
                self.stop.wait(BUSY.max(IDLE / 4));
            } else if let Ok(outcomes) = writers.outcomes().recv_timeout(IDLE) {
                self.decide(outcomes, turn)?;
            }
            for outcomes in writers.outcomes().try_iter() {
                self.decide(outcomes, turn)?;
            }
            if !stopping {
                self.ask(turn)?;
            }
            while !stopping && turn.in_flight < self.limits.in_flight {
                let bulk = turn.reaction.take(turn.pace.bulk(), turn.ms());
                if bulk.is_empty() {
                    break;
                }
                turn.in_flight += 1;
                writers.submit(bulk)?;
            }
            self.observer.backlog(self.shard, turn.reaction.backlog());
            if turn.recorded_at.is_none_or(|at| at.elapsed() >= RECORD_EVERY) {
                self.record(turn);
                self.carry_out(turn);
            }
        }
    }

    fn has_room(&self, reaction: &Reaction) -> bool {
        reaction.backlog() < self.limits.backlog && reaction.backlog_bytes() < self.limits.backlog_bytes
    }

    /// Reads on; tells whether something came that can be read, or there is nothing more to read.
    fn poll(&self, consumer: &mut dyn Consumer, turn: &mut Turn) -> Result<bool, ShardError> {
        let wait = match self.desk.order().duty {
            _ if turn.reaction.backlog() > 0 => BUSY,
            Duty::Release { .. } => LEAVING,
            _ => IDLE,
        };
        let mut failed = None;
        let messages = consumer.poll(MESSAGES, wait, &mut |message| {
            if failed.is_none() && !message.is_empty() && message.offset >= turn.start {
                failed = turn.take(message.offset, message.timestamp_ms, message.payload).err();
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        turn.looks += u64::from(messages < MESSAGES);
        let position = consumer.positions().first().copied();
        let read_to = position.map(|offset| (self.mutations(), offset)).into_iter().collect();
        self.desk.note_listened(Listened { read_to, looks: turn.looks });
        if let Some(offset) = position.filter(|_| messages == 0 && turn.reaction.backlog() == 0) {
            turn.read_to = offset;
            self.desk.works();
            self.desk.note_reads_from(vec![self.position(&turn.topic_id, offset)]);
        }
        Ok(messages > 0 || position.is_some_and(|position| position >= turn.end))
    }

    /// Asks the homes of documents with a gap for the whole (I8). What is covered by the answers is decided only when the log has the requests.
    fn ask(&self, turn: &mut Turn) -> Result<(), ShardError> {
        let requests = turn.reaction.requests(frame::MAX_RECORDS, turn.ms());
        if requests.is_empty() {
            return Ok(());
        }
        let topics = &self.environment.topics;
        let mut frames: BTreeMap<u32, FrameWriter> = BTreeMap::new();
        for (_, request) in &requests {
            let group = u16::try_from(request.group).unwrap_or(GROUPS).min(GROUPS - 1);
            let frame = frames.entry(shard_of(group, topics.shards));
            frame.or_insert_with(|| FrameWriter::new(Content::Exchange)).push(request);
        }
        for (partition, frame) in frames {
            let payload = frame.finish();
            let message = Outgoing { topic: &topics.exchange, partition, key: &[], payload: &payload, headers: &[] };
            send_and_wait(&*turn.producer, message)?;
        }
        let covered = turn.reaction.asked(requests.iter().map(|(key, _)| key));
        let (documents, mutations) = (requests.len(), covered.len());
        tracing::warn!(shard = self.shard, documents, mutations, "documents have gaps; asked for the whole of each");
        Ok(())
    }

    fn decide(&self, outcomes: Outcomes, turn: &mut Turn) -> Result<(), ShardError> {
        turn.in_flight -= 1;
        self.judge(&outcomes, turn)?;
        let now_ms = self.environment.clock.now_ms();
        for (key, written) in outcomes {
            self.observer.written(&written);
            for decided in turn.reaction.complete(&key, written, turn.ms()) {
                match decided {
                    Decided::Stored(mutation) => self.stored(&mutation, now_ms),
                    Decided::Covered(_) => {}
                    Decided::Rejected(mutation, message) => self.reject(&mutation, message, &*turn.producer)?,
                }
            }
        }
        Ok(())
    }

    /// A store that takes nearly nothing is a condition until it takes something. When that lasts, and it cannot be reached from here at all, the partition is for somebody else who can.
    fn judge(&self, outcomes: &Outcomes, turn: &mut Turn) -> Result<(), ShardError> {
        match turn.pace.note(outcomes) {
            Some(why) => {
                if turn.struggles_since.is_none() {
                    tracing::warn!(
                        shard = self.shard,
                        why,
                        "the document store takes next to nothing; writes are repeated"
                    );
                }
                self.desk.set(Condition::Away(format!(
                    "the document store takes next to nothing, writes are repeated: {why}"
                )));
                if turn.struggles_since.get_or_insert_with(Instant::now).elapsed() > self.limits.struggles {
                    self.prepare_as_owner()?;
                    turn.struggles_since = Some(Instant::now());
                }
            }
            None if turn.struggles_since.take().is_some() => {
                tracing::info!(shard = self.shard, "the document store takes writes again");
                self.desk.set(Condition::Running);
                self.desk.works();
            }
            None => self.desk.works(),
        }
        Ok(())
    }

    fn stored(&self, mutation: &Mutation, now_ms: u64) {
        self.observer.fresh(now_ms.saturating_sub(mutation.accepted_ms));
        if let Some(parent) = mutation.trace.as_ref().filter(|context| trace::is_sampled(context)) {
            let mut seed = parent.span_id.clone();
            seed.extend_from_slice(mutation.id.as_bytes());
            let span = StageSpan {
                parent: parent.clone(),
                span_id: millstream_model::id::content_hash(&seed).to_be_bytes(),
                name: format!("reaction write {}", mutation.collection),
                tenant: mutation.tenant.clone(),
            };
            self.observer.span("reaction", self.shard, &span, mutation.accepted_ms, now_ms);
        }
    }

    /// The reject's id is the mutation's own, so that one that is written again after a crash is recognised.
    fn reject(&self, mutation: &Mutation, message: String, producer: &dyn Producer) -> Result<(), ShardError> {
        let (tenant, document) = (&mutation.tenant, &mutation.id);
        let trace_id = trace::sampled_id(mutation.trace.as_ref());
        tracing::warn!(tenant, document, trace_id, message, "document store refuses a mutation");
        let message_id = hex(&mutation.record_id);
        let about = About {
            tenant: &mutation.tenant,
            source: "mutation",
            kind: &mutation.collection,
            stage: "reaction",
            message_id: &message_id,
            time_ms: mutation.accepted_ms,
        };
        let refusal = Refusal::field(Reason::DocumentRefused, mutation.id.as_str(), message);
        let rejected = Reject::new(format!("{message_id}-{}", mutation.revision), &about, refusal);
        let rejected = rejected.with_original(&mutation.encode_to_vec());
        let message = reject::message(&rejected, None, mutation.group);
        let headers: Vec<(&str, &str)> = message.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let rejects = &self.environment.topics.rejects;
        send_and_wait(
            producer,
            Outgoing {
                topic: rejects,
                partition: self.shard,
                key: &message.key,
                payload: &message.payload,
                headers: &headers,
            },
        )?;
        self.observer.rejected("reaction", &mutation.tenant, Reason::DocumentRefused);
        Ok(())
    }

    fn record_partition(&self) -> TopicPartition {
        TopicPartition::new(self.environment.topics.changelog("reaction"), self.shard)
    }

    /// Reports what has been carried out of the erasures of tenants.
    fn carry_out(&self, turn: &mut Turn) {
        let Edition { without_documents, control_offset, .. } = self.rules.edition();
        if turn.erasing.as_ref().is_none_or(|(of, _)| *of != without_documents) {
            // Without an answer it is asked again.
            // With what is decided already, and cannot be read yet.
            let Some(end) =
                self.environment.log.ends(&[self.mutations()]).ok().and_then(|ends| Some(ends.first()?.end))
            else {
                return;
            };
            turn.erasing = Some((without_documents, end));
        }
        let passed = turn.reaction.position().max(turn.read_to);
        let is_done = turn.erasing.as_ref().is_some_and(|(_, end)| passed >= *end);
        if is_done && control_offset != turn.goes_by {
            turn.goes_by = control_offset;
            self.report_owner(turn);
        }
    }

    fn position(&self, topic_id: &str, offset: u64) -> Position {
        let topic = self.environment.topics.mutations.to_string();
        Position { topic, partition: self.shard, offset, topic_id: topic_id.to_owned() }
    }

    fn record(&self, turn: &mut Turn) {
        turn.recorded_at = Some(Instant::now());
        let position = turn.reaction.position();
        if turn.undecided.decide_before(position) {
            self.desk.note_processed(vec![turn.undecided.since_ms]);
        }
        if turn.recorded == Some(position) {
            return;
        }
        let topics = &self.environment.topics;
        let batch_inputs = vec![self.position(&turn.topic_id, position)];
        let batch = Batch { inputs: batch_inputs.clone(), part: 1, parts: 1, ..Batch::default() };
        let payload = changelog::encode(&Changelog { record: Some(Record::Batch(batch)) });
        let topic = topics.changelog("reaction");
        let message =
            Outgoing { topic: &topic, partition: self.shard, key: b"position", payload: &payload, headers: &[] };
        match send_and_wait(&*turn.producer, message) {
            Ok(()) => {
                turn.recorded = Some(position);
                self.desk.note_passed(batch_inputs);
                self.report_owner(turn);
            }
            Err(error) => {
                tracing::warn!(shard = self.shard, %error, "position not recorded; some writes may be repeated")
            }
        }
    }
}

fn standby(prepared: Option<&str>) -> ShardStatus {
    ShardStatus { role: Role::Standby, prepared: prepared.map(str::to_owned), ..ShardStatus::default() }
}

/// A partition that is another process's, and is to be handed off to this one.
fn is_about_to_come(duty: &Duty) -> bool {
    matches!(duty, Duty::Standby { soon: true, .. })
}

/// An owner of this stage works until another one has said that it would.
fn is_at_work(duty: &Duty) -> bool {
    matches!(duty, Duty::Own | Duty::TakeOver | Duty::Release { to: None })
}

fn send_and_wait(producer: &dyn Producer, message: Outgoing<'_>) -> Result<(), ShardError> {
    let (done, waiting) = channel();
    producer.send(message, Box::new(move |result: Result<u64, LogError>| drop(done.send(result))));
    waiting.recv().map_err(|_| ShardError::Reopen("the log's producer is gone".into()))??;
    Ok(())
}

#[cfg(test)]
mod tests;
