//! A shard at work: batch after batch.
//!
//! One batch: poll the inputs up to a record, byte and time bound → load the needed entities at once → run the stage over committed state and
//! the batch's overlay → one transaction with outputs and changelog record → commit → only then the overlay becomes state. The
//! inputs' next offsets are in the changelog record, so that state, outputs and position move together (I1). After any error of the transaction
//! the shard is dropped and opened again, which reads what was really committed: an unknown outcome is found out, never guessed.

use crate::cache::{Cache, Change, Frozen};
use crate::changelog::{self, BatchHeader};
use crate::follower::Follower;
use crate::log::{Consumer, Log, Message, Outgoing, Start, TopicPartition, Transactional};
use crate::output::Output;
use crate::ownership::{self, Claimant};
use crate::state::{StateStore, StoreError};
use crate::topics::Topics;
use crate::{Clock, Executor, ShardError};
use millstream_model::frame::{self, Content};
use millstream_model::id::content_hash;
use millstream_model::key::{Kind, StateKey, groups_of};
use millstream_model::proto::{Position, Stamp, StatePosition, Usage};
use millstream_model::reject::Reason;
use millstream_stages::{At, DecodeError, Input, Outbox, Stage, StageSpan, State};
use prost::Message as _;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;

/// Bounds of a shard's batches and memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A batch is closed at this many records (whole frames, so a little more).
    pub batch_records: usize,
    /// A batch is closed at this many bytes of input.
    pub batch_bytes: usize,
    /// A batch is closed when it is this old.
    pub batch_time: Duration,
    /// A batch is closed when no input has come for this long: what waits is not worth waiting for.
    pub linger: Duration,
    /// Memory for state.
    pub cache_bytes: usize,
    /// Changed state is written to the local store when it is this large; bounds the replay after a crash.
    pub dirty_bytes: usize,
    /// A batch's time is at most this far ahead of the newest append time of its inputs (I7).
    pub clock_slack_ms: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            batch_records: 10_000,
            batch_bytes: 4 << 20,
            batch_time: Duration::from_millis(50),
            linger: Duration::from_millis(5),
            cache_bytes: 64 << 20,
            dirty_bytes: 8 << 20,
            clock_slack_ms: 1000,
        }
    }
}

/// What a shard stands on.
#[derive(Clone)]
pub struct Environment {
    /// The log.
    pub log: Arc<dyn Log>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Background work.
    pub executor: Arc<dyn Executor>,
    /// The pipeline's topics.
    pub topics: Topics,
    /// Who acquires shards.
    pub claimant: Claimant,
}

/// How long a poll waits for the first record of a batch.
const IDLE: Duration = Duration::from_millis(100);
/// Messages of a batch's first poll, and of any: each may be a frame of 1 MB and 1,000 records, so that a batch outgrows its bounds only a little.
const FIRST_MESSAGES: usize = 4;
const MOST_MESSAGES: usize = 64;
/// A flush is waited for when so many times the bound has become dirty meanwhile.
const MOST_DIRTY: usize = 4;

/// What a batch came to, for metrics and traces.
#[derive(Debug, Default)]
pub struct Report {
    /// Records processed.
    pub records: usize,
    /// When the batch began and when its commit returned, milliseconds since 1970.
    pub began_ms: u64,
    /// See `began_ms`.
    pub committed_ms: u64,
    /// Spans of sampled records.
    pub spans: Vec<StageSpan>,
    /// Rejects by tenant and reason.
    pub reasons: Vec<(String, Reason)>,
    /// The new sums of the tenants that the batch concerned.
    pub usage: BTreeMap<String, Usage>,
}

/// A record with its place; bytes that are none, with why.
type Decoded<R> = (At, Result<R, (DecodeError, Vec<u8>)>);

struct Read<R> {
    records: Vec<Decoded<R>>,
    bytes: usize,
    newest_append_ms: u64,
    stamp_time_ms: u64,
}

