//! Who may write for a shard (I4).
//!
//! Kafka's transactional ids are the only lock. A shard has two, and the newest ownership record in its changelog names the one that may write.
//! *Takeover*, the way of every acquisition that is no handoff: read the changelog; initialise the **idle** id; then, never in parallel and
//! never in the other order, the **named** id; then read to the end. If the log still names that id, nobody else can commit any more:
//! continue on the other one, whose first transaction carries an ownership record with epoch + 1. If it names another one, somebody
//! else has it: back off, then start again.
//! Nobody re-initialises the named id and goes on with it: a commit of its former owner could still land afterwards.
//!
//! Every shard begins with a *genesis* record, written once, when its pipeline is created (I6).

use crate::changelog;
use crate::follower::Follower;
use crate::log::{Log, Outgoing, TopicPartition, Transactional};
use crate::topics::Topics;
use crate::{Executor, ShardError};
use millstream_model::proto::{Changelog, Genesis, Ownership, changelog::Record};

/// Who acquires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimant {
    /// Worker's name.
    pub worker: String,
    /// One process of that name.
    pub incarnation: String,
}

/// The right to write.
pub struct Lease {
    /// Client of the id that the log names now.
    pub producer: Box<dyn Transactional>,
    /// Its epoch.
    pub epoch: u64,
    /// Which of the two ids it is.
    pub slot: u32,
}

/// Takes a shard over; the follower has then read everything that any former owner committed.
///
/// # Errors
/// [`ShardError::Reopen`] when it must be tried again, [`ShardError::Stopped`] without a genesis record.
pub fn take_over(
    log: &dyn Log,
    topics: &Topics,
    stage: &str,
    shard: u32,
    claimant: &Claimant,
    follower: &mut Follower,
    executor: &dyn Executor,
) -> Result<Lease, ShardError> {
    follower.read_to_end(log)?;
    if !follower.has_genesis() {
        return Err(ShardError::Stopped(format!(
            "{} has no genesis record: the pipeline was not created, or its changelog was lost",
            TopicPartition::new(topics.changelog(stage), shard)
        )));
    }
    let named = follower.position().slot;
    let idle = 1 - named.min(1);
    let mut producer = log.transactional(&topics.transactional_id(stage, shard, idle))?;
    let fenced = log.transactional(&topics.transactional_id(stage, shard, named))?;
    // It has done its work by being there; ending it takes some clients half a second.
    executor.run(Box::new(move || drop(fenced)));
    follower.read_to_end(log)?;
    if follower.position().slot != named {
        return Err(ShardError::Reopen(format!("{stage}[{shard}]: somebody else took it over in between")));
    }
    let epoch = follower.position().epoch + 1;
    let record =
        Ownership { epoch, slot: idle, worker: claimant.worker.clone(), incarnation: claimant.incarnation.clone() };
    commit_record(&mut *producer, topics, stage, shard, Record::Ownership(record))?;
    follower.read_to_end(log)?;
    // Our own record may not be visible yet; a newer one would be somebody else's.
    if follower.position().epoch > epoch {
        return Err(ShardError::Reopen(format!("{stage}[{shard}]: somebody else took it over at once")));
    }
    Ok(Lease { producer, epoch, slot: idle })
}

fn commit_record(
    producer: &mut dyn Transactional,
    topics: &Topics,
    stage: &str,
    shard: u32,
    record: Record,
) -> Result<(), ShardError> {
    let payload = changelog::encode(&Changelog { record: Some(record) });
    producer.begin()?;
    producer.send(Outgoing {
        topic: &topics.changelog(stage),
        partition: shard,
        key: &[],
        payload: &payload,
        headers: &[],
    })?;
    Ok(producer.commit()?)
}

/// Writes the genesis record of a shard whose changelog is empty; the pipeline's topics exist.
///
/// An empty changelog of a shard that has written before is a lost one, not a new one: that is refused.
///
/// # Errors
/// [`ShardError`].
pub fn begin(log: &dyn Log, topics: &Topics, stage: &str, shard: u32) -> Result<(), ShardError> {
    let changelog = TopicPartition::new(topics.changelog(stage), shard);
    if log.bounds(&changelog)?.1 > 0 {
        return Ok(());
    }
    let written = if stage == "unify" { &topics.actions } else { &topics.mutations };
    let output = TopicPartition::new(written.clone(), shard);
    if log.bounds(&output)?.1 > 0 {
        return Err(ShardError::Stopped(format!(
            "{changelog} is empty, but {output} is not: the changelog was lost; restore a savepoint"
        )));
    }
    let mut producer = log.transactional(&topics.transactional_id(stage, shard, 0))?;
    if log.bounds(&changelog)?.1 > 0 {
        return Ok(());
    }
    let genesis = Genesis {
        pipeline: topics.pipeline.clone(),
        stage: stage.to_owned(),
        shard,
        shards: topics.shards,
        generation: u32::from(topics.generation),
        format_level: 1,
    };
    commit_record(&mut *producer, topics, stage, shard, Record::Genesis(genesis))
}
