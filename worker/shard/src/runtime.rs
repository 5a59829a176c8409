//! A shard at work: batch after batch.
//!
//! One batch: poll the inputs up to a record, byte and time bound. Each frame is dealt with as it comes, while it is in the processor's caches: decode its
//! records → load the entities they need at once → run the stage over committed state and the batch's pending changes → send outputs in the open
//! transaction. At the end the changelog record follows, then the commit, and only then what is pending becomes state. The inputs' next offsets are in the
//! changelog record, so that state, outputs and position move together (I1). After any error of the transaction the shard is dropped and opened again, which
//! reads what was really committed: an unknown outcome is found out, never guessed.

use crate::batch::{Batch, FAR_AHEAD_MS, FAR_BACK_MS, Place};
use crate::cache::Cache;
use crate::changelog::{self, BatchHeader};
use crate::changes::Totals;
use crate::checkpoint::{Checkpointer, Checkpoints, Taken};
use crate::flush::{Flushes, Work};
use crate::hearing::Listened;
use crate::inputs::Inputs;
use crate::log::{Log, Outgoing, TopicPartition, Transactional};
use crate::memory::{Member, Pool, dirty_bytes};
use crate::mutant::{self, Mutant};
use crate::output::{self, Output};
use crate::ownership::{self, Claimant};
use crate::savepoint::{cuts, marker};
use crate::standby::{Acquired, Standby, Storing};
use crate::state::{Forget, StateStore};
use crate::sums::Sums;
use crate::sweep::Sweep;
use crate::topics::Topics;
use crate::waiting::Waiting;
use crate::written::{Origin, Written};
use crate::{Clock, Executor, ShardError, has_passed};
use millstream_model::key::{StateKey, groups_of};
use millstream_model::proto::{Position, Stamp, StatePosition, Usage};
use millstream_stages::{At, Input, Outbox, Rejected, Stage, StageSpan, State};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Bounds of a shard's batches and memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A batch is closed at this many records (whole frames, so a little more).
    pub batch_records: usize,
    /// A batch is closed at this many bytes of input.
    pub batch_bytes: usize,
    /// A batch is closed when it is this old. Under load it grows to [`BUSY_FACTOR`] times as much.
    pub batch_time: Duration,
    /// A batch is closed when no input has come for this long: what waits is not worth waiting for.
    pub linger: Duration,
    /// Memory for state.
    pub cache_bytes: usize,
    /// Changed state is written to the local store when it is this large, or after ten seconds; both bound the replay after a crash. As much again may change while
    /// it is written; then batches wait.
    pub dirty_bytes: usize,
    /// The process's memory for caches; when there is one, this shard's share of it replaces the two bounds above.
    pub pool: Option<Pool>,
    /// Partitions of the exchange that one batch writes to; what is for others waits for the next ones. At least 1.
    pub exchange_partitions: usize,
    /// A batch's time is at most this far ahead of the append time of its first input (I7).
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
            pool: None,
            exchange_partitions: 16,
            clock_slack_ms: 1000,
        }
    }
}

impl Limits {
    /// A batch ends when what it changes takes so much.
    fn most_pending(&self) -> usize {
        (self.cache_bytes / PENDING_PART).max(LEAST_PENDING_BYTES)
    }

