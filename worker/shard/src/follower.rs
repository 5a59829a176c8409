//! Following a changelog into the local store.
//!
//! Used to open a shard, and by standbys, which follow for as long as somebody else owns the shard. **I6, no silent start**: local state that is damaged, or lies before the
//! log's beginning, is given up for the whole changelog, or for a checkpoint; when there is neither any more, or the state is of another topic of this name, or lies behind the log's end,
//! the shard stops with a condition.
//! **I5**: entries and position are written together, only between batches.

use crate::changelog::{Assembler, ChangelogError, Step};
use crate::changes::{self, Totals};
use crate::checkpoint::Origin;
use crate::hearing::Listened;
use crate::log::{Consumer, Log, Start, TopicPartition};
use crate::mutant::{self, Mutant};
use crate::savepoint::cuts;
use crate::state::{Forget, StateStore, StoreError};
use crate::{Executor, ShardError};
use hashbrown::HashMap;
use millstream_model::id::entry_hash;
use millstream_model::key::{StateKey, groups_of};
use millstream_model::proto::{Batch, StatePosition};
use std::sync::Arc;
use std::time::Duration;
use xxhash_rust::xxh3::Xxh3DefaultBuilder;

/// Entries that wait to be written to the store, at most about this many bytes. Every shard of a process may be opening at a time, and what waits takes several
/// times its size in memory; larger writes would gain little, because the store collects them anyway.
const PENDING_BYTES: usize = 4 << 20;
/// Messages per poll; each holds up to 1 MB of entries.
const MESSAGES: usize = 8;
/// How long one poll waits. Long enough to be cheap; the end of the log is noticed by position, not by time.
const POLL: Duration = Duration::from_millis(200);
/// After this many polls without progress the log counts as unavailable.
const PATIENCE: u32 = 150;

/// A reader of one changelog.
pub struct Follower {
    at: TopicPartition,
    /// Where the changelog began when it was opened; 0: it is whole.
    start: u64,
    store: Arc<dyn StateStore>,
    consumer: Box<dyn Consumer>,
    looks: u64,
    /// Behind the newest message that was read. What lies behind it, and is not visible, is not decided, or was aborted.
    read_to: u64,
    assembler: Assembler,
    position: StatePosition,
    has_genesis: bool,
    /// Began at a position of the local store, not at the beginning of the changelog.
    from_local: bool,
    /// The client that the newest record names, when that is a release.
    released_to: Option<String>,
    /// Of the state as followed.
    totals: Totals,
    groups: std::ops::Range<u16>,
    forget: Option<Forget>,
    pending: Pending,
    pending_bytes: usize,
    /// Where else local state may come from.
    origin: Option<Origin>,
    moves: Moves,
}

/// Told each time that something was read, since a long changelog takes its time; says what is wanted of who reads it.
pub type Moves = Arc<dyn Fn() -> Wanted + Send + Sync>;

/// What is wanted of who reads a changelog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// That it does what it reads it for.
    All,
    /// That it reads on, and does not own the shard.
    NotToOwn,
    /// Nothing: the process ends.
    Nothing,
}

type Pending = HashMap<StateKey, Option<Vec<u8>>, Xxh3DefaultBuilder>;

impl Follower {
    /// Opens the changelog at the store's position, or at its start; the stage has `shards` shards. `origin`: that of the local state, where there are checkpoints.
    ///
    /// # Errors
    /// [`ShardError`].
    pub fn open(
        log: &dyn Log,
        at: TopicPartition,
        shards: u32,
        store: Arc<dyn StateStore>,
        origin: Option<Origin>,
    ) -> Result<Follower, ShardError> {
        let topic_id = log.topic_id(&at.topic)?;
        let (start, end) = log.bounds(&at)?;
        let (stored, damage) = local(log, &at, &*store)?;
        if let Some(position) = stored.as_ref().filter(|position| position.changelog_offset > end) {
            return Err(ShardError::Stopped(format!(
                "{at} ends at {end}, and the local state is that of {}: the log has lost what was acknowledged; the local state is kept; bring back what the log has lost, or remove the local state, \
                 if the shard is to go on with what the log has",
                position.changelog_offset
            )));
        }
        let usable = stored.filter(|position| (start..=end).contains(&position.changelog_offset));
        let position = match usable {
            Some(position) => position,
            None if start > 0 => {
                // It may have been trimmed since a checkpoint was looked for.
                let has_one = origin
                    .as_ref()
                    .map(|origin| origin.has_other(&topic_id, start, "the changelog was trimmed meanwhile"))
                    .transpose()?;
                return Err(match has_one {
                    Some(true) => {
                        ShardError::Reopen(format!("{at} starts at {start} by now, and there is a checkpoint"))
                    }
                    _ => unreachable(&at, start, damage),
                });
            }
            None => {
                store.clear()?;
                StatePosition { topic_id, ..StatePosition::default() }
            }
        };
        let consumer = log.consumer(&[(at.clone(), Start::At(position.changelog_offset))]);
        let consumer = consumer.map_err(ShardError::of_changelog)?;
        let assembler = Assembler::after(position.batch_number, position.digest);
        // It says where the inputs begin. An offset alone says nothing: a first record that was aborted has one, too.
        let has_genesis = !position.inputs.is_empty();
        let from_local = position.changelog_offset > 0 || position.batch_number > 0;
        Ok(Follower {
            groups: groups_of(at.partition, shards),
            start,
            totals: Totals::of(position.state_digest, &position.periods),
            read_to: position.changelog_offset,
            at,
            store,
            consumer,
            looks: 0,
            assembler,
            position,
            has_genesis,
            from_local,
            released_to: None,
            forget: None,
            pending: Pending::default(),
            pending_bytes: 0,
            origin,
            moves: Arc::new(|| Wanted::All),
        })
    }