/// A shard that this process owns.
pub struct Shard<S: Stage> {
    stage: S,
    shard: u32,
    environment: Environment,
    limits: Limits,
    inputs: Vec<(Input, TopicPartition)>,
    cache: Cache<S::Value>,
    store: Arc<dyn StateStore>,
    consumer: Box<dyn Consumer>,
    producer: Box<dyn Transactional>,
    /// Its `changelog_offset` was the end of the changelog before a batch that we then committed: nobody else can have written in between, so
    /// following from there meets everything that may not be in the local store, and everything that others write later.
    position: StatePosition,
    /// Of the inputs.
    topic_ids: Vec<String>,
    usage: BTreeMap<String, Usage>,
    out: Outbox,
    flushing: Option<Receiver<Result<Frozen<S::Value>, StoreError>>>,
}

impl<S: Stage> Shard<S> {
    /// Opens a shard: follows its changelog from the local state, takes it over, and reads its inputs from where the last committed
    /// batch ended.
    ///
    /// # Errors
    /// [`ShardError`].
    pub fn open(
        stage: S,
        shard: u32,
        environment: Environment,
        limits: Limits,
        store: Arc<dyn StateStore>,
    ) -> Result<Shard<S>, ShardError> {
        let (log, topics) = (&*environment.log, &environment.topics);
        let changelog = TopicPartition::new(topics.changelog(stage.name()), shard);
        let mut follower = Follower::open(log, changelog, store.clone())?;
        let (claimant, executor) = (&environment.claimant, &*environment.executor);
        let lease = ownership::take_over(log, topics, stage.name(), shard, claimant, &mut follower, executor)?;
        let position = follower.position().clone();
        let inputs: Vec<(Input, TopicPartition)> = inputs_of(stage.name(), topics, shard);
        let topic_ids = inputs.iter().map(|(_, at)| log.topic_id(&at.topic)).collect::<Result<Vec<_>, _>>()?;
        let mut starts = Vec::with_capacity(inputs.len());
        for ((_, at), topic_id) in inputs.iter().zip(&topic_ids) {
            starts.push((at.clone(), start_of(&position, at, topic_id)?));
        }
        let consumer = log.consumer(&starts)?;
        let usage = load_usage(&*store, shard, topics.shards)?;
        Ok(Shard {
            cache: Cache::new(store.clone(), limits.cache_bytes),
            stage,
            shard,
            limits,
            inputs,
            store,
            consumer,
            producer: lease.producer,
            position: StatePosition { epoch: lease.epoch, slot: lease.slot, ..position },
            topic_ids,
            usage,
            out: Outbox::default(),
            flushing: None,
            environment,
        })
    }

    /// Runs one batch; `None` when no input came.
    ///
    /// # Errors
    /// [`ShardError`]: drop the shard and open it again, or stop.
    pub fn run_batch(&mut self) -> Result<Option<Report>, ShardError> {
        let behind = self.cache.dirty_bytes() > self.limits.dirty_bytes.saturating_mul(MOST_DIRTY);
        self.collect_flush(behind)?;
        let read = self.read()?;
        if read.records.is_empty() {
            return Ok(None);
        }
        let began_ms = self.environment.clock.now_ms();
        let is_due = self.flushing.is_none() && self.cache.dirty_bytes() >= self.limits.dirty_bytes;
        let safe_offset = if is_due { Some(self.changelog_end()?) } else { None };
        let slack = read.newest_append_ms + self.limits.clock_slack_ms;
        let time_ms = self.position.time_ms.max(began_ms.min(slack));
        let count = read.records.len();
        let stamp_time_ms = read.stamp_time_ms;
        let result = self.transact(read, time_ms, stamp_time_ms);
        if result.is_err() {
            self.cache.discard();
        }
        let usage = result?;
        if let Some(safe_offset) = safe_offset {
            self.position.changelog_offset = safe_offset;
            self.flush();
        }
        Ok(Some(Report {
            records: count,
            began_ms,
            committed_ms: self.environment.clock.now_ms(),
            spans: std::mem::take(&mut self.out.spans),
            reasons: std::mem::take(&mut self.out.reasons),
            usage,
        }))
    }

