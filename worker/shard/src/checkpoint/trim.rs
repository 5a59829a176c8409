//! What a checkpoint and the changelog owe each other.
//!
//! **I6**: before a checkpoint is taken up, the log is asked whether it has the very batch that it ends with: from then on it may be all that is left of what came before. And the changelog is trimmed up to
//! the oldest checkpoint that is kept, no further, once there are as many as are to be kept.

use super::layout::{Entry, Pointer};
use crate::ShardError;
use crate::changelog::{Assembler, Step};
use crate::log::{Log, Start, TopicPartition};
use crate::mutant::{self, Mutant};
use std::time::Duration;

/// How long one poll waits, and after how many without progress the log counts as unavailable.
const POLL: Duration = Duration::from_millis(200);
const PATIENCE: u32 = 150;
const MESSAGES: usize = 1;

/// Trims it; says up to where, when there was something to trim.
///
/// # Errors
/// [`ShardError`]: nothing was trimmed, or nobody knows.
pub(super) fn trim(
    log: &dyn Log,
    at: &TopicPartition,
    pointer: &Pointer,
    retained: usize,
) -> Result<Option<u64>, ShardError> {
    let topic_id = log.topic_id(&at.topic)?;
    let of_this: Vec<u64> =
        pointer.checkpoints.iter().filter(|it| it.topic_id == topic_id).map(|it| it.changelog_offset).collect();
    let oldest = match mutant::is(Mutant::TrimmedToNewest) {
        true => of_this.first(),
        false => of_this.iter().min(),
    };
    let Some(before) = oldest.copied().filter(|_| of_this.len() >= retained.max(1)) else { return Ok(None) };
    if before <= log.bounds(at)?.0 {
        return Ok(None);
    }
    log.trim(at, before)?;
    Ok(Some(before))
}

/// The log has the batch that a checkpoint ends with.
///
/// # Errors
/// [`ShardError::Reopen`] when it has not.
pub(super) fn prove(log: &dyn Log, at: &TopicPartition, entry: &Entry) -> Result<(), ShardError> {
    if mutant::is(Mutant::CheckpointUnproven) {
        return Ok(());
    }
    if log.topic_id(&at.topic)? != entry.topic_id {
        return Err(differs(at, entry, "it was deleted and made again"));
    }
    let (_, end) = log.bounds(at)?;
    let digest = u64::from_str_radix(&entry.digest, 16).unwrap_or_default();
    let mut assembler = Assembler::after(entry.batch, digest);
    let mut consumer = log.consumer(&[(at.clone(), Start::At(entry.changelog_offset))])?;
    let (mut idle, mut read) = (0, Ok(Vec::new()));
    loop {
        let before = consumer.positions();
        if before.first().is_some_and(|position| *position >= end) {
            // What was read from the log before needs no proof.
            return if entry.batch_follows { Err(differs(at, entry, "it is not there")) } else { Ok(()) };
        }
        consumer.poll(MESSAGES, POLL, &mut |message| {
            if read.is_ok() && !message.is_empty() {
                read = assembler.read(message.offset, message.payload);
            }
        })?;
        let steps = std::mem::replace(&mut read, Ok(Vec::new()));
        let steps = steps.map_err(|error| differs(at, entry, &error.to_string()))?;
        // The next batch names the digest of the one before.
        if steps.iter().any(|step| matches!(step, Step::Met | Step::Batch(_))) {
            return Ok(());
        }
        idle = if before == consumer.positions() { idle + 1 } else { 0 };
        if idle > PATIENCE {
            return Err(ShardError::Away(format!("{at} cannot be read from {} on", entry.changelog_offset)));
        }
    }
}

fn differs(at: &TopicPartition, entry: &Entry, why: &str) -> ShardError {
    let Entry { batch, digest, changelog_offset, .. } = entry;
    ShardError::Reopen(format!("{at} does not have batch {batch} ({digest}) at {changelog_offset}: {why}"))
}