    /// Tells when it reads something.
    pub fn tell(&mut self, moves: Moves) {
        self.moves = moves;
    }

    /// Is the shard still wanted of who reads? It was told when it was not: somebody else has it, or the process ends.
    ///
    /// # Errors
    /// [`ShardError::Reopen`]: not any more.
    pub(crate) fn goes_on(&self) -> Result<(), ShardError> {
        if (self.moves)() == Wanted::All {
            return Ok(());
        }
        Err(ShardError::Reopen(format!("{} is not to be taken over by this process any more", self.at)))
    }

    /// Reads everything that is visible now: asks the partition's leader for the end, and follows until the reader is there, or the process ends.
    ///
    /// # Errors
    /// [`ShardError`].
    pub fn read_to_end(&mut self, log: &dyn Log) -> Result<(), ShardError> {
        let (_, end) = log.bounds(&self.at)?;
        let mut idle = 0;
        while self.consumer.positions().first().is_none_or(|position| *position < end) {
            let before = self.consumer.positions();
            if self.poll(POLL)? == Wanted::Nothing {
                return Err(ShardError::Reopen(format!("{} was not read to its end: the process ends", self.at)));
            }
            idle = if before == self.consumer.positions() { idle + 1 } else { 0 };
            if idle > PATIENCE {
                return Err(ShardError::Away(format!("{} cannot be read to its end at {end}", self.at)));
            }
        }
        self.settle()
    }

    /// Reads what is there within `wait`, without going to the end.
    ///
    /// # Errors
    /// [`ShardError`].
    pub fn follow(&mut self, wait: Duration) -> Result<(), ShardError> {
        self.poll(wait).map(drop)
    }

    /// Is the changelog still the topic that was opened? One that was deleted and made again is noticed by its id only.
    ///
    /// # Errors
    /// [`ShardError::Reopen`]: whoever opens it again is told what to do.
    pub(crate) fn check_topic(&self, log: &dyn Log) -> Result<(), ShardError> {
        if log.topic_id(&self.at.topic)? == self.position.topic_id {
            return Ok(());
        }
        Err(ShardError::Reopen(format!("{} was deleted and made again while it was followed", self.at)))
    }

    /// The checkpoint that it began with need not be kept for it any more: it has read to the end once.
    pub(crate) fn release_checkpoint(&mut self, executor: &dyn Executor) {
        if let Some(origin) = &mut self.origin {
            origin.release(executor);
        }
    }

    /// How many messages of the changelog are still to be read.
    ///
    /// # Errors
    /// [`ShardError`].
    pub fn lag(&self, log: &dyn Log) -> Result<u64, ShardError> {
        Ok(log.bounds(&self.at)?.1.saturating_sub(self.reached()))
    }

    fn reached(&self) -> u64 {
        self.consumer.positions().first().copied().unwrap_or_default()
    }

    /// What it has heard of the changelog.
    pub(crate) fn listened(&self) -> Listened {
        Listened { read_to: vec![(self.at.clone(), self.reached())], looks: self.looks }
    }

    /// Writes what was read to the local store.
    ///
    /// # Errors
    /// [`ShardError`].
    pub fn settle(&mut self) -> Result<(), ShardError> {
        // What was not met yet must be met from where it may be. What is aborted behind the newest message may still have to be looked at by a takeover.
        let may_move = !self.assembler.is_open() && !self.position.own_batch;
        self.write_pending(if may_move { self.read_to } else { self.position.changelog_offset })
    }