    fn read(&mut self) -> Result<Read<S::Record>, ShardError> {
        let mut read =
            Read { records: Vec::new(), bytes: 0, newest_append_ms: 0, stamp_time_ms: self.position.stamp_time_ms };
        let clock = self.environment.clock.clone();
        let mut wait = IDLE;
        let mut began = None;
        let mut at_once = FIRST_MESSAGES;
        loop {
            let (stage, inputs, shard, topics) = (&self.stage, &self.inputs, self.shard, &self.environment.topics);
            let messages = self.consumer.poll(at_once, wait, &mut |message| {
                take_message(stage, inputs, shard, topics, &message, &mut read);
            })?;
            if messages == 0 {
                return Ok(read);
            }
            let began = *began.get_or_insert_with(|| clock.now_ms());
            let age = Duration::from_millis(clock.now_ms().saturating_sub(began));
            let full = read.records.len() >= self.limits.batch_records || read.bytes >= self.limits.batch_bytes;
            if full || age >= self.limits.batch_time {
                return Ok(read);
            }
            let is_small =
                read.bytes * 8 < self.limits.batch_bytes && read.records.len() * 8 < self.limits.batch_records;
            at_once = if is_small { (at_once * 2).min(MOST_MESSAGES) } else { FIRST_MESSAGES };
            wait = self.limits.linger.min(self.limits.batch_time.saturating_sub(age));
        }
    }

    /// Gives the new sums of the tenants that the batch concerned.
    fn transact(
        &mut self,
        read: Read<S::Record>,
        time_ms: u64,
        stamp_time_ms: u64,
    ) -> Result<BTreeMap<String, Usage>, ShardError> {
        self.prefetch(&read.records)?;
        self.producer.begin()?;
        let mut output = Output::new(self.environment.topics.clone());
        for (at, record) in read.records {
            let at = At { batch_ms: time_ms, ..at };
            match record {
                Ok(record) => self.stage.process(record, &at, &mut self.cache, &mut self.out)?,
                Err((error, bytes)) => self.stage.unreadable(error, &bytes, &at, &mut self.out)?,
            }
            output.drain(&mut self.out, &mut *self.producer)?;
        }
        output.finish(&mut *self.producer)?;
        let (usage, usage_changes) = self.summed_usage();
        let state_changes = self.cache.changes()?;
        let header = BatchHeader {
            number: self.position.batch_number + 1,
            time_ms,
            epoch: self.position.epoch,
            stamp_time_ms,
            inputs: self.next_inputs(),
        };
        // The cache needs the changes after the commit, the changelog record before it: state changes are encoded once and shared.
        let digest = self.send_changelog(&header, &state_changes, usage_changes)?;
        self.producer.commit()?;
        self.cache.commit(&state_changes);
        self.usage.extend(usage.iter().map(|(tenant, sums)| (tenant.clone(), *sums)));
        self.position = StatePosition {
            digest,
            batch_number: header.number,
            time_ms,
            stamp_time_ms,
            inputs: header.inputs,
            ..std::mem::take(&mut self.position)
        };
        Ok(usage)
    }

    fn prefetch(&mut self, records: &[Decoded<S::Record>]) -> Result<(), ShardError> {
        let mut keys = Vec::new();
        for record in records.iter().filter_map(|(_, record)| record.as_ref().ok()) {
            self.stage.keys(record, &mut keys);
        }
        Ok(self.cache.prefetch(&mut keys)?)
    }

    fn send_changelog(
        &mut self,
        header: &BatchHeader,
        state: &[Change],
        usage: Vec<Change>,
    ) -> Result<u64, ShardError> {
        let copy =
            |change: &Change| Change { key: change.key.clone(), value: change.value.clone(), before: change.before };
        let changes = state.iter().map(copy).chain(usage).collect();
        let (records, digest) = changelog::records(header, changes, self.position.digest);
        let topic = self.environment.topics.changelog(self.stage.name());
        for record in &records {
            let payload = changelog::encode(record);
            self.producer.send(Outgoing {
                topic: &topic,
                partition: self.shard,
                key: &[],
                payload: &payload,
                headers: &[],
            })?;
        }
        Ok(digest)
    }

