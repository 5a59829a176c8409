//! Transactional producers of the embedded log.
//!
//! Invariant (I4): who commits has the newest epoch of its id, checked under the lock in which the commit is announced; a new producer raises the
//! epoch only when no commit of the id is under way. So a commit either took hold before the next producer exists, or never does.

use super::log::{Handle, Shared};
use super::log_format::{self as format, PartitionId};
use super::log_open::unavailable;
use super::log_state::{Owner, State};
use super::log_writer::admit;
use millstream_shard::log::{LogError, Outgoing, Transactional};
use rocksdb::WriteBatch;
use std::sync::{Arc, PoisonError};

/// A producer of a transactional id.
pub(super) struct EmbeddedTransactional {
    handle: Arc<Handle>,
    id: String,
    epoch: u64,
    /// The open transaction's messages, with their keys.
    open: Option<WriteBatch>,
    /// True after any error.
    spent: bool,
}

impl EmbeddedTransactional {
    /// Fences every former producer of the id.
    pub(super) fn new(handle: Arc<Handle>, id: &str) -> Result<EmbeddedTransactional, LogError> {
        if id.is_empty() {
            return Err(LogError::Configuration("a transactional id may not be empty".to_owned()));
        }
        let shared = &handle.shared;
        let mut state = shared.lock();
        while state.owners.get(id).is_some_and(|owner| owner.committing) {
            state.check()?;
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.check()?;
        let epoch = state.owners.get(id).map_or(0, |owner| owner.epoch) + 1;
        let mut batch = WriteBatch::default();
        batch.put([b"X", id.as_bytes()].concat(), epoch.to_be_bytes());
        end(shared, &mut state, id, batch)?;
        state.owners.entry(id.to_owned()).or_default().epoch = epoch;
        drop(state);
        shared.changed.notify_all();
        Ok(EmbeddedTransactional { handle, id: id.to_owned(), epoch, open: None, spent: false })
    }

    /// Runs `work`; after an error this client is spent.
    fn guarded(
        &mut self,
        work: impl FnOnce(&mut EmbeddedTransactional) -> Result<(), LogError>,
    ) -> Result<(), LogError> {
        if self.spent {
            return Err(unknown("this client has failed before; make a new one"));
        }
        let result = work(self);
        self.spent = result.is_err();
        result
    }

    fn owner<'a>(&self, state: &'a mut State) -> Result<&'a mut Owner, LogError> {
        state.check().map_err(|error| unknown(&error.to_string()))?;
        match state.owners.get_mut(&self.id) {
            Some(owner) if owner.epoch == self.epoch => Ok(owner),
            _ => Err(unknown(&format!("fenced: a newer producer of `{}` exists", self.id))),
        }
    }

    fn add(&mut self, message: &Outgoing<'_>) -> Result<(), LogError> {
        let shared = &self.handle.shared;
        let to = admit(shared, message)?;
        let messages = shared.messages()?;
        let mut value = format::encode(message);
        let mut state = shared.lock();
        let touched = self.owner(&mut state)?.holds.iter().any(|(id, _)| *id == to);
        let partition = state.partitions.get_mut(&to).ok_or_else(|| super::log_state::deleted(message.topic))?;
        let (offset, time_ms) = partition.take(shared.clock.now_ms());
        if !touched {
            partition.holds.insert(offset);
            self.owner(&mut state)?.holds.push((to, offset));
        }
        drop(state);
        format::stamp(&mut value, time_ms);
        let batch = self.open.as_mut().ok_or_else(|| unknown("no transaction was begun"))?;
        batch.put_cf(messages, to.at(offset), &value);
        Ok(())
    }

    fn decide(&mut self) -> Result<(), LogError> {
        let mut batch = self.open.take().ok_or_else(|| unknown("no transaction was begun"))?;
        let shared = &self.handle.shared;
        let mut state = shared.lock();
        let holds = self.owner(&mut state)?.holds.clone();
        if holds.is_empty() {
            return Ok(());
        }
        if holds.iter().any(|(id, _)| !state.partitions.contains_key(id)) {
            return Err(unknown("a topic of the transaction was deleted"));
        }
        add_controls(shared, &mut state, &holds, &mut batch)?;
        self.owner(&mut state)?.committing = true;
        drop(state);
        let written = shared.write(batch);
        let mut state = shared.lock();
        if let Err(error) = written {
            // The holds stay, and so does `committing`: only opening the log again tells what the write came to.
            state.failed = Some(error.to_string());
            shared.changed.notify_all();
            return Err(unknown(&unavailable("commit", &error).to_string()));
        }
        state.release(&holds);
        let owner = self.owner(&mut state)?;
        (owner.holds, owner.committing) = (Vec::new(), false);
        drop(state);
        shared.changed.notify_all();
        Ok(())
    }

    fn give_up(&mut self) -> Result<(), LogError> {
        self.open.take().ok_or_else(|| unknown("no transaction was begun"))?;
        let shared = &self.handle.shared;
        let mut state = shared.lock();
        self.owner(&mut state)?;
        end(shared, &mut state, &self.id, WriteBatch::default()).map_err(|error| unknown(&error.to_string()))?;
        drop(state);
        shared.changed.notify_all();
        Ok(())
    }
}

