//! Who may write for a shard (I4).
//!
//! Kafka's transactional ids are the only lock. A shard has two, and the newest record about ownership in its changelog names the one that may write: an
//! *ownership* record the id of its writer, a *release* the id of the client that it names.
//!
//! *Takeover*, the way of every acquisition that is no handoff: read the changelog; initialise the **idle** id (or use a client that was prepared for it); then,
//! never in parallel and never in the other order, the **named** id; then read to the end. If the log still names that id, nobody else can commit any
//! more: continue on the other one, whose first transaction carries an ownership record with epoch + 1. If it names another one, somebody
//! else has it: back off, then start again. Nobody re-initialises the named id and goes on with it: a commit of its former owner could still land afterwards.
//!
//! *Handoff*: the next owner [prepares](Claim::prepare) a client while the present one works: it initialises the idle id, then reads to the end, and gives up if the log names that id by
//! now. The owner's last transaction is a release to that very client, which goes on with an ownership record of its own. Any other client, also one of the same
//! worker that was made after the release, has to take over.
//!
//! Nobody acquires under a plan that is older than the one of the newest ownership record.
//!
//! *What hangs.* Once both ids are initialised, no transaction of theirs can be open. One that is open all the same was forgotten by its coordinator: a takeover
//! [ends it](crate::hanging), in the changelog before it reads on.
//!
//! Every shard begins with a *genesis* record, written once, when its pipeline is created (I6).

use crate::changelog;
use crate::follower::Follower;
pub use crate::hanging::Mended;
use crate::hanging::{Hanging, Missing, Takeover};
use crate::inputs;
use crate::log::{Log, LogError, Outgoing, Start, TopicPartition, Transactional};
use crate::mutant::{self, Mutant};
use crate::topics::Topics;
use crate::written::{Writer, Written, abort_in, is_held_back};
use crate::{Executor, ShardError};
use millstream_model::proto::{Changelog, Genesis, Ownership, Release, changelog::Record};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long one poll of a changelog's beginning waits, and how many there are before the log counts as unavailable.
const POLL: Duration = Duration::from_millis(200);
const PATIENCE: u32 = 150;

/// Who acquires.
#[derive(Clone, Debug)]
pub struct Claimant {
    /// Worker's name.
    pub worker: String,
    /// One process of that name.
    pub incarnation: String,
    /// Clients made by this process: no two have the same name.
    clients: Arc<AtomicU64>,
}

impl Claimant {
    /// A process of a worker.
    pub fn new(worker: impl Into<String>, incarnation: impl Into<String>) -> Claimant {
        Claimant { worker: worker.into(), incarnation: incarnation.into(), clients: Arc::default() }
    }

    fn next_client(&self) -> String {
        let number = self.clients.fetch_add(1, Ordering::Relaxed);
        format!("{}/{}/{number}", self.worker, self.incarnation)
    }
}

/// Number of a plan: term, and number within it.
pub type PlanNumber = (u64, u64);

/// A shard of a stage in a log, and who wants it.
#[derive(Clone, Copy)]
pub struct Claim<'a> {
    /// The log.
    pub log: &'a dyn Log,
    /// The pipeline's topics.
    pub topics: &'a Topics,
    /// `unify` or `action`.
    pub stage: &'a str,
    /// The shard.
    pub shard: u32,
    /// Who acquires.
    pub claimant: &'a Claimant,
    /// The plan that says so; (0, 0) without one.
    pub plan: PlanNumber,
}

/// The right to write.
pub struct Lease {
    /// Client of the id that the log names now.
    pub producer: Box<dyn Transactional>,
    /// Its epoch.
    pub epoch: u64,
    /// Which of the two ids it is.
    pub slot: u32,
    /// The plan under which it was acquired.
    pub plan: PlanNumber,
    /// What the ownership record owes: what outputs miss of batches before, perhaps nothing. The first batch begins with it.
    pub(crate) owed: Option<Vec<Missing>>,
    /// What was done about transactions that their coordinator had forgotten.
    pub mended: Mended,
}