    /// Batches that come near a bound of theirs get more time, so that there are fewer of them; others get less, for freshness.
    fn next_batch_time(&self, now: Duration, records: usize, bytes: usize) -> Duration {
        let is_busy = records * 4 >= self.batch_records || bytes * 4 >= self.batch_bytes;
        let next = if is_busy { now * 2 } else { now / 2 };
        next.clamp(self.batch_time, self.batch_time * BUSY_FACTOR)
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
    /// Where checkpoints go; without, a shard on an empty disk reads its whole changelog, which is never trimmed.
    pub checkpoints: Option<Arc<Checkpoints>>,
}

/// A batch that changes so much is not ended for it, however small the shard's share of memory is: each batch costs a transaction.
const LEAST_PENDING_BYTES: usize = 1 << 20;
/// What a batch changes may take this part of the shard's share, by what it replaces: what it puts there instead takes as much again, and less than that what is sent of it.
const PENDING_PART: usize = 3;
/// How much longer than its bound a batch may take while inputs come faster than batches end: each costs the same whatever is in it.
pub const BUSY_FACTOR: u32 = 4;
/// How long a poll waits for the first record of a batch.
const IDLE: Duration = Duration::from_millis(100);
/// Messages of a batch's first poll, and of any: each may be a frame of 1 MB and 1,000 records, so that a batch outgrows its bounds only a little, and where
/// state is read from a slow disk its age is looked at after the first one.
const FIRST_MESSAGES: usize = 1;
const MOST_MESSAGES: usize = 16;
/// A flush is due, too, when so long has passed since the last one: a few entries that change all the time are never much dirty state, but a long replay.
pub(crate) const REPLAY_MS: u64 = 10_000;
/// How often the end of the changelog is noted, so that a clean restart has little to skip.
const NOTE_EVERY_MS: u64 = 5_000;
/// Positions that moved without a record (over markers of transactions) are committed after so long, so that they do not fall behind what the log keeps.
const IDLE_COMMIT_MS: u64 = 60_000;
/// No inputs are read while so many times a batch's bytes wait to be sent to other shards.
const MOST_WAITING: usize = 4;

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
    /// Records that were rejected.
    pub reasons: Vec<Rejected>,
    /// The new sums of the tenants that the batch concerned.
    pub usage: BTreeMap<String, Usage>,
    /// State in memory, and how much of it is not in the local store yet, in bytes.
    pub cache_bytes: usize,
    /// See `cache_bytes`.
    pub dirty_bytes: usize,
    /// Why nothing can be written to the local store, while that is so. Batches go on until too much waits for it.
    pub trouble: Option<String>,
}

/// What the inputs of a batch came to.
struct Read {
    records: usize,
    began_ms: u64,
    time_ms: u64,
    stamp_time_ms: u64,
    forget_before: u32,
    /// Savepoints that it is a cut for; then it has no inputs.
    cuts: Vec<u64>,
}