fn unknown(reason: &str) -> LogError {
    LogError::Unknown(reason.to_owned())
}

/// Ends the id's open transaction as aborted: its messages are forgotten, control records take readers past their offsets also after
/// opening again. Writes `batch` with it.
fn end(shared: &Shared, state: &mut State, id: &str, mut batch: WriteBatch) -> Result<(), LogError> {
    let holds = state.owners.get(id).map_or_else(Vec::new, |owner| owner.holds.clone());
    add_controls(shared, state, &holds, &mut batch)?;
    if batch.is_empty() {
        return Ok(());
    }
    shared.write_locked(state, batch)?;
    state.release(&holds);
    if let Some(owner) = state.owners.get_mut(id) {
        owner.holds.clear();
    }
    Ok(())
}

/// A control record in each partition that a transaction touched.
fn add_controls(
    shared: &Shared,
    state: &mut State,
    holds: &[(PartitionId, u64)],
    batch: &mut WriteBatch,
) -> Result<(), LogError> {
    let messages = shared.messages()?;
    let now_ms = shared.clock.now_ms();
    for (id, _) in holds {
        if let Some(partition) = state.partitions.get_mut(id) {
            let (offset, time_ms) = partition.take(now_ms);
            batch.put_cf(messages, id.at(offset), format::control(time_ms));
        }
    }
    Ok(())
}

impl Transactional for EmbeddedTransactional {
    fn begin(&mut self) -> Result<(), LogError> {
        self.guarded(|client| {
            if client.open.is_some() {
                return Err(unknown("the former transaction is still open: commit or abort it first"));
            }
            client.owner(&mut client.handle.shared.lock())?;
            client.open = Some(WriteBatch::default());
            Ok(())
        })
    }

    fn send(&mut self, message: Outgoing<'_>) -> Result<(), LogError> {
        self.guarded(|client| {
            if client.open.is_none() {
                return Err(unknown("no transaction was begun"));
            }
            client.add(&message)
        })
    }

    fn commit(&mut self) -> Result<(), LogError> {
        self.guarded(EmbeddedTransactional::decide)
    }

    fn abort(&mut self) -> Result<(), LogError> {
        self.guarded(EmbeddedTransactional::give_up)
    }
}

impl Drop for EmbeddedTransactional {
    fn drop(&mut self) {
        let shared = &self.handle.shared;
        let mut state = shared.lock();
        let mine = self.owner(&mut state).is_ok_and(|owner| !owner.holds.is_empty() && !owner.committing);
        if mine {
            // On failure the log has failed as a whole, and whoever uses it next is told.
            drop(end(shared, &mut state, &self.id, WriteBatch::default()));
            drop(state);
            shared.changed.notify_all();
        }
    }
}