/// A client of the idle id, made while somebody else owns the shard.
pub struct Prepared {
    producer: Box<dyn Transactional>,
    slot: u32,
    client: String,
}

impl Prepared {
    /// Its name, which a release must say, and its id.
    pub fn client(&self) -> (&str, u32) {
        (&self.client, self.slot)
    }
}

impl Claim<'_> {
    fn id(&self, slot: u32) -> String {
        self.topics.transactional_id(self.stage, self.shard, slot)
    }

    fn reopen(&self, why: &str) -> ShardError {
        ShardError::Reopen(format!("{}[{}]: {why}", self.stage, self.shard))
    }

    fn check_plan(&self, follower: &Follower) -> Result<(), ShardError> {
        let position = follower.position();
        let newest = (position.plan_term, position.plan_number);
        if self.plan < newest && !mutant::is(Mutant::OldPlanFollowed) {
            let why = format!("the plan {:?} is older than {newest:?}, under which it is owned", self.plan);
            return Err(self.reopen(&why));
        }
        Ok(())
    }

    /// Makes a client for a handoff; `None` when the log names its id by now.
    ///
    /// # Errors
    /// [`ShardError`].
    pub fn prepare(&self, follower: &mut Follower) -> Result<Option<Prepared>, ShardError> {
        follower.read_to_end(self.log)?;
        self.check_genesis(follower)?;
        let slot = idle(follower);
        let producer = self.log.transactional(&self.id(slot))?;
        let client = self.claimant.next_client();
        follower.read_to_end(self.log)?;
        let is_named = follower.position().slot == slot && !mutant::is(Mutant::PreparedUnchecked);
        Ok((!is_named).then_some(Prepared { producer, slot, client }))
    }

    /// Goes on with a prepared client when the follower has read that the shard was released to it; gives the client back when not.
    ///
    /// # Errors
    /// [`ShardError`]: the outcome is unknown, take over.
    pub fn receive(&self, prepared: Prepared, follower: &mut Follower) -> Result<Result<Lease, Prepared>, ShardError> {
        let is_ours = follower.released_to() == Some(&prepared.client) && follower.position().slot == prepared.slot;
        // Whoever owes something does not release; a takeover would see to it.
        let position = follower.position();
        if !is_ours || !position.owed.is_empty() || position.undecided.is_some() {
            return Ok(Err(prepared));
        }
        self.check_plan(follower)?;
        self.lease(prepared.producer, prepared.slot, follower, &Hanging::default()).map(Ok)
    }

    /// Takes a shard over; the follower has then read everything that any former owner committed.
    ///
    /// # Errors
    /// [`ShardError::Reopen`] when it must be tried again, also when there is nothing in the changelog; [`ShardError::Stopped`] when there is no genesis record in it.
    pub fn take_over(
        &self,
        prepared: Option<Prepared>,
        follower: &mut Follower,
        executor: &dyn Executor,
    ) -> Result<Lease, ShardError> {
        follower.read_to_end(self.log)?;
        self.check_plan(follower)?;
        // To read all that may have taken long, and from here on whoever has it is fenced.
        follower.goes_on()?;
        let (named, slot) = (follower.position().slot, idle(follower));
        let written = Written::of(self.topics, self.stage, self.shard);
        let too_early =
            if mutant::is(Mutant::InitsSwapped) { Some(self.log.transactional(&self.id(named))?) } else { None };
        let mut producer = match prepared {
            Some(prepared) if prepared.slot == slot => prepared.producer,
            _ => self.log.transactional(&self.id(slot))?,
        };
        if mutant::is(Mutant::NamedIdNotFenced) {
            follower.read_to_end(self.log)?;
            return self.lease(producer, slot, follower, &Hanging::default());
        }
        let mut fenced = match too_early {
            Some(fenced) => fenced,
            None => self.log.transactional(&self.id(named))?,
        };
        if mutant::is(Mutant::NamedIdUsedOn) {
            follower.read_to_end(self.log)?;
            return self.lease(fenced, named, follower, &Hanging::default());
        }
        let mut takeover = Takeover { log: self.log, written: &written, follower };
        if !mutant::is(Mutant::HangingIgnored) {
            takeover.end_in_changelog([&mut *fenced, &mut *producer])?;
        }
        self.read_again(named, takeover.follower)?;
        let hanging = match mutant::is(Mutant::HangingIgnored) {
            true => Hanging::default(),
            false => takeover.find([&mut *fenced, &mut *producer])?,
        };
        let mut lease = self.lease(producer, slot, takeover.follower, &hanging)?;
        let missing = takeover.end(&hanging, lease.epoch, [&mut *fenced, &mut *lease.producer])?;
        lease.mended = hanging.mended(&missing);
        lease.owed = (!hanging.owed.is_empty()).then_some(missing);
        // It has done its work; ending it takes some clients half a second.
        executor.run(Box::new(move || drop(fenced)));
        Ok(lease)
    }

    /// Reads what was committed before the inits, after which nobody else can commit any more if the log still names the same id.
    fn read_again(&self, named: u32, follower: &mut Follower) -> Result<(), ShardError> {
        if !mutant::is(Mutant::NotReadAgain) {
            follower.read_to_end(self.log)?;
            // Not before: that its commit was decided does not mean that it can be read already, but the inits wait for that.
            if !follower.has_genesis() && follower.position().epoch == 0 {
                return Err(self.reopen("its first record is not there: it hung, and was aborted"));
            }
            self.check_genesis(follower)?;
        }
        if follower.position().slot != named {
            return Err(self.reopen("somebody else took it over in between"));
        }
        self.check_plan(follower)
    }

    /// The first transaction of a new owner, which takes over what hangs. It has nothing but the changelog.
    fn lease(
        &self,
        mut producer: Box<dyn Transactional>,
        slot: u32,
        follower: &mut Follower,
        hanging: &Hanging,
    ) -> Result<Lease, ShardError> {
        // What is copied will be met behind it, or what is undecided.
        let met_later = hanging.lost_batch.or(hanging.undecided.as_ref().map(|(it, _)| it.batch));
        if met_later != Some(follower.position().batch_number) {
            follower.prove()?;
        }
        let (epoch, (plan_term, plan_number)) = (follower.position().epoch + 1, self.plan);
        let (worker, incarnation) = (self.claimant.worker.clone(), self.claimant.incarnation.clone());
        let (owed, undecided) = (hanging.owed.clone(), hanging.undecided.as_ref().map(|(undecided, _)| *undecided));
        let record = Ownership { epoch, slot, worker, incarnation, plan_term, plan_number, owed, undecided };
        producer.begin()?;
        hanging.copy(&TopicPartition::new(self.topics.changelog(self.stage), self.shard), &mut *producer)?;
        send_record(&mut *producer, self.topics, self.stage, self.shard, Record::Ownership(record))?;
        producer.commit()?;
        Ok(Lease { producer, epoch, slot, plan: self.plan, owed: None, mended: Mended::default() })
    }

    fn check_genesis(&self, follower: &Follower) -> Result<(), ShardError> {
        if follower.has_genesis() {
            return Ok(());
        }
        Err(ShardError::Stopped(format!(
            "{} has no genesis record: the pipeline was not created, or its changelog was lost",
            TopicPartition::new(self.topics.changelog(self.stage), self.shard)
        )))
    }
}