/// A shard that this process owns.
pub struct Shard<S: Stage> {
    stage: S,
    shard: u32,
    environment: Environment,
    changelog: TopicPartition,
    written: Written,
    limits: Limits,
    /// Of the next batch: between `limits.batch_time` and [`BUSY_FACTOR`] times as much.
    batch_time: Duration,
    inputs: Inputs,
    cache: Cache<S::Value>,
    store: Arc<dyn StateStore>,
    /// What the standby had begun to store: it ends before the store is closed.
    _storing: Storing,
    producer: Box<dyn Transactional>,
    output: Output,
    /// Its `changelog_offset` was the end of the changelog before a batch that we then committed: nobody else can have written in between, so
    /// following from there meets everything that may not be in the local store, and everything that others write later.
    position: StatePosition,
    sums: Sums,
    out: Outbox,
    flushes: Flushes<S::Value>,
    checkpointer: Option<Checkpointer>,
    taken: Option<Taken>,
    sweep: Sweep,
    /// Savepoints that are being taken, as far as was heard.
    savepoints: Arc<[u64]>,
    /// What was wrong with the clocks when the inputs of the last batch were read.
    clocks: Option<String>,
    member: Option<Member>,
    /// When the last flush began, milliseconds since 1970, and the number of its batch.
    flushed_ms: u64,
    flushed_batch: u64,
    /// When the end of the changelog was noted, and when a batch was committed last, milliseconds since 1970.
    noted_ms: u64,
    committed_ms: u64,
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
        let standby = Standby::open(stage.name(), shard, environment, store)?;
        let lease = standby.take_over((0, 0))?;
        Shard::own(stage, lease, limits)
    }

    /// Goes on where a standby stands that has acquired the shard.
    ///
    /// # Errors
    /// [`ShardError`].
    pub fn own(stage: S, acquired: Acquired, limits: Limits) -> Result<Shard<S>, ShardError> {
        let Acquired { shard, environment, store, storing, position, lease, inputs } = acquired;
        let topics = &environment.topics;
        let totals = Totals::of(position.state_digest, &position.periods);
        let inputs = match inputs {
            Some(ahead) => ahead.at(&position)?,
            None => Inputs::open(&*environment.log, topics, stage.name(), shard, &position)?,
        };
        let (plan_term, plan_number) = lease.plan;
        let position = StatePosition { epoch: lease.epoch, slot: lease.slot, plan_term, plan_number, ..position };
        let member = limits.pool.as_ref().map(Pool::join);
        let group = groups_of(shard, topics.shards).start;
        let changelog = TopicPartition::new(topics.changelog(stage.name()), shard);
        let checkpointer = environment.checkpoints.as_ref().map(|checkpoints| {
            let now_ms = environment.clock.now_ms();
            Checkpointer::new(checkpoints.clone(), changelog.clone(), stage.name(), lease.epoch, now_ms)
        });
        let waiting = Waiting::load(&*store, group, limits.exchange_partitions)?;
        Ok(Shard {
            flushes: Flushes::new(
                store.clone(),
                environment.log.clone(),
                environment.executor.clone(),
                limits.pool.clone(),
            ),
            member,
            sweep: Sweep::default(),
            cache: Cache::new(store.clone(), limits.cache_bytes, totals),
            inputs,
            sums: Sums::load(&*store, group)?,
            output: Output::new(topics.clone(), stage.name(), shard, waiting, lease.owed),
            batch_time: limits.batch_time,
            changelog,
            checkpointer,
            taken: None,
            written: Written::of(topics, stage.name(), shard),
            stage,
            shard,
            limits,
            store,
            _storing: storing,
            producer: lease.producer,
            flushed_batch: position.batch_number,
            position,
            out: Outbox::default(),
            savepoints: Arc::default(),
            clocks: None,
            flushed_ms: environment.clock.now_ms(),
            noted_ms: 0,
            committed_ms: environment.clock.now_ms(),
            environment,
        })
    }

    /// Runs one batch; `None` when no input came.
    ///
    /// # Errors
    /// [`ShardError`]: drop the shard and open it again, or stop.
    pub fn run_batch(&mut self) -> Result<Option<Report>, ShardError> {
        self.take_share();
        self.settle_doubt()?;
        self.take_checkpoint();
        let most = self.member.as_ref().map_or(self.limits.dirty_bytes, |member| dirty_bytes(member.full_bytes()));
        let behind = self.cache.dirty_bytes() > most;
        self.collect_flush(behind)?;
        let is_due = self.is_flush_due();
        let before = mutant::is(Mutant::FlushNewerThanPosition).then(|| self.position.clone());
        let result = self.transact(is_due);
        if result.is_err() && mutant::is(Mutant::ClientKept) {
            self.cache.discard();
            return self.go_on_in_place().map(|()| None);
        }
        if !matches!(result, Ok(Some(_))) && !mutant::is(Mutant::OverlayLeaks) {
            self.cache.discard();
        }
        let report = result?;
        if is_due && !mutant::is(Mutant::ApplyBeforeCommit) {
            let newest = before.map(|before| std::mem::replace(&mut self.position, before));
            self.flush();
            if let Some(newest) = newest {
                self.position = newest;
            }
        }
        let Some(mut report) = report else { return Ok(None) };
        report.committed_ms = self.environment.clock.now_ms();
        report.spans = std::mem::take(&mut self.out.spans);
        report.reasons = std::mem::take(&mut self.out.reasons);
        (report.cache_bytes, report.dirty_bytes) =
            (self.cache.bytes() + self.output.waiting.bytes(), self.cache.dirty_bytes());
        report.trouble = self.flushes.trouble().map(str::to_owned);
        Ok(Some(report))
    }

    /// Is there enough that changed, or has it changed for long, and nothing is being stored?
    fn is_flush_due(&self) -> bool {
        let has_changed = self.position.batch_number > self.flushed_batch;
        let is_over = || has_passed(REPLAY_MS, self.flushed_ms, self.environment.clock.now_ms());
        has_changed && self.flushes.is_idle() && (self.cache.dirty_bytes() >= self.limits.dirty_bytes || is_over())
    }

    /// Goes on with a checkpoint, or begins one that is due.
    fn take_checkpoint(&mut self) {
        let Some(checkpointer) = &mut self.checkpointer else { return };
        let taken = checkpointer.step(&self.environment, &self.store, self.position.batch_number);
        self.taken = taken.or(self.taken.take());
    }

    fn settle_doubt(&mut self) -> Result<(), ShardError> {
        self.written.settle_doubt(&mut *self.producer, &*self.environment.log)
    }

    /// The process's memory is shared by as many as there are now.
    fn take_share(&mut self) {
        let Some(member) = &self.member else { return };
        let bytes = member.cache_bytes();
        (self.limits.cache_bytes, self.limits.dirty_bytes) = (bytes, dirty_bytes(bytes));
        self.cache.set_capacity(self.limits.cache_bytes.saturating_sub(self.output.waiting.bytes()));
    }

    /// These savepoints are being taken.
    pub fn hear_of(&mut self, savepoints: &Arc<[u64]>) {
        self.savepoints = savepoints.clone();
    }

    /// Savepoints for which the shard is to be cut before anything else.
    fn due_cuts(&self) -> Vec<u64> {
        // What is missing in outputs was written before.
        if self.output.is_owed() && !mutant::is(Mutant::CutBeforeOwed) {
            return Vec::new();
        }
        let cuts = &self.position.cuts;
        if self.inputs.bring_markers() {
            return self.inputs.due(cuts).into_iter().collect();
        }
        self.savepoints.iter().filter(|savepoint| !cuts::has(cuts, **savepoint)).copied().collect()
    }

    /// Cuts the shard: a batch of nothing but the record that says so, and markers (I10).
    fn cut(&mut self, savepoints: Vec<u64>, notes_end: bool) -> Result<Report, ShardError> {
        let (stage, origin, now_ms) = (self.stage.name(), self.origin(), self.environment.clock.now_ms());
        let channels = output::channels(stage, &self.environment.topics, self.shard);
        let of = |savepoint: &u64| marker::encode(*savepoint, stage, self.shard);
        let markers: Vec<Vec<u8>> = savepoints.iter().map(of).collect();
        let (time_ms, stamp_time_ms) = (self.position.time_ms, self.position.stamp_time_ms);
        let read = Read { records: 0, began_ms: now_ms, time_ms, stamp_time_ms, forget_before: 0, cuts: savepoints };
        self.settle_doubt()?;
        self.producer.begin()?;
        if mutant::is(Mutant::MarkerApart) {
            let report = self.commit(&read, notes_end)?;
            self.producer.begin()?;
            self.output.mark(origin, &markers, &channels, &mut *self.producer)?;
            self.producer.commit()?;
            return Ok(report);
        }
        self.output.mark(origin, &markers, &channels, &mut *self.producer)?;
        if mutant::is(Mutant::WaitingBehindMarker) {
            self.output.begin(origin, &mut *self.producer)?;
        }
        self.commit(&read, notes_end)
    }

    fn transact(&mut self, notes_end: bool) -> Result<Option<Report>, ShardError> {
        let cuts = self.due_cuts();
        if !cuts.is_empty() {
            return self.cut(cuts, notes_end).map(Some);
        }
        let read = self.read();
        if read.is_err() && mutant::is(Mutant::OverlayLeaks) {
            return self.go_on_in_place().map(|()| None);
        }
        let Some(read) = read? else { return self.idle(notes_end) };
        self.sweep_some(read.time_ms)?;
        self.output.finish(&mut *self.producer)?;
        self.commit(&read, notes_end).map(Some)
    }

    /// What nobody may do: go on with the same client, as if the batch had not been. Only mutants come here.
    fn go_on_in_place(&mut self) -> Result<(), ShardError> {
        let _ = self.producer.abort();
        self.out = Outbox::default();
        self.read_anew()
    }

    /// Between two batches: reads on with another client from where the last batch ended, when this one does not hear its inputs.
    ///
    /// # Errors
    /// [`ShardError::Reopen`], [`ShardError::InDoubt`] or [`ShardError::Away`]: it has the client that it had; [`ShardError::Stopped`].
    pub fn read_anew(&mut self) -> Result<(), ShardError> {
        self.inputs.retire();
        let Environment { log, topics, executor, .. } = &self.environment;
        let inputs = Inputs::open(&**log, topics, self.stage.name(), self.shard, &self.position)?;
        let former = std::mem::replace(&mut self.inputs, inputs);
        // A client that does not hear may take long to end, too.
        executor.run(Box::new(move || drop(former)));
        Ok(())
    }

    /// What it has heard of its inputs.
    pub fn listened(&self) -> Listened {
        self.inputs.listened()
    }

    /// Goes through a part of what is to be gone through, in the open transaction.
    fn sweep_some(&mut self, batch_ms: u64) -> Result<(), ShardError> {
        if self.sweep.is_done() {
            return Ok(());
        }
        let mut keys = self.sweep.next(&*self.store)?;
        keys.retain(|key| key.parts().is_some_and(|(_, kind, _)| self.stage.sweeps(kind)));
        self.cache.prefetch(&mut keys.clone())?;
        let topics = &self.environment.topics;
        let stamp = Stamp { time_ms: batch_ms, ..Stamp::default() };
        let (generation, shards) = (topics.generation, topics.shards);
        let at = At { input: Input::Exchange, partition: self.shard, stamp, batch_ms, generation, shards };
        for key in keys {
            self.stage.sweep(key, &at, &mut self.cache, &mut self.out)?;
            self.output.drain(&mut self.out, &mut *self.producer)?;
        }
        Ok(())
    }

    /// Between two batches: has everything been gone through that the stage wants to be ([`Stage::sweeping`])?
    pub fn has_swept(&mut self) -> bool {
        let groups = groups_of(self.shard, self.environment.topics.shards);
        self.sweep.of(&self.stage.sweeping(), groups, &self.cache);
        self.sweep.is_done()
    }

    /// A batch without a record: sends what waits, goes through what is to be, or, after a while, commits positions that moved.
    fn idle(&mut self, notes_end: bool) -> Result<Option<Report>, ShardError> {
        let now_ms = self.environment.clock.now_ms();
        let is_over = has_passed(IDLE_COMMIT_MS, self.committed_ms, now_ms);
        if !self.output.is_due() && self.sweep.is_done() && (!is_over || self.inputs.next() == self.position.inputs) {
            return Ok(None);
        }
        let (time_ms, stamp_time_ms) = (self.position.time_ms, self.position.stamp_time_ms);
        self.settle_doubt()?;
        self.producer.begin()?;
        let origin = self.origin();
        self.output.begin(origin, &mut *self.producer)?;
        self.sweep_some(time_ms)?;
        self.output.finish(&mut *self.producer)?;
        let read = Read { records: 0, began_ms: now_ms, time_ms, stamp_time_ms, forget_before: 0, cuts: Vec::new() };
        self.commit(&read, notes_end).map(Some)
    }

    /// Are no inputs read, because too much waits to be sent to other shards first?
    pub fn holds_inputs(&self) -> bool {
        self.output.waiting.bytes() > self.limits.batch_bytes.saturating_mul(MOST_WAITING)
    }

    /// Reads the inputs and processes each frame as it comes; `None` when nothing came.
    fn read(&mut self) -> Result<Option<Read>, ShardError> {
        if self.output.is_owed() || self.holds_inputs() {
            return Ok(None);
        }
        let mut wait = if self.output.is_due() || !self.sweep.is_done() { self.limits.linger } else { IDLE };
        let clock = self.environment.clock.clone();
        let topics = &self.environment.topics;
        let latest_ms = clock.now_ms().saturating_add(FAR_AHEAD_MS);
        let (log, origin) = (&*self.environment.log, self.origin());
        let place = Place { shard: self.shard, topics, latest_ms, log, written: &self.written, origin };
        let (position, slack_ms) = (&self.position, self.limits.clock_slack_ms);
        let (cache, producer) = (&mut self.cache, &mut *self.producer);
        let mut batch =
            Batch::new(&self.stage, place, cache, producer, &mut self.output, &mut self.out, position.stamp_time_ms);
        let mut at_once = FIRST_MESSAGES;
        let mut began = None;
        loop {
            let messages = self.inputs.poll(at_once, wait, &position.cuts, &mut |input, message| {
                if message.is_empty() {
                    return;
                }
                let time_ms = began.get_or_insert_with(|| {
                    let now_ms = clock.now_ms();
                    (now_ms, position.time_ms.max(now_ms.min(message.timestamp_ms + slack_ms)))
                });
                batch.take(input, &message, time_ms.1);
            })?;
            batch.check()?;
            let Some((began_ms, time_ms)) = began else { return Ok(None) };
            let age = Duration::from_millis(clock.now_ms().saturating_sub(began_ms));
            let (records, bytes) = (batch.records, batch.bytes);
            let (pending, most_pending) = (batch.pending_bytes(), self.limits.most_pending());
            let full =
                records >= self.limits.batch_records || bytes >= self.limits.batch_bytes || pending >= most_pending;
            if messages == 0 || full || age >= self.batch_time {
                self.batch_time = self.limits.next_batch_time(self.batch_time, records, bytes);
                let (stamp_time_ms, forget_before) = (batch.stamp_time_ms, batch.forget_before);
                self.clocks = batch.clocks.take().or_else(|| behind(position.time_ms, began_ms));
                return Ok(Some(Read { records, began_ms, time_ms, stamp_time_ms, forget_before, cuts: Vec::new() }));
            }
            let is_small = bytes * 8 < self.limits.batch_bytes
                && records * 8 < self.limits.batch_records
                && pending * 8 < most_pending;
            at_once = if is_small { (at_once * 2).min(MOST_MESSAGES) } else { FIRST_MESSAGES };
            wait = self.limits.linger.min(self.batch_time.saturating_sub(age));
        }
    }

    /// Of what the next batch writes.
    fn origin(&self) -> Origin {
        Origin { epoch: self.position.epoch, batch: self.position.batch_number + 1 }
    }

    /// Writes the changelog record and commits. With `notes_end`, or now and then, it notes where the changelog ended before.
    fn commit(&mut self, read: &Read, notes_end: bool) -> Result<Report, ShardError> {
        let changelog_offset = self.safe_offset(notes_end)?;
        let mut batch = self.cache.changes(read.forget_before)?;
        let usage = self.sums.add(std::mem::take(&mut self.out.usage), &mut batch.changes, &mut batch.totals);
        self.output.waiting.change(&mut batch.changes, &mut batch.totals);
        let header = BatchHeader {
            number: self.position.batch_number + 1,
            time_ms: read.time_ms,
            epoch: self.position.epoch,
            stamp_time_ms: read.stamp_time_ms,
            inputs: self.inputs.next(),
            state_digest: batch.totals.digest,
            forget_before: read.forget_before,
            cuts: read.cuts.clone(),
        };
        let block = std::mem::take(&mut batch.changes).into_block();
        let digest = self.send_changelog(&header, block)?;
        if !mutant::is(Mutant::ApplyBeforeCommit) {
            self.producer.commit()?;
        }
        let groups = groups_of(self.shard, self.environment.topics.shards);
        let forget = (read.forget_before > 0).then_some(Forget { groups, before: read.forget_before });
        self.cache.commit(batch, forget);
        self.sums.commit(&usage);
        self.output.waiting.commit();
        self.committed_ms = self.environment.clock.now_ms();
        cuts::add(&mut self.position.cuts, &header.cuts);
        // It is settled when that batch is met, or another one was begun: until then it may have been forgotten.
        let owed = if self.output.sends_owed { std::mem::take(&mut self.position.owed) } else { Vec::new() };
        self.position = StatePosition {
            digest,
            batch_number: header.number,
            time_ms: header.time_ms,
            stamp_time_ms: header.stamp_time_ms,
            inputs: header.inputs,
            state_digest: header.state_digest,
            periods: self.cache.totals().periods(),
            own_batch: true,
            changelog_offset,
            owed,
            undecided: None,
            ..std::mem::take(&mut self.position)
        };
        if mutant::is(Mutant::ApplyBeforeCommit) {
            self.flush();
            self.producer.commit()?;
        }
        Ok(Report { records: read.records, began_ms: read.began_ms, usage, ..Report::default() })
    }

    fn send_changelog(&mut self, header: &BatchHeader, block: Vec<u8>) -> Result<u64, ShardError> {
        let (records, digest) = changelog::records(header, block, self.position.digest);
        let TopicPartition { topic, partition } = &self.changelog;
        for record in &records {
            let payload = changelog::encode(record);
            self.producer.send(Outgoing { topic, partition: *partition, key: &[], payload: &payload, headers: &[] })?;
        }
        Ok(digest)
    }

    /// Writes what is dirty to the local store, in the background.
    fn flush(&mut self) {
        (self.flushed_ms, self.flushed_batch) = (self.environment.clock.now_ms(), self.position.batch_number);
        let frozen = self.cache.freeze();
        let work = Work::new(frozen, self.uncached(), self.position.clone());
        self.flushes.begin(work);
    }

    /// State that is not in the cache, for a flush.
    fn uncached(&mut self) -> Vec<(StateKey, Option<Vec<u8>>)> {
        let sums = self.sums.entries().into_iter().map(|(key, sums)| (key, Some(sums)));
        sums.chain(self.output.waiting.take_unflushed()).collect()
    }

    /// From where a follower has to read once the batch is committed that is about to be.
    fn safe_offset(&mut self, now: bool) -> Result<u64, ShardError> {
        let now_ms = self.environment.clock.now_ms();
        if !now && !has_passed(NOTE_EVERY_MS, self.noted_ms, now_ms) {
            return Ok(self.position.changelog_offset);
        }
        self.noted_ms = now_ms;
        Ok(self.environment.log.bounds(&self.changelog)?.1)
    }

    fn collect_flush(&mut self, wait: bool) -> Result<(), ShardError> {
        if let Some(frozen) = self.flushes.collect(wait, self.environment.clock.now_ms())? {
            self.cache.flushed(&frozen);
        }
        Ok(())
    }

    /// Waits for background work and stores everything, so that the next opening has nothing to replay.
    ///
    /// # Errors
    /// [`ShardError`]; nothing is lost then, the changelog has it.
    pub fn close(&mut self) -> Result<(), ShardError> {
        self.collect_flush(true)?;
        if !self.position.own_batch {
            // What it began with is stored already; that it became the owner is for the log to say.
            return Ok(());
        }
        let frozen = self.cache.freeze();
        let uncached = self.uncached();
        Ok(frozen.write(&*self.store, &uncached, &self.position)?)
    }

    /// Gives the shard to a prepared client, (name, slot), as this owner's last word, and stores everything. Whatever comes of it, this owner does not go on.
    ///
    /// # Errors
    /// [`ShardError`]: whether the client has it now is unknown.
    pub fn release(mut self, to: (&str, u32)) -> Result<(), ShardError> {
        self.give(to)?;
        self.close()
    }

    pub(crate) fn give(&mut self, to: (&str, u32)) -> Result<(), ShardError> {
        // Its heir looks for nothing.
        if self.output.is_owed() {
            self.idle(false)?;
        }
        self.settle_doubt()?;
        let (topics, stage) = (&self.environment.topics, self.stage.name());
        ownership::release(&mut *self.producer, topics, stage, self.shard, self.position.epoch, to)
    }

    /// The sums of each tenant, as committed.
    pub fn usage(&self) -> &BTreeMap<String, Usage> {
        self.sums.all()
    }

    /// The stage, for what changes between batches.
    pub fn stage(&mut self) -> &mut S {
        &mut self.stage
    }

    /// Committed state, for look-ups between batches.
    pub fn state(&mut self) -> &mut dyn State<S::Value> {
        &mut self.cache
    }

    /// Number of the last committed batch, and this owner's epoch.
    pub fn progress(&self) -> (u64, u64) {
        (self.position.batch_number, self.position.epoch)
    }

    /// Where the next batch reads on: further than the last committed batch did where nothing but markers of transactions follows.
    pub fn reads_from(&self) -> Vec<Position> {
        self.inputs.next()
    }

    /// Between two batches: when the newest message of each input that it has processed was appended, in the order of [`Shard::reads_from`], milliseconds since 1970; `None` where it has
    /// processed none since it was opened.
    pub fn processed_ms(&self) -> Vec<Option<u64>> {
        self.inputs.newest_ms()
    }

    /// What will stop it if nobody acts: nothing can be written to the local store, or clocks are wrong.
    pub fn trouble(&self) -> Option<&str> {
        let of_checkpoints = self.checkpointer.as_ref().and_then(Checkpointer::trouble);
        self.flushes.trouble().or(self.clocks.as_deref()).or(of_checkpoints)
    }

    /// The newest checkpoint that was taken since it was asked last.
    pub fn take_taken(&mut self) -> Option<Taken> {
        self.taken.take()
    }

    /// The last committed batch. Its `changelog_offset` is where a follower has to start, which is noted now and then only.
    pub fn position(&self) -> &StatePosition {
        &self.position
    }
}