    /// Each changed tenant's new sums, and the changes that record them. They are kept under the shard's first key group.
    fn summed_usage(&mut self) -> (BTreeMap<String, Usage>, Vec<Change>) {
        let mut sums = BTreeMap::new();
        let mut changes = Vec::new();
        let group = groups_of(self.shard, self.environment.topics.shards).start;
        for (tenant, delta) in std::mem::take(&mut self.out.usage) {
            let old = self.usage.get(&tenant);
            let mut new = old.copied().unwrap_or_default();
            new += &delta;
            changes.push(Change {
                key: StateKey::new(group, &tenant, Kind::Usage, &[]),
                value: Some(new.encode_to_vec()),
                before: old.map_or(0, |old| content_hash(&old.encode_to_vec())),
            });
            sums.insert(tenant, new);
        }
        (sums, changes)
    }

    fn next_inputs(&self) -> Vec<Position> {
        let positions = self.consumer.positions();
        let inputs = self.inputs.iter().zip(&self.topic_ids).zip(positions);
        let position = |(((_, at), topic_id), offset): ((&(Input, TopicPartition), &String), u64)| Position {
            topic: at.topic.to_string(),
            partition: at.partition,
            offset,
            topic_id: topic_id.clone(),
        };
        inputs.map(position).collect()
    }

    /// Writes what is dirty to the local store, in the background.
    fn flush(&mut self) {
        let (frozen, store, position) = (self.cache.freeze(), self.store.clone(), self.position.clone());
        let usage = self.usage_entries();
        let (done, flushing) = channel();
        self.flushing = Some(flushing);
        self.environment.executor.run(Box::new(move || {
            let result = frozen.write(&*store, &usage, &position).map(|()| frozen);
            // Whoever waits for this may open the same store again at once.
            drop(store);
            // Nobody listens any more when the shard was closed.
            let _ = done.send(result);
        }));
    }

    fn changelog_end(&self) -> Result<u64, ShardError> {
        let changelog = TopicPartition::new(self.environment.topics.changelog(self.stage.name()), self.shard);
        Ok(self.environment.log.bounds(&changelog)?.1)
    }

    fn usage_entries(&self) -> Vec<(StateKey, Vec<u8>)> {
        let group = groups_of(self.shard, self.environment.topics.shards).start;
        let entry = |(tenant, usage): (&String, &Usage)| {
            (StateKey::new(group, tenant, Kind::Usage, &[]), usage.encode_to_vec())
        };
        self.usage.iter().map(entry).collect()
    }

    fn collect_flush(&mut self, wait: bool) -> Result<(), ShardError> {
        let Some(flushing) = &self.flushing else { return Ok(()) };
        let result = if wait { flushing.recv().map_err(|_| TryRecvError::Disconnected) } else { flushing.try_recv() };
        match result {
            Err(TryRecvError::Empty) => return Ok(()),
            Err(TryRecvError::Disconnected) => return Err(ShardError::Reopen("a flush was given up".into())),
            Ok(result) => self.cache.flushed(&result?),
        }
        self.flushing = None;
        Ok(())
    }

    /// Waits for background work and stores everything, so that the next opening has nothing to replay.
    ///
    /// # Errors
    /// [`ShardError`]; nothing is lost then, the changelog has it.
    pub fn close(&mut self) -> Result<(), ShardError> {
        self.collect_flush(true)?;
        let frozen = self.cache.freeze();
        Ok(frozen.write(&*self.store, &self.usage_entries(), &self.position)?)
    }

    /// The sums of each tenant, as committed.
    pub fn usage(&self) -> &BTreeMap<String, Usage> {
        &self.usage
    }

    /// Committed state, for look-ups between batches.
    pub fn state(&mut self) -> &mut dyn State<S::Value> {
        &mut self.cache
    }