    /// The offset behind the newest message that was read.
    pub(crate) fn read_to(&self) -> u64 {
        self.read_to
    }

    /// The client that the newest record names, when that is a release.
    pub fn released_to(&self) -> Option<&str> {
        self.released_to.as_deref()
    }

    fn poll(&mut self, wait: Duration) -> Result<Wanted, ShardError> {
        let mut steps = Vec::new();
        let (assembler, read_to, mut failed) = (&mut self.assembler, &mut self.read_to, None);
        let polled = self.consumer.poll(MESSAGES, wait, &mut |message| {
            if failed.is_none() && !message.is_empty() {
                *read_to = message.offset + 1;
                match assembler.read(message.offset, message.payload) {
                    Ok(read) => steps.extend(read),
                    Err(error) => failed = Some(error),
                }
            }
        });
        let messages = polled.map_err(ShardError::of_changelog)?;
        self.looks += u64::from(messages < MESSAGES);
        let wanted = if messages > 0 { (self.moves)() } else { Wanted::All };
        for step in steps {
            self.apply(step)?;
        }
        match failed {
            None => Ok(wanted),
            Some(error @ ChangelogError::Broken { .. }) => Err(self.discarded(&error.to_string())),
            Some(error) => Err(self.stopped(&error.to_string())),
        }
    }

    fn apply(&mut self, step: Step) -> Result<(), ShardError> {
        match step {
            Step::Genesis(genesis) => {
                self.has_genesis = true;
                if self.position.batch_number == 0 {
                    self.position.inputs = genesis.inputs;
                }
            }
            Step::Ownership(record) if record.epoch > self.position.epoch => {
                self.position.epoch = record.epoch;
                self.position.slot = record.slot;
                (self.position.plan_term, self.position.plan_number) = (record.plan_term, record.plan_number);
                // Nothing but a batch settles what is owed.
                if !record.owed.is_empty() {
                    self.position.owed = record.owed;
                }
                if !mutant::is(Mutant::UndecidedForgotten) {
                    self.position.undecided = record.undecided;
                }
                self.released_to = None;
            }
            Step::Ownership(_) => {}
            Step::Release(record) if record.epoch == self.position.epoch => {
                self.position.slot = record.slot;
                self.released_to = Some(record.client);
            }
            Step::Release(_) => {}
            Step::Batch(batch) => self.batch(batch)?,
            // It is there, and so is what it has sent.
            Step::Met if self.position.own_batch => {
                (self.position.own_batch, self.position.undecided) = (false, None);
                self.position.owed.clear();
            }
            Step::Met => {}
        }
        Ok(())
    }

    fn batch(&mut self, batch: Batch) -> Result<(), ShardError> {
        if batch.forget_before > 0 {
            self.forget_before(batch.forget_before);
        }
        for change in changes::read(&batch.changes) {
            let change = change.map_err(|why| self.stopped(&format!("batch {}: {why}", batch.number)))?;
            let key = StateKey::from_bytes(change.key);
            let after = change.value.map_or(0, |value| entry_hash(change.key, value));
            self.totals.change(key.period(), change.before, after);
            self.pending_bytes += change.key.len() + change.value.map_or(0, <[u8]>::len);
            self.pending.insert(key, change.value.map(<[u8]>::to_vec));
        }
        if self.totals.digest != batch.state_digest {
            return Err(self.differs(&batch));
        }
        if !mutant::is(Mutant::CutForgotten) {
            cuts::add(&mut self.position.cuts, &batch.cuts);
        }
        self.position = StatePosition {
            digest: batch.digest,
            batch_number: batch.number,
            time_ms: batch.time_ms,
            stamp_time_ms: batch.stamp_time_ms,
            inputs: batch.inputs,
            state_digest: batch.state_digest,
            periods: self.totals.periods(),
            own_batch: false,
            owed: Vec::new(),
            undecided: None,
            ..std::mem::take(&mut self.position)
        };
        // Written between batches only, so that the store always shows the state at a batch boundary; the offset to follow from stays where it
        // was, because batches that are known already are skipped.
        if self.pending_bytes > PENDING_BYTES {
            let offset = self.position.changelog_offset;
            self.write_pending(offset)?;
        }
        Ok(())
    }

    fn forget_before(&mut self, before: u32) {
        self.totals.forget_before(before);
        self.pending.retain(|key, _| key.period().is_none_or(|period| period >= before));
        self.forget = Some(Forget { groups: self.groups.clone(), before });
    }