/// What is wrong when this worker's clock says a time long before that of the shard's last batch (I7): batches keep that time until the clock has come there.
fn behind(last_ms: u64, now_ms: u64) -> Option<String> {
    let behind_ms = last_ms.saturating_sub(now_ms);
    (behind_ms > FAR_BACK_MS).then(|| {
        format!("this worker's clock is {behind_ms} ms behind the shard's last batch, and its time stands still for so long: set the clocks of workers and brokers right")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_near_a_bound_get_more_time_up_to_a_factor_and_others_less_down_to_what_was_asked_for() {
        let limits = Limits::default();
        let (few, enough) = (limits.batch_records / 4 - 1, limits.batch_records / 4);
        let after = |sizes: &[(usize, usize)]| {
            sizes.iter().fold(limits.batch_time, |now, (records, bytes)| limits.next_batch_time(now, *records, *bytes))
        };
        let milliseconds = |sizes: &[(usize, usize)]| after(sizes).as_millis();
        assert_eq!(milliseconds(&[(few, 0)]), 50);
        assert_eq!(milliseconds(&[(enough, 0)]), 100);
        assert_eq!(milliseconds(&[(1, limits.batch_bytes / 4)]), 100, "few large ones");
        assert_eq!(milliseconds(&[(enough, 0); 2]), 200);
        assert_eq!(milliseconds(&[(enough, 0); 9]), 200, "never more than its factor");
        assert_eq!(milliseconds(&[(enough, 0), (enough, 0), (few, 0)]), 100);
        assert_eq!(milliseconds(&[(enough, 0), (few, 0), (few, 0)]), 50);
    }
}
