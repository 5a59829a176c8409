//! Whether a savepoint is what it was: every object that it names is there, has its content, and the changelog of each shard leads from its checkpoint to its cut, by the chain of digests.
//!
//! It reads the object store alone: no worker, and no Kafka, need be there.

use super::layout::{self, Cut, Manifest, Piece, State};
use super::store::Store;
use super::{Damage, SavepointError};
use crate::changelog::{Assembler, Step};
use crate::checkpoint::layout::{File, damaged, hash};
use crate::checkpoint::reading::Reading;
use crate::objects::ObjectError;

/// Bytes of one request.
const PART: usize = 4 << 20;

/// What was read of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Objects.
    pub objects: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Messages of channels.
    pub messages: u64,
}

/// Reads all of a savepoint; `tell` is told of how many bytes of how many.
///
/// # Errors
/// [`SavepointError::Objects`] when the object store cannot be read, [`SavepointError::Damaged`] with everything that is not what it was.
pub fn verify(store: &Store, manifest: &Manifest, tell: &mut dyn FnMut(u64, u64)) -> Result<Verified, SavepointError> {
    let (states, channels) = (manifest.states.len(), manifest.channels.len());
    let shards = manifest.shards as usize;
    if (states, channels) != (2 * shards, 3 * shards) {
        let said = format!("its manifest has {states} states and {channels} channels of {shards} shards");
        return Err(SavepointError::Damaged(Damage(vec![said])));
    }
    let mut verifying = Verifying { store, manifest, verified: Verified::default(), damage: Vec::new(), tell };
    for state in &manifest.states {
        verifying.state(state)?;
    }
    for channel in &manifest.channels {
        for piece in &channel.pieces {
            let messages = verifying.piece(piece, &mut |_| Ok(()))?;
            verifying.verified.messages += messages;
        }
    }
    match verifying.damage.is_empty() {
        true => Ok(verifying.verified),
        false => Err(SavepointError::Damaged(Damage(verifying.damage))),
    }
}

struct Verifying<'a> {
    store: &'a Store,
    manifest: &'a Manifest,
    verified: Verified,
    damage: Vec<String>,
    tell: &'a mut dyn FnMut(u64, u64),
}

impl Verifying<'_> {
    /// What is damaged is noted, and the others are looked at.
    fn note<T: Default>(&mut self, looked: Result<T, ObjectError>) -> Result<T, ObjectError> {
        match looked {
            Err(error @ ObjectError::Damaged { .. }) => {
                self.damage.push(error.to_string());
                Ok(T::default())
            }
            looked => looked,
        }
    }

    fn read(&mut self, objects: u64, bytes: u64) {
        self.verified.objects += objects;
        self.verified.bytes += bytes;
        (self.tell)(self.verified.bytes, self.manifest.bytes());
    }

    fn full(&self, object: &str) -> String {
        self.store.full(self.manifest.savepoint, object)
    }

    fn file(&mut self, file: &File) -> Result<(), ObjectError> {
        let (objects, full) = (self.store.objects(), self.full(&file.object));
        let mut reading = Reading::new(&**objects, &full, file);
        while let Some(part) = reading.next(PART)? {
            self.read(0, part.len() as u64);
        }
        self.read(1, 0);
        Ok(())
    }

    fn state(&mut self, state: &State) -> Result<(), ObjectError> {
        for file in &state.files {
            let looked = self.file(file);
            self.note(looked)?;
        }
        let after = state.checkpoint.as_ref().map(|entry| (entry.batch, &entry.digest));
        let (batch, digest) =
            after.map_or((0, 0), |(batch, digest)| (batch, u64::from_str_radix(digest, 16).unwrap_or_default()));
        let (mut assembler, mut last) = (Assembler::after(batch, digest), None);
        for piece in &state.changelog {
            self.piece(piece, &mut |message| {
                let steps = assembler.read(message.offset, message.payload).map_err(|error| error.to_string())?;
                let mut batches = steps.into_iter().filter_map(|step| match step {
                    Step::Batch(batch) => Some((Cut::of(message.offset, &batch), batch.cuts)),
                    _ => None,
                });
                last = batches.next_back().or(last.take());
                Ok(())
            })?;
        }
        let (cut, savepoint) = (&state.cut, self.manifest.savepoint);
        if !last.is_some_and(|(last, cuts)| last == *cut && cuts.contains(&savepoint)) {
            let (stage, shard) = (&state.stage, state.shard);
            self.damage.push(format!("the changelog of {stage} {shard} does not lead to its cut, batch {}", cut.batch));
        }
        Ok(())
    }

    /// Gives how many messages it has.
    fn piece(
        &mut self,
        piece: &Piece,
        each: &mut dyn FnMut(layout::Copied<'_>) -> Result<(), String>,
    ) -> Result<u64, ObjectError> {
        let full = self.full(&piece.object);
        let looked = self.store.objects().get(&full).and_then(|object| {
            let content = object.ok_or_else(|| damaged(&full, "it is missing"))?.content;
            if content.len() as u64 != piece.size || hash(&content) != piece.hash {
                return Err(damaged(&full, "its content has changed"));
            }
            let messages = layout::messages(&full, &content)?;
            if messages.len() as u64 != piece.messages {
                return Err(damaged(&full, "it has another number of messages"));
            }
            messages.iter().try_for_each(|message| each(*message).map_err(|why| damaged(&full, &why)))?;
            Ok(piece.messages)
        });
        self.read(1, piece.size);
        self.note(looked)
    }
}