/// The id that the log does not name.
fn idle(follower: &Follower) -> u32 {
    1 - follower.position().slot.min(1)
}

/// The owner's last transaction: gives the shard to a prepared client, (name, slot).
pub(crate) fn release(
    producer: &mut dyn Transactional,
    topics: &Topics,
    stage: &str,
    shard: u32,
    epoch: u64,
    (client, slot): (&str, u32),
) -> Result<(), ShardError> {
    let record = Release { epoch, slot, client: client.to_owned() };
    commit_record(producer, topics, stage, shard, Record::Release(record))
}

fn commit_record(
    producer: &mut dyn Transactional,
    topics: &Topics,
    stage: &str,
    shard: u32,
    record: Record,
) -> Result<(), ShardError> {
    producer.begin()?;
    send_record(producer, topics, stage, shard, record)?;
    Ok(producer.commit()?)
}

fn send_record(
    producer: &mut dyn Transactional,
    topics: &Topics,
    stage: &str,
    shard: u32,
    record: Record,
) -> Result<(), LogError> {
    let payload = changelog::encode(&Changelog { record: Some(record) });
    let topic = &topics.changelog(stage);
    producer.send(Outgoing { topic, partition: shard, key: &[], payload: &payload, headers: &[] })
}

/// Writes the genesis record of a shard whose changelog has no record; the pipeline's topics exist. `epoch` is the highest at which anybody has reported to own it.
///
/// An empty changelog of a shard that was owned or has written before is a lost one, not a new one: that is refused. A genesis that was aborted leaves a changelog with an
/// end but without a record, so offsets do not tell: records are looked for.
///
/// # Errors
/// [`ShardError`].
pub fn begin(log: &dyn Log, topics: &Topics, stage: &str, shard: u32, epoch: u64) -> Result<(), ShardError> {
    let changelog = TopicPartition::new(topics.changelog(stage), shard);
    let written = if stage == "unify" { &topics.actions } else { &topics.mutations };
    let output = TopicPartition::new(written.clone(), shard);
    // Asked first: whoever begins the shard meanwhile, and writes, has written to the changelog before.
    let has_written = log.bounds(&output)?.1 > 0;
    if has_records(log, &changelog)? {
        return Ok(());
    }
    if has_written {
        return Err(ShardError::Stopped(format!(
            "{changelog} is empty, but {output} is not: the changelog was lost; bring it back, or begin another generation"
        )));
    }
    if epoch > 0 {
        return Err(ShardError::Stopped(format!(
            "{changelog} is empty, but the shard was owned before (epoch {epoch}): the changelog was lost; bring it back, or begin another generation"
        )));
    }
    // What is added to the inputs from here on is read, or the shard stops.
    let inputs = inputs::beginnings(log, topics, stage, shard)?;
    let mut producer = log.transactional(&topics.transactional_id(stage, shard, 0))?;
    if has_records(log, &changelog)? {
        return Ok(());
    }
    if is_held_back(log, &changelog)? {
        abort_in(&mut *producer, [&changelog], &Writer::of(topics, stage, shard))?;
        return Err(ShardError::Reopen(format!("{changelog}: a first record hung there, and was aborted")));
    }
    let genesis = Genesis {
        pipeline: topics.pipeline.clone(),
        stage: stage.to_owned(),
        shard,
        shards: topics.shards,
        generation: u32::from(topics.generation),
        format_level: 1,
        inputs,
    };
    commit_record(&mut *producer, topics, stage, shard, Record::Genesis(genesis))
}

/// Was anything ever committed? Offsets alone do not say: a first record that was aborted, because its writer died, has some too.
fn has_records(log: &dyn Log, at: &TopicPartition) -> Result<bool, ShardError> {
    let (start, end) = log.bounds(at)?;
    if start > 0 || end == 0 {
        return Ok(start > 0);
    }
    let mut consumer = log.consumer(&[(at.clone(), Start::At(start))]).map_err(ShardError::of_changelog)?;
    for _ in 0..PATIENCE {
        if consumer.poll(1, POLL, &mut |_| ()).map_err(ShardError::of_changelog)? > 0 {
            return Ok(true);
        }
        if consumer.positions().first().is_some_and(|position| *position >= end) {
            return Ok(false);
        }
    }
    Err(ShardError::Away(format!("{at} cannot be read to its end at {end}")))
}