    /// The stage.
    pub fn stage(&self) -> &S {
        &self.stage
    }

    /// Number of the last committed batch, and this owner's epoch.
    pub fn progress(&self) -> (u64, u64) {
        (self.position.batch_number, self.position.epoch)
    }
}

impl<S: Stage> Drop for Shard<S> {
    /// A flush that is under way must end before somebody opens the same local store again.
    fn drop(&mut self) {
        if let Some(flushing) = self.flushing.take() {
            let _ = flushing.recv();
        }
    }
}

fn inputs_of(stage: &str, topics: &Topics, shard: u32) -> Vec<(Input, TopicPartition)> {
    let at = |topic: &Arc<str>| TopicPartition::new(topic.clone(), shard);
    if stage == "unify" {
        vec![(Input::Ingress, at(&topics.ingress))]
    } else {
        vec![(Input::Actions, at(&topics.actions)), (Input::Exchange, at(&topics.exchange))]
    }
}

/// Where to read on. A topic that was deleted and made again holds other records under the same offsets (I6).
fn start_of(position: &StatePosition, at: &TopicPartition, topic_id: &str) -> Result<Start, ShardError> {
    let recorded = position.inputs.iter().find(|input| *input.topic == *at.topic && input.partition == at.partition);
    match recorded {
        None => Ok(Start::Earliest),
        Some(input) if input.topic_id == topic_id => Ok(Start::At(input.offset)),
        Some(input) => Err(ShardError::Stopped(format!(
            "{at} is not the topic that was read up to {}: it was deleted and created again; restore a savepoint",
            input.offset
        ))),
    }
}

fn load_usage(store: &dyn StateStore, shard: u32, shards: u32) -> Result<BTreeMap<String, Usage>, ShardError> {
    let mut usage = BTreeMap::new();
    let mut unreadable = None;
    store.scan(&groups_of(shard, shards).start.to_be_bytes(), &mut |key, value| {
        if let Some((tenant, Kind::Usage, _)) = key.parts() {
            match Usage::decode(value) {
                Ok(sums) => drop(usage.insert(tenant.to_owned(), sums)),
                Err(error) => unreadable = Some(ShardError::Stopped(format!("sums of {tenant}: {error}"))),
            }
        }
    })?;
    unreadable.map_or(Ok(usage), Err)
}

fn take_message<S: Stage>(
    stage: &S,
    inputs: &[(Input, TopicPartition)],
    shard: u32,
    topics: &Topics,
    message: &Message<'_>,
    read: &mut Read<S::Record>,
) {
    let Some((input, _)) = inputs.get(message.assignment) else { return };
    read.bytes += message.payload.len();
    read.newest_append_ms = read.newest_append_ms.max(message.timestamp_ms);
    if *input == Input::Ingress {
        read.stamp_time_ms = read.stamp_time_ms.max(message.timestamp_ms);
    }
    let at = At {
        input: *input,
        partition: shard,
        stamp: Stamp {
            time_ms: if *input == Input::Ingress { read.stamp_time_ms } else { message.timestamp_ms },
            offset: message.offset,
            index: 0,
        },
        batch_ms: 0,
        generation: topics.generation,
        shards: topics.shards,
    };
    let content = match input {
        Input::Ingress => Content::Envelope,
        Input::Actions => Content::Action,
        Input::Exchange => Content::Exchange,
    };
    let unreadable = |error: &dyn std::fmt::Display| {
        (DecodeError { input: *input, message: error.to_string() }, message.payload.to_vec())
    };
    match frame::read(message.payload, content) {
        Err(error) => read.records.push((at, Err(unreadable(&error)))),
        Ok(records) => {
            for (index, record) in (0..).zip(records) {
                let at = At { stamp: Stamp { index, ..at.stamp }, ..at };
                let record = match record {
                    Err(error) => Err(unreadable(&error)),
                    Ok(bytes) => stage.decode(*input, bytes).map_err(|error| (error, bytes.to_vec())),
                };
                read.records.push((at, record));
            }
        }
    }
}