    fn stopped(&self, why: &str) -> ShardError {
        ShardError::Stopped(format!("{}: {why}", self.at))
    }

    /// The state as followed is not the owner's.
    fn differs(&self, batch: &Batch) -> ShardError {
        let what = format!(
            "after batch {} the state's digest is {:016x}, the owner's was {:016x}",
            batch.number, self.totals.digest, batch.state_digest
        );
        self.discarded(&what)
    }

    /// What began from local state begins again without it; what began with the changelog itself cannot be helped.
    fn discarded(&self, why: &str) -> ShardError {
        if !self.from_local {
            return self.stopped(why);
        }
        self.cleared(&format!("the local state does not fit: {why}"))
    }

    /// Gives the local state up, unless neither the changelog nor a checkpoint and what follows it holds the whole any more: what is left of the shard is this state, then.
    fn cleared(&self, why: &str) -> ShardError {
        let has_other = self.origin.as_ref().map(|origin| origin.has_other(&self.position.topic_id, self.start, why));
        let has_other = match has_other.transpose() {
            // That there is none is not known.
            Err(error) if self.start > 0 => return error,
            known => known.ok().flatten().unwrap_or(false),
        };
        if self.start > 0 && !has_other {
            return self.stopped(&format!(
                "its beginning was deleted (it starts at {}), and the local state, which is kept, is not to be trusted: {why}; bring its beginning back, or begin another generation",
                self.start
            ));
        }
        match self.store.clear() {
            Ok(()) => ShardError::Reopen(format!("{}: the local state was discarded: {why}", self.at)),
            Err(error) => error.into(),
        }
    }

    /// What an owner has stored counts only if its last batch is in the changelog: that its commit was told does not say so for good ([`crate::hanging`]). To be
    /// asked when everything was read, and nobody can commit any more. Gives the local state up if not.
    ///
    /// # Errors
    /// [`ShardError::Reopen`].
    pub(crate) fn prove(&self) -> Result<(), ShardError> {
        if !self.position.own_batch || mutant::is(Mutant::LocalUnproven) {
            return Ok(());
        }
        let number = self.position.batch_number;
        Err(self.cleared(&format!("the local state is that after batch {number}, which the log does not have")))
    }

    fn write_pending(&mut self, offset: u64) -> Result<(), ShardError> {
        self.position.changelog_offset = offset;
        let mut entries = self.pending.iter().map(|(key, value)| (key, value.as_deref()));
        self.store.write(self.forget.as_ref(), &mut entries, &self.position)?;
        self.forget = None;
        self.pending.clear();
        self.pending_bytes = 0;
        Ok(())
    }

    /// How far the local store is after [`Follower::read_to_end`].
    pub fn position(&self) -> &StatePosition {
        &self.position
    }

    /// Was the shard's first record there?
    pub fn has_genesis(&self) -> bool {
        self.has_genesis
    }
}

/// Where the local state stands, or why it is damaged; nothing when there is none. To be asked before a shard begins anew.
///
/// # Errors
/// [`ShardError::Stopped`] when it follows another topic of this name: the changelog was lost, and this state may be all that is left of the shard (I6). It is not for us to clear it.
pub(crate) fn local(
    log: &dyn Log,
    at: &TopicPartition,
    store: &dyn StateStore,
) -> Result<(Option<StatePosition>, Option<String>), ShardError> {
    let stored = match store.position() {
        Err(StoreError::Damaged(why)) => return Ok((None, Some(why))),
        position => position?,
    };
    let topic_id = log.topic_id(&at.topic)?;
    let is_others = |position: &StatePosition| position.topic_id != topic_id;
    if stored.as_ref().is_some_and(|position| is_others(position) && position.batch_number > 0) {
        return Err(ShardError::Stopped(format!(
            "{at} is not the topic that the local state follows, but another one of its name: the changelog was lost; the local state is kept; bring the former topic back, or remove the local state, if the shard is to begin with this one"
        )));
    }
    Ok((stored.filter(|position| !is_others(position)), None))
}

/// Neither the local state nor the changelog alone is enough to begin with (I6).
fn unreachable(at: &TopicPartition, start: u64, damage: Option<String>) -> ShardError {
    let state = match damage {
        Some(why) => format!("the local state is damaged ({why})"),
        None => "the local state does not reach it".to_owned(),
    };
    ShardError::Stopped(format!(
        "{at} starts at {start}: its beginning was deleted, and {state}; bring back its beginning, or a local state that reaches it, or begin another generation"
    ))
}
